//! [`Backoff`]: how long to wait before the next connect. Pure, except for the random number.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(500);

/// Growing pauses with jitter, from 0.5 s to a longest one, so that programs that lost the broker
/// together do not come back together.
#[derive(Debug)]
pub(crate) struct Backoff {
    last: Duration,
    longest: Duration,
}

impl Backoff {
    /// For workers: thousands of them must not keep a starting broker busy.
    pub(crate) const LONGEST_OF_A_WORKER: Duration = Duration::from_secs(10);
    /// For publishers: their tasks have a time limit.
    pub(crate) const LONGEST_OF_A_PUBLISHER: Duration = Duration::from_secs(2);

    /// Up to this pause. The shortest one stays, whatever is asked for.
    pub(crate) fn up_to(longest: Duration) -> Backoff {
        Backoff { last: SHORTEST, longest: longest.max(SHORTEST) }
    }

    /// Begins with short pauses again.
    pub(crate) fn reset(&mut self) {
        self.last = SHORTEST;
    }

    /// The next pause: somewhere between the shortest and twice the last one.
    pub(crate) fn next_pause(&mut self) -> Duration {
        self.pause_at(fastrand::f64())
    }

    fn pause_at(&mut self, point: f64) -> Duration {
        let ceiling = (self.last * 2).min(self.longest);
        let pause = SHORTEST + (ceiling - SHORTEST).mul_f64(point);
        self.last = ceiling;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_within_their_bounds() {
        for longest in [Backoff::LONGEST_OF_A_WORKER, Backoff::LONGEST_OF_A_PUBLISHER] {
            let make = || Backoff::up_to(longest);
            for point in [0.0, 0.3, 0.999_999] {
                let mut backoff = make();
                let pauses: Vec<_> = (0..20).map(|_| backoff.pause_at(point)).collect();
                assert!(pauses.iter().all(|pause| (SHORTEST..=longest).contains(pause)));
                assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
            }
            assert!(make().pause_at(0.999) < Duration::from_secs(1), "the first is short");
        }
    }

    #[test]
    fn a_longest_pause_below_the_shortest_is_the_shortest() {
        let mut backoff = Backoff::up_to(Duration::ZERO);
        assert_eq!([0.0, 0.999, 0.999].map(|point| backoff.pause_at(point)), [SHORTEST; 3]);
    }

    #[test]
    fn after_a_reset_pauses_are_short_again() {
        let mut backoff = Backoff::up_to(Duration::from_secs(60));
        (0..10).for_each(|_| {
            let _ = backoff.pause_at(0.999);
        });
        backoff.reset();
        assert!(backoff.pause_at(0.999) < Duration::from_secs(1));
    }
}
