//! [`Progress`]: how far a draining worker is, on a terminal.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, thread};

use crossbeam_channel::{Receiver, bounded};
use indicatif::ProgressBar;
use rabbit_work::{
    Broker, Event, EventKind, Health, Inspector, Queue, Shutdown, Trigger, Worker, shutdown,
};

use crate::cli::common::progress::Line;
use crate::cli::worker::options::Options;

/// A line that is redrawn, and a thread that counts the tasks that are left.
pub(crate) struct Progress {
    counts: Arc<Mutex<Counts>>,
    line: Line,
    /// Ends the thread.
    stop: Trigger,
    /// Closed when the thread has ended.
    ended: Receiver<Infallible>,
}

#[derive(Debug, Default)]
struct Counts {
    done: u64,
    retried: u64,
    deferred: u64,
    dead: u64,
    /// `None` until they are counted.
    left: Option<Left>,
    /// How many tasks were left at first, and when.
    first_left: Option<(Duration, u64)>,
    /// The queues and delays of tasks that wait.
    delays: HashSet<(String, Duration)>,
    /// One of them is new: its delay queue may be.
    has_new_delay: bool,
}

/// Tasks that this worker or another one has still to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    ready: u64,
    waiting: u64,
}

/// Counts the queues, on a connection for each of them.
struct Census {
    broker: Broker,
    queues: Vec<Queue>,
    health: Vec<Health>,
    inspectors: Vec<Inspector>,
}

const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How often to ask for each possible delay queue, which is some eighty questions.
const COUNT_ALL_EVERY: Duration = Duration::from_secs(60);
/// How long the last count may take at the end.
const END_TIMEOUT: Duration = Duration::from_secs(1);

impl Progress {
    /// `None` unless the worker drains, standard error is a terminal, and nothing else writes to it:
    /// what the tasks write to a terminal as standard output would be in the way.
    pub(crate) fn start(options: &Options, workers: &[Worker]) -> Option<Progress> {
        // With --results, the commands write to files, or through the worker.
        let is_written = io::stdout().is_terminal() && options.results.is_none();
        if !options.drain || !io::stderr().is_terminal() || is_written {
            return None;
        }
        // The options were good enough for the workers.
        let broker = options.broker.broker().ok()?;
        let queues = options.queues.named().iter().map(|it| Queue::new(&it.name)).collect();
        let counts = Arc::<Mutex<Counts>>::default();
        let (shown, counted) = (Arc::clone(&counts), Arc::clone(&counts));
        let health: Vec<Health> = workers.iter().map(Worker::health).collect();
        let census = Census { broker, queues, health: health.clone(), inspectors: Vec::new() };
        let line = Line::show(ProgressBar::no_length(), "{counts}", move |elapsed, out| {
            lock(&shown).write(health.iter().map(Health::running).sum(), elapsed, out)
        });
        let (stop, stopped) = shutdown();
        let (last, ended) = bounded(0);
        let count = move || {
            let _last = last;
            count_until(census, &counted, &stopped);
        };
        // Without a thread, the line shows no count of what is left.
        let _ = thread::Builder::new().name("progress".into()).spawn(count);
        Some(Progress { counts, line, stop, ended })
    }

    /// Counts a task that has ended. Clones of what this returns count together.
    pub(crate) fn counter(&self) -> impl Fn(&Event) + Clone + Send + Sync + 'static {
        let counts = Arc::clone(&self.counts);
        move |event| lock(&counts).note(event)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.line.end();
        self.stop.stop();
        let _ = self.ended.recv_timeout(END_TIMEOUT);
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts what is left in the queues every second.
fn count_until(mut census: Census, counts: &Mutex<Counts>, stopped: &Shutdown) {
    let begun = Instant::now();
    let mut all_counted_at: Option<Instant> = None;
    loop {
        let has_new_delay = mem::take(&mut lock(counts).has_new_delay);
        let is_due = all_counted_at.is_none_or(|at| at.elapsed() >= COUNT_ALL_EVERY);
        let counts_all = has_new_delay || is_due;
        let left = census.count(counts_all, stopped);
        if counts_all {
            all_counted_at = left.map(|_| Instant::now());
        }
        lock(counts).note_left(left, begun.elapsed());
        if stopped.wait(COUNT_EVERY) {
            return;
        }
    }
}

impl Census {
    /// Counts, once all workers consume. Before that it has no connection: the broker may allow no
    /// more than the workers need.
    fn count(&mut self, counts_all: bool, stopped: &Shutdown) -> Option<Left> {
        if self.health.iter().any(|it| it.consuming() == 0) {
            self.inspectors.clear();
            return None;
        }
        if self.inspectors.is_empty() {
            let inspectors = self.queues.iter().map(|it| Inspector::new(&self.broker, it));
            self.inspectors = inspectors.collect();
        }
        self.inspectors.iter_mut().try_fold(Left::default(), |sum, inspector| {
            if stopped.is_stopping() {
                return None;
            }
            let status = if counts_all { inspector.status() } else { inspector.recount() }.ok()?;
            let (ready, waiting) = (status.ready, status.delayed_tasks());
            Some(Left { ready: sum.ready + ready, waiting: sum.waiting + waiting })
        })
    }
}

impl Counts {
    fn note(&mut self, event: &Event) {
        if let Some(delay) = event.delay {
            self.has_new_delay |= self.delays.insert((event.queue.clone(), delay));
        }
        self.note_kind(event.kind);
    }

