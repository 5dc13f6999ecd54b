//! Requeues deliveries when they are due or the consumer stops, and leaves them to the broker when the
//! channel is lost.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never};

use crate::amqp::channel::{Acks, Settlement};
use crate::amqp::close_reason::CloseReason;
use crate::worker::consumer::deliveries::Deliveries;
use crate::worker::job::{Finished, Job, JobResult};

/// How many deliveries the threads of a session requeue one by one at most. RabbitMQ needs the
/// square of their number for that (30,000: 23 to 59 s on 3.10.8), and a moment for any number that
/// one nack covers.
const MOST_SINGLE_NACKS: usize = 1000;

impl Deliveries<'_> {
    /// Receives when paused or deferred tasks are due.
    pub(crate) fn next_due(&self) -> Receiver<Instant> {
        self.ledger.next_due().map_or_else(never, crossbeam_channel::at)
    }

    pub(crate) fn due_makes_room(&self) -> bool {
        self.ledger.due_makes_room()
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.ledger.is_waiting()
    }

    pub(crate) fn requeue_due(&mut self) -> Result<(), CloseReason> {
        self.ledger.requeue_due(Instant::now());
        self.nack_requeued()
    }

    pub(crate) fn skip_pauses(&mut self) -> Result<(), CloseReason> {
        self.ledger.skip_pauses();
        self.nack_requeued()
    }

    /// Nacks what is to be requeued, as far as a few nacks can.
    pub(crate) fn nack_requeued(&mut self) -> Result<(), CloseReason> {
        while let Some(nack) = self.ledger.next_nack(MOST_SINGLE_NACKS / self.context.consumers) {
            let settled = nack.duty.map_or(Ok(()), |duty| self.channel.settle(duty, nack.how));
            self.context.in_flight.add_settled(nack.count);
            settled?;
            // With automatic acks nothing was requeued.
            if self.settings().acks == Acks::Manual {
                let requeued = |job: &Job| self.journal().requeued(&job.delivery, Duration::ZERO);
                nack.unstarted.iter().for_each(requeued);
            }
        }
        Ok(())
    }

    pub(super) fn requeue_or_lose(&mut self, unstarted: Vec<Job>) {
        if self.settings().acks == Acks::Automatic {
            self.journal().lost_unstarted(self.thread, unstarted.len());
        }
        self.ledger.requeue_unstarted(unstarted);
    }

    /// Requeues what the handler thread has not started, which it then does not.
    pub(crate) fn requeue_unstarted(&mut self) -> Result<(), CloseReason> {
        self.jobs.close();
        let unstarted = self.jobs.take_queued();
        self.requeue_or_lose(unstarted);
        self.nack_requeued()
    }

    /// Requeues everything, with what still runs or is being republished.
    pub(crate) fn requeue_all(&mut self) -> Result<(), CloseReason> {
        while let Ok(finished) = self.jobs.finished.try_recv() {
            self.settle(finished)?;
        }
        while let Ok(result) = self.republished.try_recv() {
            self.finish_republish(result)?;
        }
        self.skip_pauses()?;
        match self.settings().acks {
            Acks::Manual => self.nack_all(),
            Acks::Automatic => {
                if self.context.is_cancelled() {
                    self.journal().lost_unstarted(self.thread, self.ledger.len());
                }
                Ok(())
            }
        }
    }

    fn nack_all(&mut self) -> Result<(), CloseReason> {
        let mut unacked = self.ledger.drain_all();
        let Some(mut last) = unacked.last_entry() else { return Ok(()) };
        if let Some(duty) = last.get_mut().duty.take() {
            self.channel.settle(duty, Settlement::RequeueUpTo)?;
        }
        for (tag, delivery) in unacked {
            if self.ledger.forget(tag) {
                self.journal().requeued_meanwhile(delivery.event);
            }
        }
        Ok(())
    }

    /// Leaves everything to the broker, which requeues it because the channel is lost. `last` are
    /// finished, but not settled.
    pub(crate) fn abandon(&mut self, last: VecDeque<Finished>) {
        let journal = self.journal();
        let is_automatic = self.settings().acks == Acks::Automatic;
        if is_automatic {
            journal.lost_unstarted(self.thread, self.jobs.take_queued().len());
        }
        for event in self.ledger.take_republishing().into_values() {
            journal.orphaned_while_published(event);
        }
        // The broker requeues them. A drain must not wait for the acks of those that still run.
        self.context.in_flight.add_settled(self.ledger.len() as u64);
        // Last, because more may finish while the observer is called.
        for finished in last.into_iter().chain(self.jobs.finished.try_iter()) {
            self.orphan(&finished);
        }
    }

    /// Records a task that finished after the channel was lost.
    pub(crate) fn orphan(&self, finished: &Finished) {
        if !matches!(finished.result, JobResult::NotStarted) {
            self.journal().orphaned(&finished.job.delivery, finished.elapsed);
        } else if self.settings().acks == Acks::Automatic {
            self.journal().lost_unstarted(self.thread, 1);
        }
    }
}
