//! [`Elsewhere`]: a queue that is not derived from its publisher's own. Pure.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::delays::round_up;
use crate::model::queue::{Queue, Target};

/// Another queue, or one of its delay queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Elsewhere {
    queue: &'static Queue,
    delay: Option<Duration>,
}

impl Elsewhere {
    /// The queue itself, without the delay.
    pub(crate) fn queue(self) -> &'static Queue {
        self.queue
    }

    /// Which of that queue's own targets it is.
    pub(crate) fn target(self) -> Target {
        self.delay.map_or(Target::Main, Target::Delay)
    }

    /// The same queue without a delay.
    pub(crate) fn undelayed(self) -> Elsewhere {
        Elsewhere { delay: None, ..self }
    }
}

impl Target {
    /// Where a publisher of the queue `own` publishes a task for `queue`.
    pub(crate) fn from(own: &str, queue: &Queue, delay: Option<Duration>) -> Target {
        let delay = delay.map(round_up);
        if queue.name() == own {
            return delay.map_or(Target::Main, Target::Delay);
        }
        Target::Elsewhere(Elsewhere { queue: kept(queue), delay })
    }

    /// Its delay, if it is a delay queue.
    pub(crate) fn delay(self) -> Option<Duration> {
        match self {
            Target::Delay(delay) => Some(delay),
            Target::Elsewhere(place) => place.delay,
            Target::Main | Target::Dead | Target::Batch(_) => None,
        }
    }
}

/// The same queue, kept as long as the program runs, so that a target can be copied. A program has
/// few: each is a queue at the broker.
fn kept(queue: &Queue) -> &'static Queue {
    static KEPT: Mutex<Option<HashSet<&'static Queue>>> = Mutex::new(None);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = kept.get_or_insert_default();
    if let Some(found) = kept.get(queue) {
        return found;
    }
    let queue = Box::leak(Box::new(queue.clone()));
    kept.insert(queue);
    queue
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::queue::QueueType;

    #[test]
    fn a_task_for_the_publisher_s_own_queue_is_not_elsewhere() {
        let delay = Some(Duration::from_secs(1));
        assert_eq!(Target::from("q", &Queue::new("q"), None), Target::Main);
        let delayed = Target::from("q", &Queue::new("q"), delay);
        assert_eq!((delayed, delayed.delay()), (Target::Delay(Duration::from_secs(1)), delay));
    }

    #[test]
    fn another_queue_is_named_and_declared_as_by_its_own_publishers() {
        let (own, mail) = (Queue::new("q"), Queue::new("mail").queue_type(QueueType::Quorum));
        for delay in [None, Some(Duration::from_millis(200))] {
            let (there, here) =
                (Target::from("q", &mail, delay), Target::from("mail", &mail, delay));
            assert_eq!((own.name_of(there), there.delay()), (mail.name_of(here), delay));
            assert_eq!(own.declarations(there), mail.declarations(here));
        }
    }

    #[test]
    fn each_queue_is_kept_once() {
        let mail = || Queue::new("kept.once");
        assert!(std::ptr::eq(kept(&mail()), kept(&mail())));
        assert!(!std::ptr::eq(kept(&mail()), kept(&mail().passive())));
    }
}