    fn note_kind(&mut self, kind: EventKind) {
        match kind {
            EventKind::Done => self.done += 1,
            EventKind::Retried => self.retried += 1,
            EventKind::Deferred => self.deferred += 1,
            EventKind::Dead => self.dead += 1,
            _ => {}
        }
    }

    fn note_left(&mut self, left: Option<Left>, elapsed: Duration) {
        self.left = left;
        let total = left.map(|left| left.ready + left.waiting);
        self.first_left = self.first_left.or(total.map(|total| (elapsed, total)));
    }

    fn write(&self, running: usize, elapsed: Duration, out: &mut dyn fmt::Write) -> fmt::Result {
        let Counts { done, retried, deferred, dead, .. } = self;
        write!(out, "{done} done, {retried} retried, ")?;
        if *deferred > 0 {
            write!(out, "{deferred} deferred, ")?;
        }
        write!(out, "{dead} dead, {running} running, ")?;
        match self.left {
            Some(Left { ready, waiting }) => write!(out, "{ready} ready + {waiting} waiting, ")?,
            None => write!(out, "? ready + ? waiting, ")?,
        }
        write!(out, "{:.0}/s, ", self.rate(elapsed))?;
        match self.time_left(elapsed) {
            Some(left) => write!(out, "{} left", humantime::format_duration(left)),
            None => write!(out, "? left"),
        }
    }

    /// How many tasks this worker ended for good in a second.
    fn rate(&self, elapsed: Duration) -> f64 {
        (self.done + self.dead) as f64 / elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// In whole seconds. Other workers may take part: then the tasks become fewer faster than this
    /// one ends them.
    fn time_left(&self, elapsed: Duration) -> Option<Duration> {
        let left = self.left.map(|left| left.ready + left.waiting)?;
        let fewer = self.first_left.map_or(0.0, |(at, first)| {
            let seconds = elapsed.saturating_sub(at).as_secs_f64();
            first.saturating_sub(left) as f64 / seconds.max(1.0)
        });
        let speed = self.rate(elapsed).max(fewer);
        let seconds = if left == 0 { 0.0 } else { (left as f64 / speed).ceil() };
        seconds.is_finite().then(|| Duration::from_secs(seconds as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(counts: &Counts, running: usize, seconds: u64) -> String {
        let mut text = String::new();
        counts.write(running, Duration::from_secs(seconds), &mut text).expect("written");
        text
    }

    #[test]
    fn the_line_shows_what_ended_what_is_left_and_for_how_long() {
        let mut counts = Counts::default();
        assert_eq!(
            text(&counts, 2, 0),
            "0 done, 0 retried, 0 dead, 2 running, ? ready + ? waiting, 0/s, ? left"
        );
        (0..40).for_each(|_| counts.note_kind(EventKind::Done));
        [EventKind::Started, EventKind::Retried, EventKind::Dead]
            .into_iter()
            .for_each(|kind| counts.note_kind(kind));
        counts.note_left(Some(Left { ready: 395, waiting: 15 }), Duration::from_secs(1));
        assert_eq!(
            text(&counts, 8, 1),
            "40 done, 1 retried, 1 dead, 8 running, 395 ready + 15 waiting, 41/s, 10s left"
        );
    }

    #[test]
    fn other_workers_shorten_the_time_that_is_left() {
        let mut counts = Counts::default();
        counts.note_left(Some(Left { ready: 1000, waiting: 0 }), Duration::ZERO);
        counts.note_kind(EventKind::Deferred);
        counts.note_left(Some(Left { ready: 500, waiting: 0 }), Duration::from_secs(10));
        assert_eq!(
            text(&counts, 1, 10),
            "0 done, 0 retried, 1 deferred, 0 dead, 1 running, 500 ready + 0 waiting, 0/s, 10s left"
        );
    }
}
