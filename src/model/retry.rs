//! [`RetryPolicy`]: decides whether and when a failed or deferred task is tried again. Pure, except for
//! the random number of the jitter.

use std::time::Duration;

use crate::model::delays::{LONGEST_DELAY, SHORTEST_DELAY, round_up};
use crate::model::error::Error;
use crate::model::handler::Failure;

/// How many attempts a task gets, how long it waits between two of them, and how often it may be
/// deferred.
///
/// The delay before the second attempt is [`first_delay`](RetryPolicy::first_delay); each further
/// one is [`factor`](RetryPolicy::factor) times as long, up to
/// [`longest_delay`](RetryPolicy::longest_delay). Each delay has a queue of its own, so delays are
/// rounded **up** to one of these: 100, 200, 500 ms; 1, 2, 3, 5, 10, 15, 20, 30, 45 s and min; 1, 2,
/// 3, 4, 6, 8, 12, 18 h; 1, 2, 3, 5, 7, 10, 14, 21, 30, 42 days.
///
/// ```
/// use std::time::Duration;
/// use rabbit_work::RetryPolicy;
///
/// let policy = RetryPolicy::new().max_attempts(4).first_delay(Duration::from_secs(1));
/// let delays: Vec<u64> = (1..4).map(|failed| policy.delay_after(failed).as_secs()).collect();
/// assert_eq!(delays, [1, 2, 5]);
/// ```
///
/// A deferred task ([`Failure::Defer`](crate::Failure::Defer)) waits for a delay of its own, rounded up
/// in the same way, and its attempts do not grow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    max_attempts: u32,
    first_delay: Duration,
    factor: f64,
    longest_delay: Duration,
    jitter: f64,
    defer_delay: Duration,
    max_defers: u32,
}

/// What happens to a failed task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is tried again after this delay.
    Retry(Duration),
    /// It is tried again after this delay, and no attempt is counted.
    Defer(Duration),
    /// It becomes a dead letter.
    Dead,
    /// It was not tried: it goes back to the queue, and no attempt is counted.
    Requeue,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy::new()
    }
}

