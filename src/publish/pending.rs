//! One task that a publisher has accepted: where it goes, until when, and what the broker said.
//!
//! Each task names its queue, so that one thread, window and connection serve all queues of a shared
//! producer. A publisher for each queue would need another owner for the connection and its notices.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;

use crate::model::outcome::Outcome;
use crate::model::queue::{Queue, Target};
use crate::model::task::Task;
use crate::publish::refusal::{LastRefusal, Refusal, pause_after, publish_again_at};

/// A task that is not resolved yet.
pub(crate) struct Pending<T> {
    pub(crate) task: Task,
    /// The queue that it is for, or whose derived queues it goes to.
    pub(crate) queue: Arc<Queue>,
    /// Where its caller wants it.
    pub(crate) asked: Target,
    /// Where it is published: the same, or a longer delay because that one's queue does not respond.
    pub(crate) target: Target,
    pub(crate) deadline: Instant,
    /// Why the broker returned it, while its confirm is still to come.
    pub(crate) returned: Option<String>,
    /// How often the broker refused it.
    pub(crate) refusals: u32,
    /// How the broker refused it last, until it is published again.
    pub(crate) refusal: Option<Refusal>,
    /// When to publish it again after a refusal.
    pub(crate) again_at: Option<Instant>,
    pub(crate) ticket: T,
    /// Whether any of it went to the broker.
    pub(crate) sent: bool,
}

/// A task, and what became of it.
pub(crate) struct Resolved<T> {
    pub(crate) task: Task,
    pub(crate) outcome: Outcome,
    pub(crate) ticket: T,
    /// Whether any of it went to the broker.
    pub(crate) sent: bool,
}

/// The least time for a call of the client library. A task that is almost out of time would
/// otherwise take the connection with it.
pub(crate) const SHORTEST_CALL: Duration = Duration::from_secs(1);

impl<T> Pending<T> {
    pub(crate) fn new(
        task: Task,
        (queue, target): (Arc<Queue>, Target),
        deadline: Instant,
        ticket: T,
    ) -> Pending<T> {
        Pending {
            task,
            queue,
            asked: target,
            target,
            deadline,
            returned: None,
            refusals: 0,
            refusal: None,
            again_at: None,
            ticket,
            sent: false,
        }
    }

    /// The name of the queue that it is published to.
    pub(crate) fn name(&self) -> Cow<'_, str> {
        match self.target {
            Target::Main => self.queue.name().into(),
            derived => self.queue.name_of(derived).into(),
        }
    }

    /// How long a call of the client library for this task may take.
    pub(crate) fn call_limit(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).max(SHORTEST_CALL)
    }

    /// Records a refusal that may pass, and when to publish again. Logs the first of a series.
    pub(crate) fn retry_later(&mut self, refusal: Refusal, last: &mut LastRefusal) {
        if !last.is_recent() {
            warn!(
                "queue '{}' refuses tasks at present: {refusal}; each is published again until its \
                 timeout",
                self.name()
            );
        }
        let now = Instant::now();
        last.record(now);
        self.refusals += 1;
        self.again_at = Some(publish_again_at(now, pause_after(self.refusals), self.deadline));
        self.refusal = Some(refusal);
    }

    /// The outcome if this refusal is the broker's last answer.
    pub(crate) fn outcome_after(&self, refusal: &Refusal) -> Outcome {
        if let Refusal::Returned(reason) = refusal {
            return Outcome::Returned { reason: reason.clone() };
        }
        let times = match self.refusals {
            0 | 1 => String::new(),
            times => format!(" {times} times"),
        };
        let name = self.name();
        let reason = format!("queue '{name}' refused it{times}: {refusal}");
        Outcome::Nacked { reason }
    }

    pub(crate) fn resolved(self, outcome: Outcome) -> Resolved<T> {
        Resolved { task: self.task, outcome, ticket: self.ticket, sent: self.sent }
    }
}

pub(crate) fn unsent(reason: impl Into<String>) -> Outcome {
    Outcome::Unsent { reason: reason.into() }
}

pub(crate) fn unconfirmed(reason: impl Into<String>) -> Outcome {
    Outcome::Unconfirmed { reason: reason.into() }
}
