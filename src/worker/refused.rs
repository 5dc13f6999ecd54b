//! Owns which tasks a consumer keeps because they can go nowhere at present, and when they go back
//! to the queue. Pure.
//!
//! What goes back comes to the head of the queue, and is taken again at once: those behind it have
//! their turn only while all of it is kept. So they go back together, and only once another task
//! has ended since the last of them was refused, or no other has come.

use std::collections::BTreeSet;
use std::mem;
use std::time::{Duration, Instant};

/// The refused tasks of one consumer, by delivery tag.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    tags: BTreeSet<u64>,
    /// When the first and the last of them came.
    span: Option<(Instant, Instant)>,
    /// Whether another task has ended since the last came.
    others_go_on: bool,
    /// How many times in a row they were kept.
    in_a_row: u32,
}

/// After this long they go back in any case. The broker waits for the ack of each for 30 minutes
/// unless configured (`consumer_timeout`).
const LONGEST: Duration = Duration::from_secs(600);

/// The pause before a task that could go nowhere goes back, after this many in a row.
pub(crate) fn pause_after(failures: u32) -> Duration {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);
    FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST)
}

impl Refused {
    /// Keeps one more; says for how long at least.
    pub(crate) fn keep(&mut self, tag: u64, now: Instant) -> Duration {
        if self.tags.is_empty() {
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
        self.tags.insert(tag);
        self.span = Some((self.span.map_or(now, |(first, _)| first), now));
        self.others_go_on = false;
        pause_after(self.in_a_row)
    }

    /// Another task has ended.
    pub(crate) fn another_ended(&mut self) {
        self.others_go_on = true;
    }

    /// A task was handed over: the next pause is a short one.
    pub(crate) fn end_row(&mut self) {
        self.in_a_row = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.tags.len()
    }

    /// The one that was delivered last.
    pub(crate) fn last(&self) -> Option<u64> {
        self.tags.last().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// When they go back. `is_last` where nothing else is in hand.
    pub(crate) fn due_at(&self, is_last: bool) -> Option<Instant> {
        let (first, last) = self.span?;
        let due = if is_last || self.others_go_on {
            last + pause_after(self.in_a_row)
        } else {
            first + LONGEST
        };
        Some(due)
    }

    /// Lets go of them all.
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
        let (mut refused, begin) = (Refused::default(), Instant::now());
        for tag in 1..=100 {
            let now = begin + SECOND / 2 * u32::try_from(tag).expect("small");
            assert_eq!(refused.keep(tag, now), SECOND);
            assert_eq!(refused.due_at(true), Some(now + SECOND));
        }
        assert_eq!(refused.take().len(), 100);
        assert_eq!(refused.due_at(true), None);
    }

    #[test]
    fn they_stay_until_the_task_that_came_after_them_has_ended() {
        let (mut refused, begin) = (Refused::default(), Instant::now());
        refused.keep(1, begin);
        assert_eq!(refused.due_at(false), Some(begin + LONGEST));
        refused.another_ended();
        assert_eq!(refused.due_at(false), Some(begin + SECOND));
        refused.keep(2, begin + SECOND);
        assert_eq!(refused.due_at(false), Some(begin + LONGEST), "of the first");
    }

    #[test]
    fn each_time_in_a_row_they_are_kept_for_longer() {
        let (mut refused, now) = (Refused::default(), Instant::now());
        let mut kept = || {
            let pause = refused.keep(1, now);
            refused.another_ended();
            refused.take();
            pause.as_secs()
        };
        assert_eq!([kept(), kept(), kept()], [1, 2, 4]);
        refused.end_row();
        assert_eq!(refused.keep(1, now), SECOND);
    }

    #[test]
    fn the_pause_grows_with_each_failure_in_a_row_and_is_capped() {
        let seconds: Vec<u64> = (1..=8).map(|n| pause_after(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause_after(u32::MAX).as_secs(), 60);
    }
}
