//! The progress bar of a producer.

use std::fmt;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;

use crate::cli::common::progress::Line;
use crate::cli::producer::source::{Source, length};

/// A bar on a terminal, for long input; otherwise nothing.
pub(crate) struct Progress {
    line: Line,
    unit: Unit,
    counts: Arc<Counts>,
}

/// The counts that the bar shows. A thread of its own draws it, also while nothing happens.
#[derive(Default)]
struct Counts {
    confirmed: AtomicU64,
    failed: AtomicU64,
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Tasks,
    /// The bytes of the input, if its number of tasks is not known.
    Bytes,
}

impl Progress {
    pub(crate) fn new(source: &Source) -> Progress {
        let (bar, unit) = match source {
            Source::Words(_, count) | Source::Whole(_, count) if *count > 1 => {
                (ProgressBar::new(*count), Unit::Tasks)
            }
            Source::Words(..) | Source::Whole(..) => return Progress::hidden(),
            // A bar would overwrite what the user types.
            Source::Pieces(path, _) if is_typed(path) => return Progress::hidden(),
            Source::Pieces(path, _) => match length(path) {
                Some(length) => (ProgressBar::new(length), Unit::Bytes),
                None => (ProgressBar::no_length(), Unit::Bytes),
            },
        };
        let template = match bar.length() {
            Some(_) => "{wide_bar} {percent}%  {counts}, {eta} left",
            None => "{spinner} {counts}, {elapsed}",
        };
        let counts = Arc::<Counts>::default();
        let shown = Arc::clone(&counts);
        let line = Line::show(bar, template, move |elapsed, out| shown.write(elapsed, out));
        Progress { line, unit, counts }
    }

    /// No bar: the terminal shows each task, or a bar would be in the way.
    pub(crate) fn hidden() -> Progress {
        Progress { line: Line::hidden(), unit: Unit::Tasks, counts: Arc::default() }
    }

    /// Tasks with these bodies have an outcome; so many have one by now.
    pub(crate) fn note<'a>(
        &self,
        bodies: impl ExactSizeIterator<Item = &'a [u8]>,
        confirmed: u64,
        failed: u64,
    ) {
        self.counts.confirmed.store(confirmed, Ordering::Relaxed);
        self.counts.failed.store(failed, Ordering::Relaxed);
        match self.unit {
            Unit::Tasks => self.line.advance(bodies.len() as u64),
            Unit::Bytes => self.line.advance(bodies.map(|body| body.len() as u64 + 1).sum()),
        }
    }

    /// Counts a task of this length as dealt with.
    pub(crate) fn advance(&self, length: usize) {
        self.line.advance(match self.unit {
            Unit::Tasks => 1,
            Unit::Bytes => length as u64 + 1,
        });
    }

    pub(crate) fn end(&self) {
        self.line.end();
    }
}

impl Counts {
    fn write(&self, elapsed: Duration, out: &mut dyn fmt::Write) -> fmt::Result {
        let (confirmed, failed) =
            (self.confirmed.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed));
        let rate = confirmed as f64 / elapsed.as_secs_f64().max(f64::EPSILON);
        write!(out, "{confirmed} confirmed, {failed} failed, {rate:.0}/s")
    }
}

fn is_typed(path: &Path) -> bool {
    path == Path::new("-") && io::stdin().is_terminal()
}
