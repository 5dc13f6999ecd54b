//! Connects a publisher, as often as it takes: one attempt at a time, a pause after each failure.

use std::mem;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, at, never, select_biased};
use log::warn;

use crate::amqp::call_timeout::SLOW_AFTER;
use crate::amqp::connect::ConnectAttempt;
use crate::amqp::connection::Connection;
use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::publish::config::PublisherConfig;
use crate::publish::link::Link;
use crate::publish::pending::SHORTEST_CALL;
use crate::publish::refusal::LAST_TRY;
use crate::util::backoff::Backoff;
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Signal, is_closed};

/// When and how a publisher connects next.
pub(crate) struct Connector {
    /// The attempt that is under way. There is never a second one.
    attempt: Option<ConnectAttempt>,
    backoff: Backoff,
    /// When to connect again after a failure.
    retry_at: Option<Instant>,
    /// When the last attempt began, and why it failed.
    tried_at: Option<Instant>,
    failures: Vec<String>,
    /// Whether this broker has ever let us in.
    has_connected: bool,
    /// Why no connection can be had before `retry_at`, whatever is tried.
    fatal: Option<String>,
}

/// How long a connection of its own may take while another one is lent.
const OWN_WITHIN: Duration = Duration::from_secs(5);

/// How long a caller that need not wait gives a new attempt to connect.
pub(crate) const WAIT_FOR_A_NEW_ATTEMPT: Duration = Duration::from_secs(1);

/// And how long it gives a connected broker to answer what a channel for publishing is set up with.
const SETUP_PATIENCE: Duration = Duration::from_secs(5);

impl Connector {
    pub(crate) fn new(config: &PublisherConfig) -> Connector {
        Connector {
            attempt: None,
            backoff: Backoff::up_to(Backoff::LONGEST_OF_A_PUBLISHER),
            retry_at: None,
            tried_at: None,
            failures: Vec::new(),
            has_connected: config.has_connected,
            fatal: None,
        }
    }

    /// Tries once to connect, after the pause that is due. `Ok(None)` if the time was over first.
    pub(crate) fn connect<T>(
        &mut self,
        config: &PublisherConfig,
        deadline: Instant,
        interrupt: &Signal,
    ) -> Result<Option<Link<T>>, Error> {
        if !self.pauses_before(deadline, interrupt) || Instant::now() >= deadline {
            return Ok(None);
        }
        self.connect_now(config, deadline, deadline, interrupt)
    }

    /// Goes on to connect, for a caller that need not wait: it waits for a new attempt for `wait`,
    /// and neither for one that is under way nor for a pause. The deadline is that of the oldest task.
    pub(crate) fn connect_meanwhile<T>(
        &mut self,
        config: &PublisherConfig,
        deadline: Option<Instant>,
        wait: Duration,
        interrupt: &Signal,
    ) -> Result<Option<Link<T>>, Error> {
        let now = Instant::now();
        if self.next_try(deadline).is_some_and(|next_try| now < next_try) {
            return Ok(None);
        }
        let deadline = deadline.unwrap_or_else(|| deadline_after(config.limits.timeout));
        let until = if self.attempt.is_some() { now } else { now + wait };
        self.connect_now(config, deadline, until.min(deadline), interrupt)
    }

    /// Tries to connect, and waits for that until `until`.
    fn connect_now<T>(
        &mut self,
        config: &PublisherConfig,
        deadline: Instant,
        until: Instant,
        interrupt: &Signal,
    ) -> Result<Option<Link<T>>, Error> {
        let valid = config.queue.validate();
        let opened = valid.and_then(|()| self.open(config, deadline, until, interrupt));
        match &opened {
            Ok(Some(_)) => self.has_connected = true,
            Ok(None) => {}
            Err(error) => self.note_failure(error),
        }
        opened
    }

