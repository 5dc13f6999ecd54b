//! The channel between a consumer and its runner: jobs in, results out.

use std::mem;
use std::time::Duration;

use crossbeam_channel::{Receiver, SendError, Sender, bounded, unbounded};

use crate::amqp::heartbeat::Heartbeat;
use crate::model::handler::{Delivery, Failure};
use crate::util::shutdown::{Closer, Signal, closer};

/// A delivery for the handler, with the tag by which its consumer settles it.
pub(crate) struct Job {
    pub(crate) tag: u64,
    /// Boxed, because it is moved several times.
    pub(crate) delivery: Box<Delivery>,
}

/// A job and its result.
pub(crate) struct Finished {
    pub(crate) job: Job,
    pub(crate) result: JobResult,
    pub(crate) elapsed: Duration,
}

pub(crate) enum JobResult {
    NotStarted,
    Done,
    Failed(Failure),
}

/// The runner's end.
pub(crate) struct JobFeed {
    pub(crate) jobs: Receiver<Job>,
    results: Sender<Finished>,
    batch_size: usize,
    batch_ready: Sender<()>,
    /// Once closed, no further job of this feed is started.
    pub(crate) closed: Signal,
    /// Of the connection that the jobs came on.
    pub(crate) heartbeat: Heartbeat,
}

/// The consumer's end.
pub(crate) struct JobLink {
    /// `None` once no more jobs are sent; the runner then leaves the feed.
    jobs: Option<Sender<Job>>,
    /// The receiving end of `jobs`, to take back jobs that are not started.
    queued: Receiver<Job>,
    pub(crate) finished: Receiver<Finished>,
    /// Receives when a full batch of results waits.
    pub(crate) batch_ready: Receiver<()>,
    closer: Closer,
}

/// Makes both ends. Results need not wait for more once there are `batch_size` of them.
pub(crate) fn job_feed(batch_size: usize, heartbeat: &Heartbeat) -> (JobLink, JobFeed) {
    let (jobs, queued) = unbounded();
    let (results, finished) = unbounded();
    let (batch_sender, batch_ready) = bounded(1);
    let (closer, closed) = closer();
    let feed = JobFeed {
        jobs: queued.clone(),
        results,
        batch_size,
        batch_ready: batch_sender,
        closed,
        heartbeat: heartbeat.clone(),
    };
    (JobLink { jobs: Some(jobs), queued, finished, batch_ready, closer }, feed)
}

impl JobFeed {
    /// Sends a result to the consumer. Returns it if the consumer has ended.
    pub(crate) fn send(&self, finished: Finished) -> Option<Finished> {
        if let Err(SendError(finished)) = self.results.send(finished) {
            return Some(finished);
        }
        if self.results.len() >= self.batch_size {
            // Full: the consumer is notified already.
            let _ = self.batch_ready.try_send(());
        }
        None
    }
}

impl JobLink {
    pub(crate) fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // Cannot fail: `queued` is a receiver, too.
            let _ = jobs.send(job);
        }
    }

    /// Sends no more jobs. The runner runs those that are queued, then leaves the feed.
    pub(crate) fn end(&mut self) {
        drop(mem::take(&mut self.jobs));
    }

    /// Has the runner start no further job.
    pub(crate) fn close(&self) {
        self.closer.close();
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    pub(crate) fn take_queued(&self) -> Vec<Job> {
        self.queued.try_iter().collect()
    }
}
