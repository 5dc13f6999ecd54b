//! Owns the moment at which a wait ends, for limits of any length. Pure but for the clock.

use std::time::{Duration, Instant};

/// Longer than any program runs, and short enough for every clock and every system call.
pub(crate) const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The moment `limit` from now. `Duration::MAX`, which stands for no limit, is 30 years.
pub(crate) fn deadline_after(limit: Duration) -> Instant {
    let now = Instant::now();
    // Only a clock that began near its own end has no room for 30 years more.
    now.checked_add(limit.min(LONGEST)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_a_moment_far_ahead() {
        let far = deadline_after(Duration::MAX);
        assert!(far > Instant::now() + LONGEST / 2);
    }

    #[test]
    fn a_limit_is_kept_as_it_is() {
        let before = Instant::now();
        let deadline = deadline_after(Duration::from_secs(5));
        assert!(deadline >= before + Duration::from_secs(5));
        assert!(deadline <= Instant::now() + Duration::from_secs(5));
    }
}