impl RetryPolicy {
    /// Five attempts; delays from 5 s, doubling, up to 1 h; no jitter; 1000 deferrals of 60 s.
    #[must_use]
    pub fn new() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 5,
            first_delay: Duration::from_secs(5),
            factor: 2.0,
            longest_delay: Duration::from_secs(3600),
            jitter: 0.0,
            defer_delay: Duration::from_secs(60),
            max_defers: 1000,
        }
    }

    /// Sets how many attempts a task gets, at least 1. Default: 5.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> RetryPolicy {
        self.max_attempts = attempts;
        self
    }

    /// Sets the delay before the second attempt. Zero tries again at once. Default: 5 s.
    #[must_use]
    pub fn first_delay(mut self, delay: Duration) -> RetryPolicy {
        self.first_delay = delay;
        self
    }

    /// Sets by how much each delay is longer than the one before, at least 1. Default: 2.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> RetryPolicy {
        self.factor = factor;
        self
    }

    /// Sets the longest delay, up to 42 days. Default: 1 h.
    #[must_use]
    pub fn longest_delay(mut self, delay: Duration) -> RetryPolicy {
        self.longest_delay = delay;
        self
    }

    /// Shortens each delay by a random part of it, at most by this share (0 to 1), before it is
    /// rounded up. So tasks that failed together do not come back together. With 0, all tasks with
    /// the same number of failures share one queue. Default: 0.
    #[must_use]
    pub fn jitter(mut self, share: f64) -> RetryPolicy {
        self.jitter = share;
        self
    }

    /// Sets how long a deferred task waits if its handler does not say, at least 100 ms and up to 42
    /// days. Default: 60 s.
    #[must_use]
    pub fn defer_delay(mut self, delay: Duration) -> RetryPolicy {
        self.defer_delay = delay;
        self
    }

    /// Sets how often a task may be deferred, at least 1. The next deferral is a failure for good: the
    /// task becomes a dead letter, whose reason says so. Default: 1000.
    #[must_use]
    pub fn max_defers(mut self, defers: u32) -> RetryPolicy {
        self.max_defers = defers;
        self
    }

    /// How long a task waits after this many failures: rounded up, without jitter.
    #[must_use]
    pub fn delay_after(&self, failures: u32) -> Duration {
        round_up(self.delay_at(failures))
    }

    /// What happens to a task after its attempt of this number, from 1, has failed.
    pub(crate) fn decide(&self, attempt: u32, failure: &Failure) -> Decision {
        match failure {
            Failure::Reject { .. } => Decision::Dead,
            Failure::Requeue { .. } | Failure::StopWorker { .. } => Decision::Requeue,
            Failure::Retry { .. } if attempt >= self.max_attempts => Decision::Dead,
            Failure::Retry { after: Some(after), .. } => Decision::Retry(round_up(*after)),
            Failure::Retry { after: None, .. } => {
                let share = (1.0 - self.jitter * fastrand::f64()).clamp(0.0, 1.0);
                Decision::Retry(round_up(self.delay_at(attempt).mul_f64(share)))
            }
            Failure::Defer { after, .. } => {
                Decision::Defer(round_up(after.unwrap_or(self.defer_delay).max(SHORTEST_DELAY)))
            }
        }
    }

    /// What happens to a task whose attempt of this number has failed, or deferred it, after so many
    /// deferrals; with the failure as its record has it.
    pub(crate) fn judge(
        &self,
        attempt: u32,
        deferrals: u32,
        failure: Failure,
    ) -> (Failure, Decision) {
        let failure = self.limit_deferrals(deferrals, failure);
        let decision = self.decide(attempt, &failure);
        (failure, decision)
    }

    /// The same failure; for good, if it defers a task that was deferred as often as allowed.
    pub(crate) fn limit_deferrals(&self, deferrals: u32, failure: Failure) -> Failure {
        match failure {
            Failure::Defer { reason, .. } if deferrals >= self.max_defers => Failure::reject(
                format!("deferred {deferrals} times, as often as allowed: {reason}"),
            ),
            other => other,
        }
    }

    /// How often a task may be deferred.
    pub(crate) fn deferral_limit(&self) -> u32 {
        self.max_defers
    }

    /// How many attempts a task gets.
    pub(crate) fn attempt_limit(&self) -> u32 {
        self.max_attempts
    }

    /// The delays of a task that fails again and again; empty with jitter, which draws each of them.
    pub(crate) fn series(&self) -> Vec<Duration> {
        let mut series = Vec::new();
        if self.jitter > 0.0 {
            return series;
        }
        for failures in 1..self.max_attempts {
            series.push(self.delay_after(failures));
            let grows = self.factor > 1.0 && !self.first_delay.is_zero();
            if !grows || self.delay_at(failures) >= self.longest_delay {
                break;
            }
        }
        series.dedup();
        series
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.max_attempts == 0 {
            return Err(Error::setting(
                "max attempts",
                "0 would never try a task; write 1 or more",
            ));
        }
        if !(self.factor.is_finite() && self.factor >= 1.0) {
            return Err(Error::setting("retry factor", "it is a number from 1 up"));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(Error::setting("retry jitter", "it is a number from 0 to 1"));
        }
        if self.max_defers == 0 {
            return Err(Error::setting(
                "max defers",
                "0 would never defer a task; write 1 or more",
            ));
        }
        for (setting, delay) in [
            ("retry delay", self.first_delay),
            ("max retry delay", self.longest_delay),
            ("defer delay", self.defer_delay),
        ] {
            if delay > LONGEST_DELAY {
                return Err(Error::setting(
                    setting,
                    "RabbitMQ can hold a task back for 42 days at most",
                ));
            }
        }
        Ok(())
    }

    /// The delay before it is rounded up.
    fn delay_at(&self, failures: u32) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let longest = self.longest_delay.min(LONGEST_DELAY);
        let grown = self.first_delay.as_secs_f64() * self.factor.powi(exponent);
        // Zero times infinity is not a number.
        let grown = if self.first_delay.is_zero() { 0.0 } else { grown };
        Duration::try_from_secs_f64(grown).map_or(longest, |delay| delay.min(longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn delays(policy: &RetryPolicy, failures: impl IntoIterator<Item = u32>) -> Vec<u128> {
        failures.into_iter().map(|n| policy.delay_after(n).as_millis()).collect()
    }

    #[test]
    fn the_default_doubles_from_five_seconds_to_an_hour_on_the_ladder() {
        let policy = RetryPolicy::new();
        assert_eq!(delays(&policy, 1..=4), [5_000, 10_000, 20_000, 45_000]);
        assert_eq!(delays(&policy, [10, 11, 12]), [2_700_000, 3_600_000, 3_600_000]);
        assert_eq!(policy.attempt_limit(), 5);
    }

    #[test]
    fn over_its_whole_range_a_delay_never_shrinks_nor_passes_the_cap() {
        for first in [Duration::ZERO, Duration::from_nanos(1), SECOND, LONGEST_DELAY] {
            for factor in [1.0, 1.5, 2.0, 1e9] {
                let policy = RetryPolicy::new().first_delay(first).factor(factor);
                let policy = policy.longest_delay(LONGEST_DELAY);
                let far = [1, 2, 3, 31, 32, 33, 1000, i32::MAX as u32, u32::MAX];
                let delays = delays(&policy, far);
                assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]), "{first:?} {factor}");
                assert!(delays.iter().all(|delay| *delay <= LONGEST_DELAY.as_millis()));
                assert_eq!(policy.delay_after(1), round_up(first), "{factor}");
            }
        }
        assert!(RetryPolicy::new().delay_after(0) <= RetryPolicy::new().delay_after(1));
    }

    #[test]
    fn the_delays_are_known_at_once_however_many_attempts_there_are() {
        let for_ever = RetryPolicy::new().max_attempts(u32::MAX);
        assert_eq!(for_ever.first_delay(Duration::ZERO).series(), [Duration::ZERO]);
        assert_eq!(for_ever.first_delay(SECOND).factor(1.0).series(), [SECOND]);
        let slow = for_ever.first_delay(Duration::from_millis(1)).factor(1.1).series();
        assert_eq!(slow.last(), Some(&RetryPolicy::new().delay_after(u32::MAX)));
    }

    #[test]
    fn the_last_attempt_and_a_reject_are_final() {
        let policy = RetryPolicy::new().max_attempts(3).first_delay(SECOND);
        let failure = Failure::retry("no");
        assert_eq!(policy.decide(1, &failure), Decision::Retry(SECOND));
        assert_eq!(policy.decide(2, &failure), Decision::Retry(2 * SECOND));
        for attempt in [3, 4, u32::MAX] {
            assert_eq!(policy.decide(attempt, &failure), Decision::Dead);
        }
        assert_eq!(policy.decide(1, &Failure::reject("bad")), Decision::Dead);
        assert_eq!(policy.decide(u32::MAX, &Failure::requeue("full")), Decision::Requeue);
        assert_eq!(RetryPolicy::new().max_attempts(1).decide(1, &failure), Decision::Dead);
    }

    #[test]
    fn a_task_may_name_its_own_delay_but_not_its_own_number_of_attempts() {
        let policy = RetryPolicy::new().max_attempts(2);
        let after = |delay| Failure::retry_after("busy", delay);
        assert_eq!(policy.decide(1, &after(SECOND)), Decision::Retry(SECOND));
        assert_eq!(policy.decide(1, &after(Duration::MAX)), Decision::Retry(LONGEST_DELAY));
        let rounded = Decision::Retry(Duration::from_millis(100));
        assert_eq!(policy.decide(1, &after(Duration::from_nanos(1))), rounded);
        assert_eq!(policy.decide(2, &after(SECOND)), Decision::Dead);
    }

    #[test]
    fn a_deferral_waits_in_a_delay_queue_whatever_the_attempt_is() {
        let policy = RetryPolicy::new().max_attempts(1).defer_delay(70 * SECOND).jitter(1.0);
        let after = |delay: Duration| policy.decide(9, &Failure::defer("busy", delay));
        assert_eq!(policy.decide(9, &Failure::defer("busy", None)), Decision::Defer(120 * SECOND));
        assert_eq!(after(SECOND), Decision::Defer(SECOND));
        assert_eq!(after(Duration::ZERO), Decision::Defer(SHORTEST_DELAY), "never a busy loop");
        assert_eq!(after(Duration::MAX), Decision::Defer(LONGEST_DELAY));
    }

    #[test]
    fn one_deferral_too_many_is_a_failure_for_good() {
        let policy = RetryPolicy::new().max_defers(2);
        let busy = || Failure::defer("busy", SECOND);
        assert_eq!(policy.limit_deferrals(1, busy()), busy());
        let reason = "deferred 2 times, as often as allowed: busy";
        assert_eq!(policy.limit_deferrals(2, busy()), Failure::reject(reason));
        assert_eq!(policy.limit_deferrals(9, Failure::retry("no")), Failure::retry("no"));
    }

    #[test]
    fn jitter_shortens_within_its_share_before_the_delay_is_rounded_up() {
        let policy = RetryPolicy::new().first_delay(40 * SECOND).jitter(0.5).max_attempts(2);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let Decision::Retry(delay) = policy.decide(1, &Failure::retry("no")) else {
                panic!("dead")
            };
            seen.insert(delay.as_secs());
        }
        assert!(seen.contains(&30) && seen.contains(&45), "{seen:?}");
        assert!(seen.iter().all(|delay| [20, 30, 45].contains(delay)), "{seen:?}");
        assert!(policy.series().is_empty(), "a shorter rung is not the next delay");
    }

    #[test]
    fn the_series_of_a_task_s_delays_is_known_beforehand() {
        let seconds = |policy: RetryPolicy| -> Vec<u64> {
            policy.series().iter().map(Duration::as_secs).collect()
        };
        assert_eq!(seconds(RetryPolicy::new()), [5, 10, 20, 45]);
        assert_eq!(seconds(RetryPolicy::new().max_attempts(u32::MAX)).len(), 11);
        assert!(seconds(RetryPolicy::new().max_attempts(1)).is_empty());
        assert_eq!(seconds(RetryPolicy::new().first_delay(Duration::ZERO)), [0]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(RetryPolicy::new().validate().is_ok());
        assert!(RetryPolicy::new().longest_delay(LONGEST_DELAY).validate().is_ok());
        for policy in [
            RetryPolicy::new().max_attempts(0),
            RetryPolicy::new().max_defers(0),
            RetryPolicy::new().defer_delay(LONGEST_DELAY + SECOND),
            RetryPolicy::new().factor(0.5),
            RetryPolicy::new().factor(f64::NAN),
            RetryPolicy::new().jitter(1.1),
            RetryPolicy::new().jitter(f64::NAN),
            RetryPolicy::new().longest_delay(LONGEST_DELAY + SECOND),
            RetryPolicy::new().first_delay(LONGEST_DELAY + SECOND),
        ] {
            assert!(policy.validate().is_err(), "{policy:?}");
        }
    }
}
