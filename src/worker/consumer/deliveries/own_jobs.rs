//! Runs jobs on the thread that settles them, until something else needs that thread while the handler
//! runs.

use crossbeam_channel::{Receiver, never};

use crate::amqp::close_reason::CloseReason;
use crate::worker::consumer::deliveries::Deliveries;
use crate::worker::consumer::own_thread::{LeftBehind, OwnThread};
use crate::worker::job::{Finished, Job};

impl Deliveries<'_> {
    pub(crate) fn runs_jobs_itself(&self) -> bool {
        self.own_thread.is_some()
    }

    /// Receives when a full batch of results waits; never while this thread runs the jobs.
    pub(crate) fn batch_ready(&self) -> Receiver<()> {
        if self.runs_jobs_itself() { never() } else { self.jobs.batch_ready.clone() }
    }

    /// Receives the results of another thread.
    pub(crate) fn finished(&self) -> Receiver<Finished> {
        if self.runs_jobs_itself() { never() } else { self.jobs.finished.clone() }
    }

    /// The next job that this thread is to run, and what runs it, to be
    /// [put back](Deliveries::put_back). `None` if this thread has to wait for an event first.
    pub(crate) fn next_own_job(&mut self) -> Result<Option<(OwnThread, Job)>, LeftBehind> {
        if !self.jobs.has_queued() || self.context.is_stopped() {
            return Ok(None);
        }
        let Some(own_thread) = self.own_thread.take() else { return Ok(None) };
        let next = own_thread.next_job(self.channel.number(), self.ledger.first_event());
        if let Ok(Some(job)) = next {
            return Ok(Some((own_thread, job)));
        }
        self.own_thread = Some(own_thread);
        next.map(|_| None)
    }

    /// Leaves a job on this thread to the broker, because the session went on without it.
    pub(crate) fn leave_own_job(&mut self, finished: &Finished) {
        self.orphan(finished);
        // The supervisor has counted it as settled.
        self.ledger.finish(finished.job.tag);
    }

    /// The same for the job that is not started.
    pub(crate) fn leave_queued_job(&mut self) {
        for job in self.jobs.take_queued() {
            self.ledger.finish(job.tag);
        }
    }

    pub(crate) fn put_back(&mut self, own_thread: OwnThread) {
        self.own_thread = Some(own_thread);
    }

    /// Has another thread run the jobs from now on.
    pub(super) fn start_runner_thread(&mut self) -> Result<(), CloseReason> {
        let Some(own_thread) = self.own_thread.take() else { return Ok(()) };
        own_thread.hand_over().map_err(|error| {
            CloseReason::Lost(format!("the system cannot start another thread: {error}"))
        })
    }

    /// Sends no more jobs. Another thread runs those that are queued.
    pub(crate) fn end_jobs(&mut self) -> Result<(), CloseReason> {
        self.jobs.end();
        if self.jobs.has_queued() {
            self.start_runner_thread()?;
        }
        self.own_thread = None;
        Ok(())
    }
}
