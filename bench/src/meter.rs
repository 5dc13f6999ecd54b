//! Takes the time of a work, in the same way for each contender.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Counts tasks, from the first that is seen to the last.
#[derive(Debug)]
pub struct Meter {
    count: u64,
    seen: AtomicU64,
    first: OnceLock<Instant>,
    last: OnceLock<Instant>,
}

impl Meter {
    pub fn new(count: u64) -> Meter {
        Meter { count, seen: AtomicU64::new(0), first: OnceLock::new(), last: OnceLock::new() }
    }

    /// Counts a task. Returns whether it is the last.
    pub fn task(&self) -> bool {
        let number = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        if number == 1 {
            _ = self.first.set(Instant::now());
        }
        if number == self.count {
            _ = self.last.set(Instant::now());
        }
        number == self.count
    }

    /// The time between the first task and the last.
    pub fn measured(&self) -> Measured {
        let (first, last) = (self.first.get(), self.last.get());
        let time = first.zip(last).map_or(Duration::ZERO, |(first, last)| *last - *first);
        Measured { time, latencies: Vec::new() }
    }
}

/// When each task is due to be published, and how long after that it arrived.
#[derive(Debug)]
pub struct Schedule {
    begun: Instant,
    interval: Duration,
    latencies: Mutex<Vec<Duration>>,
}

impl Schedule {
    /// A schedule that begins now. At a rate of 0, each task is due when it is asked for.
    pub fn new(count: u64, rate: u64) -> Schedule {
        let interval =
            if rate == 0 { Duration::ZERO } else { Duration::from_secs(1) / rate as u32 };
        let latencies = Mutex::new(Vec::with_capacity(count as usize));
        Schedule { begun: Instant::now(), interval, latencies }
    }

    /// Waits until this task is due. Returns what [`Schedule::arrived`] needs, as the body's first
    /// bytes.
    pub fn wait(&self, number: u64) -> [u8; 8] {
        let due = match self.interval {
            Duration::ZERO => self.begun.elapsed(),
            interval => interval * number as u32,
        };
        let early = due.saturating_sub(self.begun.elapsed());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        (due.as_nanos() as u64).to_be_bytes()
    }

    /// Notes when a task with this body arrived.
    pub fn arrived(&self, body: &[u8]) {
        let due = body.first_chunk().map_or(0, |due| u64::from_be_bytes(*due));
        let latency = self.begun.elapsed().saturating_sub(Duration::from_nanos(due));
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(latency);
    }

    /// What `meter` measured, with the latencies.
    pub fn measured(&self, meter: &Meter) -> Measured {
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        latencies.sort_unstable();
        Measured { latencies, ..meter.measured() }
    }
}

#[derive(Debug)]
pub struct Measured {
    pub time: Duration,
    /// In ascending order, if the work is about them.
    pub latencies: Vec<Duration>,
}

impl Measured {
    pub fn since(begun: Instant) -> Measured {
        Measured { time: begun.elapsed(), latencies: Vec::new() }
    }

    fn percentile(&self, of: f64) -> f64 {
        let index = (self.latencies.len() as f64 * of / 100.0) as usize;
        let latency = self.latencies.get(index).or(self.latencies.last());
        latency.map_or(0.0, |it| it.as_secs_f64() * 1e6)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "seconds={:.6}", self.time.as_secs_f64())?;
        if !self.latencies.is_empty() {
            let [p50, p99, p999] = [50.0, 99.0, 99.9].map(|of| self.percentile(of));
            write!(out, " p50_us={p50:.0} p99_us={p99:.0} p999_us={p999:.0}")?;
        }
        Ok(())
    }
}
