//! Owns the way around a delay queue that gives no answer: the queue of the next millisecond. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::queue::Target;

/// The delays whose queues gave no answer.
#[derive(Debug, Default)]
pub(crate) struct Detours {
    closed: BTreeSet<Duration>,
}

/// How much longer a delay may become. Where so many queues give no answer, it is not the queues.
const LONGEST: u32 = 3;

/// Delays are in whole milliseconds.
const STEP: Duration = Duration::from_millis(1);

impl Detours {
    pub(crate) fn close(&mut self, delay: Duration) {
        self.closed.insert(delay);
    }

    /// The delay to take instead of this one: the same, where its queue answers.
    pub(crate) fn around(&self, delay: Duration) -> Duration {
        let mut longer = (0..=LONGEST).map(|steps| delay + steps * STEP);
        longer.find(|it| !self.closed.contains(it)).unwrap_or(delay)
    }

    pub(crate) fn around_target(&self, target: Target) -> Target {
        match target {
            Target::Delay(delay) => Target::Delay(self.around(delay)),
            Target::Work | Target::Dead => target,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(delay: u64) -> Duration {
        Duration::from_millis(delay)
    }

    #[test]
    fn a_delay_is_a_millisecond_longer_for_each_queue_that_gives_no_answer() {
        let mut detours = Detours::default();
        for longer in [100, 101, 102, 103] {
            assert_eq!(detours.around(ms(100)), ms(longer));
            detours.close(ms(longer));
        }
        assert_eq!(detours.around(ms(100)), ms(100), "it is not the queues");
        assert_eq!(detours.around(ms(104)), ms(104));
    }

    #[test]
    fn what_is_no_delay_has_one_queue() {
        let mut detours = Detours::default();
        detours.close(Duration::ZERO);
        assert_eq!(detours.around_target(Target::Work), Target::Work);
        assert_eq!(detours.around_target(Target::Delay(ms(0))), Target::Delay(ms(1)));
    }
}
