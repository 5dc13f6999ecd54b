//! The delays that a task can have. They are a fixed list, so that every program knows the names of
//! all delay queues. Pure.

use std::time::Duration;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The delays in milliseconds, in steps that people use. To change one hides the tasks in its queue
/// from programs of another version.
const DELAYS: [u64; 39] = [
    100,
    200,
    500,
    SECOND,
    2 * SECOND,
    3 * SECOND,
    5 * SECOND,
    10 * SECOND,
    15 * SECOND,
    20 * SECOND,
    30 * SECOND,
    45 * SECOND,
    MINUTE,
    2 * MINUTE,
    3 * MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    15 * MINUTE,
    20 * MINUTE,
    30 * MINUTE,
    45 * MINUTE,
    HOUR,
    2 * HOUR,
    3 * HOUR,
    4 * HOUR,
    6 * HOUR,
    8 * HOUR,
    12 * HOUR,
    18 * HOUR,
    DAY,
    2 * DAY,
    3 * DAY,
    5 * DAY,
    7 * DAY,
    10 * DAY,
    14 * DAY,
    21 * DAY,
    30 * DAY,
    42 * DAY,
];

/// The longest delay. RabbitMQ's timers hold at most 49 days (32 bits of milliseconds), and an unused
/// delay queue has to outlive its delay.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_millis(42 * DAY);

/// The shortest delay.
pub(crate) const SHORTEST_DELAY: Duration = Duration::from_millis(DELAYS[0]);

/// All delays, the shortest first.
pub(crate) fn all_delays() -> impl Iterator<Item = Duration> {
    DELAYS.into_iter().map(Duration::from_millis)
}

/// The delay rounded up to the next of these, at most the longest. Zero stays zero.
pub(crate) fn round_up(delay: Duration) -> Duration {
    if delay.is_zero() {
        return delay;
    }
    all_delays().find(|it| *it >= delay).unwrap_or(LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(delay: u64) -> Duration {
        Duration::from_millis(delay)
    }

    #[test]
    fn the_delays_rise_to_the_longest() {
        assert!(DELAYS.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(all_delays().last(), Some(LONGEST_DELAY));
    }

    #[test]
    fn a_delay_is_rounded_up_to_the_next_one() {
        let cases = [(0, 0), (1, 100), (100, 100), (101, 200), (5000, 5000), (40_000, 45_000)];
        for (asked, rounded) in cases {
            assert_eq!(round_up(ms(asked)), ms(rounded));
        }
        assert_eq!(round_up(Duration::from_nanos(1)), ms(100));
        assert_eq!(round_up(Duration::MAX), LONGEST_DELAY);
    }
}
