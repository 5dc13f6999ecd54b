//! Routes failed tasks: to the republisher, or into a pause if they cannot be published now.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, never};
use log::{info, warn};

use crate::amqp::channel::Settlement;
use crate::amqp::close_reason::CloseReason;
use crate::model::batch::outcome::TaskEnd;
use crate::model::failure_record::{
    FailureContext, Fitted, fitted, to_dead_letter, to_deferred, to_retry,
};
use crate::model::handler::{Delivery, Failure};
use crate::model::outcome::Outcome;
use crate::model::queue::Target;
use crate::model::retry::Decision;
use crate::model::task::USUAL_FRAME;
use crate::worker::consumer::deliveries::Deliveries;
use crate::worker::consumer::deliveries::report::Report;
use crate::worker::event::{Event, EventKind};
use crate::worker::in_flight::{MOST_KEPT, Stall};
use crate::worker::job::Job;
use crate::worker::republish::{Publish, RepublishRequest, RepublishResult};

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
        let Delivery { attempt, deferrals, .. } = *job.delivery;
        let (failure, decision) = self.settings().policy.judge(attempt, deferrals, failure.clone());
        let failure = &failure;
        let target = match decision {
            Decision::Requeue => {
                let pause = self.ledger.pause(job.tag, Instant::now());
                return self.journal().not_tried(&job.delivery, failure, pause, elapsed);
            }
            Decision::Retry(delay) if delay.is_zero() => Target::Main,
            Decision::Retry(delay) | Decision::Defer(delay) => Target::Delay(delay),
            Decision::Dead => Target::Dead,
        };
        let mut event = self.journal().failed(&job.delivery, failure, target, elapsed);
        let Job { tag, mut delivery } = job;
        let report = Report::take(&mut delivery, elapsed);
        let copy = self.copy(*delivery, target, failure);
        let mut publishes = VecDeque::new();
        if copy.target == Target::Dead {
            (event.kind, event.delay) = (EventKind::Dead, None);
            let reason = Some(failure.reason().to_string());
            let dead = |it: Report| it.publish(TaskEnd::Dead, reason, &self.settings().host);
            publishes.extend(report.map(dead));
        }
        publishes.push_front(copy);
        self.publish_before_ack(tag, publishes, event);
    }

    /// The copy of a failed or deferred task. The task was small enough to be delivered to us, so only
    /// the headers that we add can make it too large.
    fn copy(&self, delivery: Delivery, target: Target, failure: &Failure) -> Publish {
        let Delivery { task, attempt, deferrals, thread, .. } = delivery;
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
        match fitted(task, self.context.connection.largest_frame().min(USUAL_FRAME)) {
            Fitted::Recorded(task) => Publish { task, queue: None, target },
            Fitted::Truncated(task) => {
                let (queue, id) = (self.context.queue.name(), task.id().unwrap_or_default());
                warn!(
                    queue, task = id, thread, attempt, reason:% = failure;
                    "task {}: its headers leave no room for a failure record, so it becomes a \
                     dead letter at once, without one",
                    task.name()
                );
                Publish { task, queue: None, target: Target::Dead }
            }
        }
    }

    /// Has all this published, one after the other, and the delivery acked after that.
    pub(super) fn publish_before_ack(
        &mut self,
        tag: u64,
        publishes: VecDeque<Publish>,
        event: Event,
    ) {
        self.ledger.hand_over(tag, event);
        let target = publishes.front().map_or(Target::Main, |it| it.target);
        let request = RepublishRequest { publishes, tag, results: self.results.clone() };
        if self.context.republisher.send(Some(request)).is_err() {
            let reason = "the thread that republishes tasks has ended".to_string();
            let outcome = Outcome::Unconfirmed { reason };
            let _ = self.results.send(RepublishResult { tag, queue: None, target, outcome });
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

    /// Acks a task of which everything is confirmed. Any other stays unacked for a while, to be requeued.
    pub(crate) fn finish_republish(&mut self, result: RepublishResult) -> Result<(), CloseReason> {
        let RepublishResult { tag, queue, target, outcome } = result;
        let Some(event) = self.ledger.take_back(tag) else { return Ok(()) };
        if outcome != Outcome::Confirmed {
            let pause = self.ledger.keep(tag, Instant::now());
            let queue = queue.as_deref().unwrap_or(&self.context.queue).name_of(target);
            let journal = self.journal();
            match (target, event.kind) {
                (Target::Batch(_), _) => {
                    journal.not_published(event, "outcome", &queue, &outcome, pause);
                }
                (_, EventKind::Done) => {
                    journal.not_published(event, "follow-up", &queue, &outcome, pause);
                }
                _ => journal.not_republished(event, &queue, &outcome, pause),
            }
            return Ok(());
        }
        if let Err(cause) = self.settle_one(tag, Settlement::Ack) {
            self.ledger.hand_over(tag, event);
            return Err(cause);
        }
        self.ledger.note_republished();
        self.stall_logged = StallLogged::Nothing;
        self.journal().republished(event);
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
                "thread {number}: takes other tasks while it keeps up to {MOST_KEPT} tasks that still \
                 run or whose copies are not confirmed"
            ),
            StallLogged::Full => warn!(
                "thread {number}: keeps {kept} tasks whose copies are not confirmed, or that still \
                 run here, and takes no others until these are requeued; run queuectl check"
            ),
        }
    }
}
