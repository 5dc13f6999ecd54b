//! Turns a time limit of any length into the moment at which a wait ends.

use std::time::{Duration, Instant};

/// No limit: longer than any program runs, and short enough for every clock and every system call.
pub(crate) const UNLIMITED: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The moment `limit` from now, at most 30 years.
pub(crate) fn deadline_after(limit: Duration) -> Instant {
    let now = Instant::now();
    // Only a clock close to its end has no room for 30 years more.
    now.checked_add(limit.min(UNLIMITED)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_a_moment_far_ahead() {
        let far = deadline_after(Duration::MAX);
        assert!(far > Instant::now() + UNLIMITED / 2);
    }

    #[test]
    fn a_limit_is_kept_as_it_is() {
        let before = Instant::now();
        let deadline = deadline_after(Duration::from_secs(5));
        assert!(deadline >= before + Duration::from_secs(5));
        assert!(deadline <= Instant::now() + Duration::from_secs(5));
    }
}
