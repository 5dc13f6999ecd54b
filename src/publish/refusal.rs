//! Tasks that the broker refuses: in which way, and when each is published again. Pure.

use std::fmt;
use std::time::{Duration, Instant};

/// What to do with a task that the broker refuses for a reason that may pass.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OnRefusal {
    /// Publish it again, until its timeout.
    TryAgain,
    /// Resolve it at once.
    GiveUp,
}

/// How the broker refused a task.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// By a nack, for which it gives no reason.
    Nack,
    /// By a return with this text. Its queue may be missing or down: the broker has to be asked.
    Returned(String),
    /// Its queue is down, in the broker's words.
    Down(String),
}

/// How long before its deadline a last try is made, whatever the pause.
pub(crate) const LAST_TRY: Duration = Duration::from_secs(1);

/// How long a task waits after its first refusal. Each further one doubles that, up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long no task may have been refused before a refusal is logged again.
const QUIET: Duration = Duration::from_secs(60);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Nack => write!(f, "nack, without a reason"),
            Refusal::Returned(text) | Refusal::Down(text) => write!(f, "{text}"),
        }
    }
}

/// When the broker last refused a task on a connection.
#[derive(Debug, Default)]
pub(crate) struct LastRefusal(Option<Instant>);

impl LastRefusal {
    pub(crate) fn record(&mut self, now: Instant) {
        self.0 = Some(now);
    }

    /// Whether the next refusal belongs to a series that was logged already.
    pub(crate) fn is_recent(&self) -> bool {
        self.0.is_some_and(|at| at.elapsed() < QUIET)
    }
}

/// When to publish a refused task again: after a pause, and once more just before its deadline,
/// but not so late that its deadline comes before the answer.
pub(crate) fn publish_again_at(now: Instant, pause: Duration, deadline: Instant) -> Instant {
    match deadline.checked_sub(LAST_TRY) {
        Some(last) if now < last => (now + pause).min(last),
        _ => deadline + LAST_TRY,
    }
}

/// How long a task waits that was refused so many times.
pub(crate) fn pause_after(refusals: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(refusals.saturating_sub(1));
    SHORTEST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_task_is_not_in_flight_when_its_time_ends() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        for (pause, deadline, at) in
            [(2000, 10_000, 2000), (2000, 2500, 1500), (100, 1050, 50), (100, 1000, 2000)]
        {
            let again = publish_again_at(now, Duration::from_millis(pause), after(deadline));
            assert_eq!(again, after(at), "{pause} of {deadline}");
        }
    }

    #[test]
    fn a_refused_task_waits_longer_each_time_and_not_for_long() {
        let pauses = [1, 2, 3, 4, 5, 6, 7, u32::MAX].map(|it| pause_after(it).as_millis());
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000, 2000]);
    }
}
