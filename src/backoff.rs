//! Owns how long to wait before the next try. Pure but for the random number.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// Growing pauses with jitter, from 0.5 s to 30 s, so that a fleet that lost its broker at one
/// moment does not come back at one moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    last: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { last: SHORTEST }
    }

    /// The next pause: somewhere between the shortest and twice the last one.
    pub(crate) fn next_pause(&mut self) -> Duration {
        self.pause_at(fastrand::f64())
    }

    fn pause_at(&mut self, point: f64) -> Duration {
        let ceiling = (self.last * 2).min(LONGEST);
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
        for point in [0.0, 0.3, 0.999_999] {
            let mut backoff = Backoff::new();
            let pauses: Vec<_> = (0..20).map(|_| backoff.pause_at(point)).collect();
            assert!(pauses.iter().all(|pause| (SHORTEST..=LONGEST).contains(pause)));
            assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        }
        let mut backoff = Backoff::new();
        assert!(backoff.pause_at(0.999) < Duration::from_secs(1), "the first is short");
    }
}
