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
    pub(crate) fn of_a_worker() -> Backoff {
        Backoff::up_to(Duration::from_secs(10))
    }

    /// For publishers: their tasks have a time limit.
    pub(crate) fn of_a_publisher() -> Backoff {
        Backoff::up_to(Duration::from_secs(2))
    }

    fn up_to(longest: Duration) -> Backoff {
        Backoff { last: SHORTEST, longest }
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
        for (make, longest) in
            [(Backoff::of_a_worker as fn() -> Backoff, 10), (Backoff::of_a_publisher, 2)]
        {
            let longest = Duration::from_secs(longest);
            for point in [0.0, 0.3, 0.999_999] {
                let mut backoff = make();
                let pauses: Vec<_> = (0..20).map(|_| backoff.pause_at(point)).collect();
                assert!(pauses.iter().all(|pause| (SHORTEST..=longest).contains(pause)));
                assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
            }
            assert!(make().pause_at(0.999) < Duration::from_secs(1), "the first is short");
        }
    }
}
