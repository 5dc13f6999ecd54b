//! Routes failed tasks: to the republisher, or into a pause if they cannot be published now.

use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, never};
use log::{info, warn};

use crate::amqp::channel::Settlement;
use crate::amqp::close_reason::CloseReason;
use crate::model::failure_record::{FailureContext, to_dead_letter, to_deferred, to_retry};
use crate::model::handler::{Delivery, Failure};
use crate::model::outcome::Outcome;
use crate::model::queue::Target;
use crate::model::retry::Decision;
use crate::worker::consumer::deliveries::Deliveries;
use crate::worker::in_flight::{MOST_KEPT, Stall};
use crate::worker::job::Job;
use crate::worker::republish::{RepublishRequest, RepublishResult};

/// What the log says of the present stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StallLogged {
    Nothing,
    /// That the thread takes other tasks meanwhile.
    GoesOn,
    /// That it takes none.
    Full,
}

impl Deliveries<'_> {
    /// Decides where a failed or deferred task goes. It is acked only once the broker has confirmed its copy
    /// there; this thread goes on meanwhile.
    pub(super) fn route_failure(&mut self, job: Job, failure: &Failure, elapsed: Duration) {
        let policy = &self.settings().policy;
        let failure = &policy.limit_deferrals(job.delivery.deferrals, failure.clone());
        let target = match policy.decide(job.delivery.attempt, failure) {
            Decision::Requeue => {
                let pause = self.ledger.pause(job.tag, Instant::now());
                return self.journal().not_tried(&job.delivery, failure, pause, elapsed);
            }
            Decision::Retry(delay) if delay.is_zero() => Target::Main,
            Decision::Retry(delay) | Decision::Defer(delay) => Target::Delay(delay),
            Decision::Dead => Target::Dead,
        };
        let event = self.journal().failed(&job.delivery, failure, target, elapsed);
        self.ledger.hand_over(job.tag, event);
        self.republish(job, target, failure);
    }

    fn republish(&self, job: Job, target: Target, failure: &Failure) {
        let Job { tag, delivery: Delivery { task, attempt, deferrals, .. } } = job;
        let context = FailureContext {
            queue: self.context.queue.name(),
            host: &self.settings().host,
            now: SystemTime::now(),
        };
        let task = match failure {
            Failure::Defer { .. } => to_deferred(task, deferrals.saturating_add(1)),
            _ if target == Target::Dead => to_dead_letter(task, attempt, failure.reason(), context),
            _ => to_retry(task, attempt, failure.reason(), context),
        };
        let request = RepublishRequest { task, target, tag, results: self.results.clone() };
        if self.context.republisher.send(request).is_err() {
            let reason = "the thread that republishes tasks has ended".to_string();
            let outcome = Outcome::Unconfirmed { reason };
            let _ = self.results.send(RepublishResult { tag, target, outcome });
        }
    }

    /// Whether the broker may send another delivery once this one is acked.
    pub(crate) fn makes_room(&self, result: &RepublishResult) -> bool {
        result.outcome == Outcome::Confirmed && self.ledger.makes_room(result.tag)
    }

    /// Receives a result later, again.
    pub(crate) fn postpone(&self, result: RepublishResult) {
        let _ = self.results.send(result);
    }

    /// Acks a task whose copy is confirmed. Any other stays unacked for a while, to be requeued.
    pub(crate) fn finish_republish(&mut self, result: RepublishResult) -> Result<(), CloseReason> {
        let RepublishResult { tag, target, outcome } = result;
        let Some(event) = self.ledger.take_back(tag) else { return Ok(()) };
        if outcome != Outcome::Confirmed {
            let pause = self.ledger.defer(tag, Instant::now());
            let queue = self.context.queue.name_of(target);
            self.journal().not_republished(event, &queue, &outcome, pause);
            return Ok(());
        }
        if let Err(cause) = self.settle_one(tag, Settlement::Ack) {
            self.ledger.hand_over(tag, event);
            return Err(cause);
        }
        self.ledger.note_republished();
        self.stall_logged = StallLogged::Nothing;
        self.journal().republished(event, target);
        Ok(())
    }

    /// Receives when another subscription is to bring other tasks, because failed ones take up the
    /// prefetch. A broker that reads nothing now cannot answer, and is not asked.
    pub(crate) fn stalled(&mut self) -> Receiver<Instant> {
        match self.ledger.stall(Instant::now()) {
            Stall::Until(at) if !self.context.is_blocked() => crossbeam_channel::at(at),
            Stall::No | Stall::Until(_) => never(),
            Stall::Full => {
                self.log_stall(StallLogged::Full);
                never()
            }
        }
    }

    pub(crate) fn log_resubscription(&mut self) {
        self.log_stall(StallLogged::GoesOn);
    }

    /// Logs each stage once in a row of stalls.
    fn log_stall(&mut self, stage: StallLogged) {
        if self.stall_logged >= stage {
            return;
        }
        self.stall_logged = stage;
        let (number, kept) = (self.thread, self.ledger.len());
        match stage {
            StallLogged::Nothing => {}
            StallLogged::GoesOn => info!(
                "thread {number}: keeps up to {MOST_KEPT} tasks whose copies are not confirmed, or \
                 that still run here, and takes other tasks"
            ),
            StallLogged::Full => warn!(
                "thread {number}: keeps {kept} tasks whose copies are not confirmed, or that still \
                 run here, and takes no others until these are requeued; run queuectl check"
            ),
        }
    }
}
