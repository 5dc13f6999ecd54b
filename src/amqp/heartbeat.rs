//! Judges whether heartbeats were missed, and counts the bytes that the broker sent.
//!
//! A process that was stopped (SIGSTOP, a frozen container) must not go on as if no time had passed: by
//! then the broker has requeued its tasks. A suspended machine is not noticed, because its clock stops
//! with it. The bytes show a drain whether something is still arriving.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The signs of life of one connection's broker. Clones are of the same.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeat {
    begun: Instant,
    /// The longest silence that heartbeats allow, in milliseconds; 0 without heartbeats.
    limit: Arc<AtomicU64>,
    /// In milliseconds from `begun`; 0 until silence counts.
    last_read: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

/// Whether so many bytes in so long a time are more than heartbeats, which have 8 bytes each and
/// come at most twice a second.
pub(crate) fn are_more_than_heartbeats(bytes: u64, time: Duration) -> bool {
    bytes > time.as_secs().saturating_add(1).saturating_mul(32)
}

impl Heartbeat {
    /// For a connection on which we ask for a heartbeat of so many seconds, or for none with 0.
    pub(crate) fn new(heartbeat: u16) -> Heartbeat {
        Heartbeat {
            begun: Instant::now(),
            limit: Arc::new(AtomicU64::new(limit_of(heartbeat))),
            last_read: Arc::default(),
            bytes: Arc::default(),
        }
    }

    /// The broker has proposed this heartbeat; the shorter one applies.
    pub(crate) fn agree(&self, proposed: u16) {
        self.limit.fetch_min(limit_of(proposed), Ordering::Relaxed);
    }

    /// Silence counts from now on: heartbeats have been agreed on.
    pub(crate) fn start(&self) {
        self.last_read.store(self.now(), Ordering::Release);
    }

    /// Two heartbeats; `None` without any.
    pub(crate) fn limit(&self) -> Option<Duration> {
        let limit = self.limit.load(Ordering::Relaxed);
        (limit > 0).then(|| Duration::from_millis(limit))
    }

    /// How much came from the broker so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// So many bytes came from the broker. An error if they came too late.
    pub(crate) fn record_read(&self, bytes: usize) -> io::Result<()> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.is_stale() {
            let text = "the broker sent nothing for two heartbeats: the broker or this process was \
                        stopped";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        if self.last_read.load(Ordering::Acquire) > 0 {
            self.start();
        }
        Ok(())
    }

    /// Whether the silence has been too long.
    pub(crate) fn is_stale(&self) -> bool {
        let last_read = self.last_read.load(Ordering::Acquire);
        let silence = self.now().saturating_sub(last_read);
        let limit = self.limit.load(Ordering::Relaxed);
        last_read > 0 && limit > 0 && silence > limit
    }

    fn now(&self) -> u64 {
        let passed = self.begun.elapsed().as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX).max(1)
    }
}

/// Two heartbeats, in milliseconds.
fn limit_of(heartbeat: u16) -> u64 {
    2 * 1000 * u64::from(heartbeat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn heard_ago(heartbeat: u16, silence: Duration) -> Heartbeat {
        let mut heartbeat = Heartbeat::new(heartbeat);
        heartbeat.start();
        heartbeat.begun =
            heartbeat.begun.checked_sub(silence).expect("the system is up for longer");
        heartbeat
    }

    #[test]
    fn more_than_two_heartbeats_of_silence_are_too_many() {
        assert!(!heard_ago(1, Duration::from_millis(1900)).is_stale());
        let stopped = heard_ago(1, Duration::from_millis(2100));
        assert!(stopped.is_stale());
        assert!(stopped.record_read(8).is_err(), "what comes now is too late");
    }

    #[test]
    fn the_shorter_heartbeat_counts() {
        for (ours, proposed, stops) in
            [(10, 1, true), (1, 10, true), (10, 10, false), (0, 1, false)]
        {
            let heartbeat = heard_ago(ours, Duration::from_secs(3));
            heartbeat.agree(proposed);
            assert_eq!(heartbeat.is_stale(), stops, "{ours} and {proposed}");
        }
    }

    #[test]
    fn what_is_heard_in_time_begins_a_new_silence() {
        let heartbeat = heard_ago(1, Duration::from_millis(1500));
        assert!(heartbeat.record_read(8).is_ok());
        let later = Heartbeat { begun: heartbeat.begun - Duration::from_millis(1500), ..heartbeat };
        assert!(!later.is_stale());
    }

    #[test]
    fn silence_counts_neither_before_the_start_nor_without_heartbeats() {
        let mut before = Heartbeat::new(1);
        before.begun -= Duration::from_secs(5);
        assert!(before.record_read(8).is_ok() && !before.is_stale());
        assert!(!heard_ago(0, Duration::from_secs(100)).is_stale());
    }
}
