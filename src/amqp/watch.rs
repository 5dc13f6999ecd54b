//! What is watched during a call into the client library: its limit, what interrupts it, and when it
//! is slow. Pure but for the clock.

use std::time::{Duration, Instant};

use crate::amqp::close_reason::CloseReason;
use crate::amqp::heartbeat::are_more_than_heartbeats;
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Signal, is_closed};

/// What to do during a call.
#[derive(Debug)]
pub(super) enum Watch {
    Limit(Limit),
    Warning(Warning),
    /// Shut the socket when this closes.
    Interrupt(Signal),
}

/// When to shut the socket.
#[derive(Debug)]
pub(super) struct Limit {
    doing: &'static str,
    limit: Duration,
    deadline: Instant,
    /// When the call has taken too long whatever the broker sends.
    last: Instant,
    /// How much the broker had sent one limit earlier, if what it sends gives the call more time.
    sent_before: Option<u64>,
}

/// When to log a call as slow.
#[derive(Debug)]
pub(super) struct Warning {
    /// `None` after that.
    at: Option<Instant>,
    line: String,
    /// Nobody wants the line after this has closed.
    unless: Signal,
    pub(super) warned: Warned,
}

/// Whether a call was logged as slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Warned {
    Yes,
    No,
}

/// How many limits a call may take while the broker sends other things.
const MOST_LIMITS: u32 = 12;

impl Watch {
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Watch::Limit(limit) => Some(limit.deadline),
            Watch::Warning(warning) => warning.at,
            Watch::Interrupt(_) => None,
        }
    }

    /// What the broker is to blame for when this has shut the socket.
    pub(super) fn cause(&self) -> Option<CloseReason> {
        match self {
            Watch::Limit(Limit { doing, limit, .. }) => {
                Some(CloseReason::TimedOut { doing, limit: *limit })
            }
            Watch::Warning(_) | Watch::Interrupt(_) => None,
        }
    }

    /// Whether a thread that wakes at `wakes_at` would be late for it.
    pub(super) fn has_to_wake(&self, wakes_at: Option<Instant>) -> bool {
        self.deadline().is_none_or(|deadline| wakes_at.is_none_or(|at| deadline < at))
    }
}

impl Limit {
    pub(super) fn new(doing: &'static str, limit: Duration) -> Limit {
        let deadline = deadline_after(limit);
        Limit { doing, limit, deadline, last: deadline, sent_before: None }
    }

    /// Gives the call more time while the broker sends something, of which `sent` came so far.
    pub(super) fn while_idle(doing: &'static str, limit: Duration, sent: u64) -> Limit {
        let last = deadline_after(limit.saturating_mul(MOST_LIMITS));
        Limit { last, sent_before: Some(sent), ..Limit::new(doing, limit) }
    }

    /// Whether the time is over; gives the call more if the broker sends something else.
    pub(super) fn has_passed(&mut self, now: Instant, sent: u64) -> bool {
        if now < self.deadline {
            return false;
        }
        let came = self.sent_before.map_or(0, |before| sent - before);
        if now >= self.last || !are_more_than_heartbeats(came, self.limit) {
            return true;
        }
        self.deadline = deadline_after(self.limit).min(self.last);
        self.sent_before = Some(sent);
        false
    }
}

impl Warning {
    pub(super) fn new(after: Duration, unless: &Signal, doing: &str) -> Warning {
        Warning {
            at: Some(deadline_after(after)),
            line: format!("{doing} takes longer than {after:?}"),
            unless: unless.clone(),
            warned: Warned::No,
        }
    }

    /// The line, when it is time to log it.
    pub(super) fn due(&mut self, now: Instant) -> Option<String> {
        self.at.take_if(|at| *at <= now)?;
        if is_closed(&self.unless) {
            return None;
        }
        self.warned = Warned::Yes;
        Some(self.line.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::shutdown::closer;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_limit_passes_at_its_deadline() {
        let mut limit = Limit::new("waiting", LIMIT);
        let deadline = limit.deadline;
        assert!(!limit.has_passed(deadline - Duration::from_millis(1), 1 << 20));
        assert!(limit.has_passed(deadline, 1 << 20), "whatever the broker sends");
    }

    #[test]
    fn an_idle_limit_passes_after_a_limit_of_heartbeats_or_after_the_last_one() {
        let mut limit = Limit::while_idle("waiting", LIMIT, 1000);
        let (deadline, last) = (limit.deadline, limit.last);
        assert!(!limit.has_passed(deadline, 5000), "the broker sends something");
        assert!(!limit.has_passed(deadline, 5000), "it has a limit more");
        limit.deadline = deadline;
        assert!(limit.has_passed(deadline, 5010), "it sends heartbeats");
        assert!(limit.has_passed(last, 1 << 30), "it has had all its limits");
    }

    #[test]
    fn a_warning_is_due_once_and_only_while_it_is_wanted() {
        let (ending, unless) = closer();
        let mut warning = Warning::new(LIMIT, &unless, "waiting");
        let at = warning.at.expect("a moment");
        assert_eq!(warning.due(at - Duration::from_millis(1)), None);
        assert_eq!(warning.due(at).as_deref(), Some("waiting takes longer than 10s"));
        assert_eq!((warning.due(at), warning.warned), (None, Warned::Yes));

        let mut warning = Warning::new(LIMIT, &unless, "waiting");
        ending.close();
        assert_eq!((warning.due(at + LIMIT), warning.warned), (None, Warned::No));
    }

    #[test]
    fn only_an_earlier_deadline_and_an_interrupt_wake_the_thread() {
        let (_closer, signal) = closer();
        let watch = Watch::Limit(Limit::new("waiting", LIMIT));
        let deadline = watch.deadline().expect("a deadline");
        assert!(watch.has_to_wake(None) && watch.has_to_wake(Some(deadline + LIMIT)));
        assert!(!watch.has_to_wake(Some(deadline)));
        assert!(Watch::Interrupt(signal).has_to_wake(Some(Instant::now())));
    }
}
