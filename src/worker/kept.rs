//! Which failed tasks a consumer keeps because they can be published nowhere now, and when it
//! requeues them. Pure.
//!
//! RabbitMQ puts a requeued task back at the head of the queue and delivers it again at once. The
//! tasks after it have their turn only while the consumer keeps all of these. So they are requeued
//! together, and only once another task has ended since the last one was kept, or if nothing else
//! is in flight.

use std::collections::BTreeSet;
use std::mem;
use std::time::{Duration, Instant};

/// The kept tasks of one consumer, by delivery tag.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    tags: BTreeSet<u64>,
    /// When the first and the last of them were kept.
    span: Option<(Instant, Instant)>,
    /// Whether another task has ended since the last one was kept.
    others_end: bool,
    /// How many times in a row tasks were kept.
    in_a_row: u32,
}

/// What else the consumer has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Others {
    InFlight,
    None,
}

/// After this long they are requeued in any case. The broker waits for the ack of each for 30
/// minutes unless configured (`consumer_timeout`).
const LONGEST_KEPT: Duration = Duration::from_secs(600);

/// The pause before a task that could not be tried or published is requeued, after so many in a
/// row.
pub(crate) fn pause_after(failures: u32) -> Duration {
    const FIRST_PAUSE: Duration = Duration::from_secs(1);
    const LONGEST_PAUSE: Duration = Duration::from_secs(60);
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_PAUSE)
}

impl Kept {
    /// Keeps one more. Returns how long it is kept at least.
    pub(crate) fn add(&mut self, tag: u64, now: Instant) -> Duration {
        if self.tags.is_empty() {
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
        self.tags.insert(tag);
        self.span = Some((self.span.map_or(now, |(first, _)| first), now));
        self.others_end = false;
        pause_after(self.in_a_row)
    }

    /// Notes that another task has ended.
    pub(crate) fn another_ended(&mut self) {
        self.others_end = true;
    }

    /// Notes that a failed task was published: the next pause is a short one.
    pub(crate) fn reset_pause(&mut self) {
        self.in_a_row = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.tags.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// The tag of the latest delivery among them.
    pub(crate) fn last(&self) -> Option<u64> {
        self.tags.last().copied()
    }

    /// When they are to be requeued.
    pub(crate) fn due_at(&self, others: Others) -> Option<Instant> {
        let (first, last) = self.span?;
        let due = if others == Others::None || self.others_end {
            last + pause_after(self.in_a_row)
        } else {
            first + LONGEST_KEPT
        };
        Some(due)
    }

    /// Removes and returns them all.
    pub(crate) fn take(&mut self) -> BTreeSet<u64> {
        self.span = None;
        mem::take(&mut self.tags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn those_that_come_one_after_the_other_go_back_together_a_pause_after_the_last() {
        let (mut kept, begin) = (Kept::default(), Instant::now());
        for tag in 1..=100 {
            let now = begin + SECOND / 2 * u32::try_from(tag).expect("small");
            assert_eq!(kept.add(tag, now), SECOND);
            assert_eq!(kept.due_at(Others::None), Some(now + SECOND));
        }
        assert_eq!(kept.take().len(), 100);
        assert_eq!(kept.due_at(Others::None), None);
    }

    #[test]
    fn they_stay_until_the_task_that_came_after_them_has_ended() {
        let (mut kept, begin) = (Kept::default(), Instant::now());
        kept.add(1, begin);
        assert_eq!(kept.due_at(Others::InFlight), Some(begin + LONGEST_KEPT));
        kept.another_ended();
        assert_eq!(kept.due_at(Others::InFlight), Some(begin + SECOND));
        kept.add(2, begin + SECOND);
        assert_eq!(kept.due_at(Others::InFlight), Some(begin + LONGEST_KEPT), "of the first");
    }

    #[test]
    fn each_time_in_a_row_they_are_kept_for_longer() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        let mut kept_for = || {
            let pause = kept.add(1, now);
            kept.another_ended();
            kept.take();
            pause.as_secs()
        };
        assert_eq!([kept_for(), kept_for(), kept_for()], [1, 2, 4]);
        kept.reset_pause();
        assert_eq!(kept.add(1, now), SECOND);
    }

    #[test]
    fn the_pause_grows_with_each_failure_in_a_row_and_is_capped() {
        let seconds: Vec<u64> = (1..=8).map(|n| pause_after(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause_after(u32::MAX).as_secs(), 60);
    }
}
