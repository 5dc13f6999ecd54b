//! Avoids delay queues that do not respond: their tasks go to the queue of the next longer delay.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::delays::all_delays;
use crate::model::queue::Target;

/// The delays whose queues did not respond on the connections of one publisher.
#[derive(Debug, Default)]
pub(crate) struct SilentDelays {
    /// For each queue.
    silent: BTreeMap<String, BTreeSet<Duration>>,
}

impl SilentDelays {
    /// How many queues a task may be moved on. If more queues do not respond, the fault is not theirs.
    const MOST_STEPS: usize = 3;

    pub(crate) fn add(&mut self, queue: &str, delay: Duration) {
        self.silent.entry(queue.to_owned()).or_default().insert(delay);
    }

    /// Where to publish instead of `target`: the same, as long as its queue responds.
    pub(crate) fn avoid(&self, queue: &str, target: Target) -> Target {
        let Target::Delay(delay) = target else { return target };
        let Some(silent) = self.silent.get(queue) else { return target };
        let mut longer = all_delays().filter(|longer| *longer >= delay).take(Self::MOST_STEPS + 1);
        let free = longer.find(|it| !silent.contains(it));
        Target::Delay(free.unwrap_or(delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delays::LONGEST_DELAY;

    fn ms(delay: u64) -> Duration {
        Duration::from_millis(delay)
    }

    #[test]
    fn a_silent_queue_is_avoided_by_the_next_delay_and_never_by_more_than_three() {
        let mut silent = SilentDelays::default();
        for rung in [100, 200, 500, 1000] {
            assert_eq!(silent.avoid("q", Target::Delay(ms(100))), Target::Delay(ms(rung)));
            silent.add("q", ms(rung));
        }
        assert_eq!(silent.avoid("q", Target::Delay(ms(100))), Target::Delay(ms(100)));
        assert_eq!(silent.avoid("q", Target::Delay(ms(2000))), Target::Delay(ms(2000)));
        silent.add("q", LONGEST_DELAY);
        assert_eq!(silent.avoid("q", Target::Delay(LONGEST_DELAY)), Target::Delay(LONGEST_DELAY));
        assert_eq!(silent.avoid("q", Target::Dead), Target::Dead);
        assert_eq!(silent.avoid("other", Target::Delay(ms(100))), Target::Delay(ms(100)));
    }
}
