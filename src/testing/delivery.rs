//! [`DeliveryBuilder`]: makes deliveries for the tests of handlers.

use std::sync::OnceLock;
use std::time::SystemTime;

use crossbeam_channel::never;

use crate::model::failure_record::{attempt_of, deferrals_of};
use crate::model::follow_up::FollowUps;
use crate::model::handler::Delivery;
use crate::model::retry::RetryPolicy;
use crate::model::task::{Ids, Task};
use crate::util::shutdown::Shutdown;

/// Makes a [`Delivery`]; see [`delivery`].
#[derive(Clone, Debug)]
pub struct DeliveryBuilder {
    task: Task,
    queue: String,
    thread: usize,
    redelivered: bool,
    attempt: Option<u32>,
    max_attempts: u32,
    deferrals: Option<u32>,
    max_defers: u32,
    shutdown: Option<Shutdown>,
}

/// A delivery of this task, to be changed and then [built](DeliveryBuilder::build). The task gets an
/// id and a time, as from a [`Producer`](crate::Producer).
///
/// ```
/// use rabbit_work::testing::delivery;
/// use rabbit_work::Task;
///
/// let second = delivery(Task::new("x")).attempt(2).queue("photos").build();
/// assert_eq!((second.attempt(), second.max_attempts(), second.queue()), (2, 5, "photos"));
/// assert!(second.task().id().is_some());
/// ```
#[must_use]
pub fn delivery(task: Task) -> DeliveryBuilder {
    let policy = RetryPolicy::new();
    DeliveryBuilder {
        task: task.stamped(SystemTime::now(), &mut Ids::new()),
        queue: "test".into(),
        thread: 1,
        redelivered: false,
        attempt: None,
        max_attempts: policy.attempt_limit(),
        deferrals: None,
        max_defers: policy.deferral_limit(),
        shutdown: None,
    }
}

impl DeliveryBuilder {
    /// Sets the queue that it comes from. Default: `test`.
    #[must_use]
    pub fn queue(mut self, name: impl Into<String>) -> DeliveryBuilder {
        self.queue = name.into();
        self
    }

    /// Sets the number of the worker thread, from 1. Default: 1.
    #[must_use]
    pub fn thread(mut self, number: usize) -> DeliveryBuilder {
        self.thread = number;
        self
    }

    /// Has the broker have delivered it before. Default: it has not.
    #[must_use]
    pub fn redelivered(mut self) -> DeliveryBuilder {
        self.redelivered = true;
        self
    }

    /// Sets which attempt it is, from 1. Default: as the task's headers say, and so 1 for a new task.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> DeliveryBuilder {
        self.attempt = Some(attempt);
        self
    }

    /// Sets after how many failed attempts the task becomes a dead letter. A
    /// [`verdict`](crate::testing::verdict) takes the number of its policy instead. Default: 5.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> DeliveryBuilder {
        self.max_attempts = attempts;
        self
    }

    /// Sets how often the task was deferred. Default: as the task's headers say, and so 0 for a new
    /// task.
    #[must_use]
    pub fn deferrals(mut self, deferrals: u32) -> DeliveryBuilder {
        self.deferrals = Some(deferrals);
        self
    }

    /// Has this shutdown cancel it: an [abort](crate::Trigger::abort) cancels it, and a
    /// [kill](crate::Trigger::kill) gives it no more time. Default: it is never cancelled.
    #[must_use]
    pub fn shutdown(mut self, shutdown: &Shutdown) -> DeliveryBuilder {
        self.shutdown = Some(shutdown.clone());
        self
    }

    /// The delivery.
    #[must_use]
    pub fn build(self) -> Delivery {
        let signals = self.shutdown.map(|it| (it.aborting().clone(), it.killing().clone()));
        let (cancelled, killed) = signals.unwrap_or_else(|| (never(), never()));
        Delivery {
            attempt: self.attempt.unwrap_or_else(|| attempt_of(&self.task, self.max_attempts)),
            max_attempts: self.max_attempts,
            deferrals: self.deferrals.unwrap_or_else(|| deferrals_of(&self.task, self.max_defers)),
            task: self.task,
            redelivered: self.redelivered,
            queue: self.queue,
            thread: self.thread,
            cancelled,
            killed,
            kept_output: 0,
            program_end: OnceLock::new(),
            follow_ups: FollowUps::default(),
        }
    }

    /// As a worker with this policy receives it.
    pub(super) fn received_with(mut self, policy: &RetryPolicy) -> DeliveryBuilder {
        self.max_attempts = policy.attempt_limit();
        self.max_defers = policy.deferral_limit();
        self
    }
}

impl From<Task> for DeliveryBuilder {
    fn from(task: Task) -> DeliveryBuilder {
        delivery(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::shutdown::shutdown;

    #[test]
    fn a_delivery_is_as_it_was_asked_for() {
        let built = delivery(Task::new("x")).thread(3).redelivered().deferrals(4).max_attempts(9);
        let built = built.build();
        assert_eq!((built.thread(), built.redelivered(), built.deferrals()), (3, true, 4));
        assert_eq!((built.attempt(), built.max_attempts()), (1, 9));
        assert!(!built.is_cancelled() && built.task().enqueued_at().is_some());
    }

    #[test]
    fn a_shutdown_cancels_it() {
        let (trigger, shutdown) = shutdown();
        let built = delivery(Task::new("x")).shutdown(&shutdown).build();
        trigger.stop();
        assert!(!built.is_cancelled(), "a running task goes on after a stop");
        trigger.abort();
        assert!(built.is_cancelled());
    }

    #[test]
    fn without_a_number_the_headers_say_which_attempt_it_is() {
        let failed = Task::new("x").with_header("x-rabbit-work-attempts", 2);
        assert_eq!(delivery(failed.clone()).build().attempt(), 3);
        assert_eq!(delivery(failed).attempt(1).build().attempt(), 1);
        let damaged = Task::new("x").with_header("x-rabbit-work-attempts", "many");
        let policy = RetryPolicy::new().max_attempts(7);
        assert_eq!(delivery(damaged).received_with(&policy).build().attempt(), 7);
    }
}
