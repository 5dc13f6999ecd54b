//! [`verdict`]: runs a handler once, and says what a worker would do with the task.

use std::time::Duration;

use crate::model::handler::{Failure, Handler, call};
use crate::model::retry::{Decision, RetryPolicy};
use crate::testing::delivery::DeliveryBuilder;
use crate::worker::event::EventKind;

/// What a worker does with a task after its handler has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The task is acked.
    Done,
    /// It failed, and is tried again.
    Retried {
        /// The delay before the next attempt, rounded up as in a [`RetryPolicy`].
        after: Duration,
        /// Why it failed.
        reason: String,
    },
    /// It is tried later, and no attempt is counted.
    Deferred {
        /// The delay, rounded up as in a [`RetryPolicy`].
        after: Duration,
        /// What it waits for.
        reason: String,
    },
    /// It becomes a dead letter.
    Dead {
        /// Why it failed.
        reason: String,
    },
    /// It goes back to its queue, and no attempt is counted.
    Requeued {
        /// What prevented it; `None` if it was cancelled.
        reason: Option<String>,
    },
    /// It goes back to its queue, and the worker ends
    /// ([`StopReason::HandlerStopped`](crate::StopReason::HandlerStopped)).
    WorkerStopped {
        /// What has to be fixed.
        reason: String,
    },
}

impl Verdict {
    /// The event that the worker's observer gets in the end.
    #[must_use]
    pub fn event(&self) -> EventKind {
        match self {
            Verdict::Done => EventKind::Done,
            Verdict::Retried { .. } => EventKind::Retried,
            Verdict::Deferred { .. } => EventKind::Deferred,
            Verdict::Dead { .. } => EventKind::Dead,
            Verdict::Requeued { .. } | Verdict::WorkerStopped { .. } => EventKind::Requeued,
        }
    }

    /// Why the task is not done, if the handler gave a reason.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Verdict::Done => None,
            Verdict::Requeued { reason } => reason.as_deref(),
            Verdict::Retried { reason, .. }
            | Verdict::Deferred { reason, .. }
            | Verdict::Dead { reason }
            | Verdict::WorkerStopped { reason } => Some(reason),
        }
    }
}

/// Runs the handler on this task, or on a delivery from [`delivery`](crate::testing::delivery), and
/// says what a worker with this policy would do next. The worker's own code decides, and catches
/// panics. The worker acks by itself ([`Worker::auto_ack`](crate::Worker::auto_ack) is off), and the
/// broker confirms each copy.
///
/// ```
/// use rabbit_work::testing::{Verdict, verdict};
/// use rabbit_work::{Delivery, Failure, RetryPolicy, Task};
///
/// let panics = |_: &Delivery| -> Result<(), Failure> { panic!("no such photo") };
/// let once = RetryPolicy::new().max_attempts(1);
/// let reason = "panicked: no such photo".to_string();
/// assert_eq!(verdict(&panics, Task::new("x"), &once), Verdict::Dead { reason });
/// ```
///
/// # Panics
/// If a worker would refuse the policy.
///
/// # Blocking
/// As long as the handler takes.
#[must_use]
pub fn verdict(
    handler: &dyn Handler,
    delivery: impl Into<DeliveryBuilder>,
    policy: &RetryPolicy,
) -> Verdict {
    if let Err(error) = policy.validate() {
        panic!("a worker refuses this policy: {error}");
    }
    let delivery = delivery.into().received_with(policy).build();
    match call(handler, &delivery) {
        // Its task is requeued, whatever the handler returned.
        _ if delivery.is_cancelled() => Verdict::Requeued { reason: None },
        Ok(()) => Verdict::Done,
        Err(failure) => {
            let decided = policy.judge(delivery.attempt, delivery.deferrals, failure);
            of_failure(decided)
        }
    }
}

fn of_failure((failure, decision): (Failure, Decision)) -> Verdict {
    let reason = failure.reason().to_string();
    match decision {
        Decision::Retry(after) => Verdict::Retried { after, reason },
        Decision::Defer(after) => Verdict::Deferred { after, reason },
        Decision::Dead => Verdict::Dead { reason },
        Decision::Requeue if matches!(failure, Failure::StopWorker { .. }) => {
            Verdict::WorkerStopped { reason }
        }
        Decision::Requeue => Verdict::Requeued { reason: Some(reason) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::handler::Delivery;
    use crate::model::task::Task;
    use crate::testing::delivery;
    use crate::util::shutdown::shutdown;

    #[test]
    fn a_cancelled_task_is_requeued_whatever_its_handler_returns() {
        let (trigger, shutdown) = shutdown();
        let cancelled_meanwhile = move |delivery: &Delivery| {
            trigger.abort();
            if delivery.body() == b"ok" { Ok(()) } else { Err(Failure::reject("no")) }
        };
        for body in ["ok", "no"] {
            let delivery = delivery(Task::new(body)).shutdown(&shutdown);
            let verdict = verdict(&cancelled_meanwhile, delivery, &RetryPolicy::new());
            assert_eq!(verdict, Verdict::Requeued { reason: None });
        }
    }

    #[test]
    #[should_panic(expected = "a worker refuses this policy: max attempts: 0")]
    fn a_policy_that_a_worker_refuses_has_no_verdict() {
        let policy = RetryPolicy::new().max_attempts(0);
        let _ = verdict(&|_: &Delivery| Ok(()), Task::new(""), &policy);
    }
}