    /// The pause before the next attempt, which begins now.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.backoff.next_pause();
        self.retry_at = Some(Instant::now() + pause);
        pause
    }

    /// Ends a pause for a new call, which tries at once unless the last try is younger than a second.
    pub(crate) fn hasten(&mut self) {
        if let (Some(retry_at), Some(tried_at)) = (self.retry_at, self.tried_at) {
            self.retry_at = Some(retry_at.min(tried_at + LAST_TRY));
        }
    }

    /// When it connects next, if the time of the oldest task ends at `deadline`; `None` while it does
    /// so, and if no pause is due.
    pub(crate) fn next_try(&self, deadline: Option<Instant>) -> Option<Instant> {
        let retry_at = self.retry_at?;
        Some(deadline.map_or(retry_at, |it| reconnect_at(retry_at, self.tried_at, it)))
    }

    /// Waits for the result of the attempt, the time of the next one, the deadline, or `wake`.
    pub(crate) fn wait<W>(
        &self,
        deadline: Option<Instant>,
        aborting: &Signal,
        wake: &Receiver<W>,
    ) -> Option<Result<W, RecvError>> {
        let until = deadline.into_iter().chain(self.next_try(deadline)).min();
        let ended = self.attempt.as_ref().map_or_else(never, |attempt| attempt.ended().clone());
        select_biased! {
            recv(aborting) -> _ => None,
            recv(ended) -> _ => None,
            recv(wake) -> woken => Some(woken),
            recv(until.map_or_else(never, at)) -> _ => None,
        }
    }

    /// Begins with short pauses again: the last connection was of use.
    pub(crate) fn reset_pauses(&mut self) {
        self.backoff.reset();
    }

    pub(crate) fn set_longest_pause(&mut self, longest: Duration) {
        self.backoff = Backoff::up_to(longest);
    }

    /// Why nothing can be published until the pause is over, if that is so.
    pub(crate) fn fatal(&self) -> Option<&str> {
        self.fatal.as_deref()
    }

    pub(crate) fn set_fatal(&mut self, reason: String) {
        self.fatal = Some(reason);
    }

    /// Forgets a fatal error once its pause is over.
    pub(crate) fn expire_fatal(&mut self) {
        if self.retry_at.is_none_or(|retry_at| retry_at <= Instant::now()) {
            self.fatal = None;
        }
    }

    /// Forgets a fatal error and its pause: somebody may have fixed the cause.
    pub(crate) fn forget_fatal(&mut self) {
        if self.fatal.take().is_some() {
            self.retry_at = None;
        }
    }

    /// The error when no connection was made in time.
    pub(crate) fn unreachable(&self, broker: &Broker) -> Error {
        let failures = self.attempt.as_ref().map(ConnectAttempt::failures).unwrap_or_default();
        match (failures.is_empty(), self.failures.is_empty()) {
            (false, _) => Error::Unreachable { attempts: failures },
            (true, false) => Error::Unreachable { attempts: self.failures.clone() },
            (true, true) => Error::Unreachable { attempts: vec![format!("{broker}: not tried")] },
        }
    }

    /// Waits for the pause that is due; whether it is over before the deadline and the interrupt.
    fn pauses_before(&mut self, deadline: Instant, interrupt: &Signal) -> bool {
        let Some(next_try) = self.next_try(Some(deadline)) else { return true };
        select_biased! {
            recv(interrupt) -> _ => return false,
            recv(at(next_try.min(deadline))) -> _ => {},
        }
        Instant::now() >= next_try
    }

    /// Leaves an attempt alone that is a parent process's, and may have a connection.
    pub(crate) fn forget_attempt(&mut self) {
        mem::forget(self.attempt.take());
    }

    fn open<T>(
        &mut self,
        config: &PublisherConfig,
        deadline: Instant,
        until: Instant,
        interrupt: &Signal,
    ) -> Result<Option<Link<T>>, Error> {
        let Some(connection) = self.open_connection(config, deadline, until, interrupt)? else {
            return Ok(None);
        };
        let guard = connection.call_guard().clone();
        let left = time_for_setup(Instant::now(), deadline, until);
        let doing = format!("setting up the channel at {}", connection.address());
        let open = || guard.abort_on(interrupt, || Link::open(connection, config));
        let bounded = || guard.with_timeout(left, "setting up the channel", open);
        guard.warn_after(SLOW_AFTER, interrupt, &doing, bounded).0.map(Some)
    }

    /// A connection of its own, or the one that is lent if its own takes long or fails.
    fn open_connection(
        &mut self,
        config: &PublisherConfig,
        deadline: Instant,
        until: Instant,
        interrupt: &Signal,
    ) -> Result<Option<Connection>, Error> {
        let attempt = self.take_attempt(&config.broker, deadline)?;
        let Some(lent) = &config.lent else {
            let opened = attempt.wait(interrupt, Some(until))?;
            if opened.is_none() {
                // The next wait goes on with it.
                self.attempt = Some(attempt);
            }
            return Ok(opened);
        };
        let soon = deadline.min(deadline_after(OWN_WITHIN));
        let why = match attempt.wait(interrupt, Some(soon)) {
            Ok(None) if is_closed(interrupt) => return Ok(None),
            Ok(None) => attempt.failures().join(", "),
            Ok(opened) => return Ok(opened),
            Err(error) => error.chain(),
        };
        warn!(
            "cannot open a second connection: {why}; failed tasks are published on the first, so a \
             broker alarm also delays acks"
        );
        Ok(Some(lent.lend()))
    }

    /// The attempt that is under way, or a new one. It may outlive the deadline; before that, it
    /// tries each address.
    fn take_attempt(
        &mut self,
        broker: &Broker,
        deadline: Instant,
    ) -> Result<ConnectAttempt, Error> {
        if let Some(under_way) = self.attempt.take() {
            return Ok(under_way);
        }
        (self.retry_at, self.tried_at) = (None, Some(Instant::now()));
        ConnectAttempt::start(broker, deadline.saturating_duration_since(Instant::now()))
    }

    fn note_failure(&mut self, error: &Error) {
        let pause = self.pause();
        self.failures = match error {
            Error::Unreachable { attempts } => attempts.clone(),
            error => vec![error.chain()],
        };
        if error.is_transient() || self.has_connected {
            warn!("{}; next try in {:.1} s", error.chain(), pause.as_secs_f64());
        } else {
            self.fatal = Some(error.chain());
        }
    }
}

/// How long a channel may take to be set up. A caller that waits until the deadline has all of that.
fn time_for_setup(now: Instant, deadline: Instant, until: Instant) -> Duration {
    let until = until.max(now + SETUP_PATIENCE).min(deadline);
    until.saturating_duration_since(now).max(SHORTEST_CALL)
}

/// When to connect again: after the pause, but once in the last second before the deadline.
fn reconnect_at(retry_at: Instant, tried_at: Option<Instant>, deadline: Instant) -> Instant {
    match deadline.checked_sub(LAST_TRY) {
        Some(last) if tried_at.is_none_or(|tried_at| tried_at < last) => retry_at.min(last),
        _ => retry_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::queue::Queue;
    use crate::publish::config::Limits;

    fn config_at(url: &str) -> PublisherConfig {
        let limits = Limits { window: 1, timeout: Duration::from_secs(1) };
        PublisherConfig::new(&url.parse().expect("a URL"), &Queue::new("q"), limits)
    }

    #[test]
    fn a_fatal_error_lasts_for_its_pause_or_until_somebody_asks_again() {
        let config = config_at("amqp://localhost");
        let mut connector = Connector::new(&config);
        connector.pause();
        connector.set_fatal("no such login".into());
        connector.expire_fatal();
        assert_eq!(connector.fatal(), Some("no such login"));
        connector.forget_fatal();
        assert_eq!((connector.fatal(), connector.retry_at), (None, None));
        connector.set_fatal("no such login".into());
        connector.retry_at = Some(Instant::now());
        connector.expire_fatal();
        assert_eq!(connector.fatal(), None);
    }

    #[test]
    fn only_a_caller_that_waits_gives_a_silent_broker_all_its_time() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let seconds =
            |deadline, until| time_for_setup(now, after(deadline), after(until)).as_secs();
        assert_eq!([seconds(30, 30), seconds(30, 1), seconds(3, 1)], [30, 5, 3]);
        assert_eq!(time_for_setup(now, now, now), SHORTEST_CALL);
    }

    #[test]
    fn a_task_is_tried_once_more_before_its_time_ends() {
        let tried_at = Instant::now();
        let after = |millis| tried_at + Duration::from_millis(millis);
        for (retry_at, deadline, at) in [
            (2000, 10_000, 2000),
            (2000, 3000, 2000),
            (2000, 2500, 1500),
            (2000, 1500, 500),
            // It had its last try.
            (2000, 1000, 2000),
            (2000, 500, 2000),
        ] {
            let next = reconnect_at(after(retry_at), Some(tried_at), after(deadline));
            assert_eq!(next, after(at), "{retry_at} of {deadline}");
        }
        assert!(reconnect_at(after(2000), None, after(500)) < tried_at, "it is tried at once");
    }

    #[test]
    fn a_caller_that_does_not_wait_has_its_last_try_before_its_time_ends() {
        let config = config_at("amqp://127.0.0.1:1");
        let mut connector = Connector::new(&config);
        let now = Instant::now();
        (connector.tried_at, connector.retry_at) = (None, Some(now + Duration::from_secs(600)));
        let mut connects_for = |deadline| {
            let nothing = never();
            let tried =
                connector.connect_meanwhile::<()>(&config, deadline, Duration::ZERO, &nothing);
            tried.is_err() || connector.attempt.is_some()
        };
        assert!(!connects_for(None));
        assert!(!connects_for(Some(now + Duration::from_secs(60))));
        assert!(connects_for(Some(now + LAST_TRY)));
    }

    #[test]
    fn a_new_call_tries_at_once_unless_the_last_try_is_younger_than_a_second() {
        let config = config_at("amqp://localhost");
        let mut connector = Connector::new(&config);
        let now = Instant::now();
        let tried_before = |connector: &mut Connector, millis| {
            connector.tried_at = now.checked_sub(Duration::from_millis(millis));
            connector.retry_at = Some(now + Duration::from_millis(1800));
            connector.hasten();
            connector.retry_at.expect("a time")
        };
        assert!(tried_before(&mut connector, 1000) <= now);
        assert_eq!(tried_before(&mut connector, 300), now + Duration::from_millis(700));
    }
}
