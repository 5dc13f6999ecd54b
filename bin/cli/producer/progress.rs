//! The progress bar of a producer.

use std::fmt;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::cli::common::logging::suspend_progress_while_logging;
use crate::cli::producer::source::{Source, length};

/// A bar on a terminal, for long input; otherwise nothing.
pub(crate) struct Progress {
    bar: ProgressBar,
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

/// Often enough for the eye.
const REDRAW_EVERY: Duration = Duration::from_millis(200);

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
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
        let counts = Arc::<Counts>::default();
        let shown = Arc::clone(&counts);
        let show = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            // There is nowhere to report that a bar cannot be drawn.
            let _ = shown.write(state.elapsed(), out);
        };
        bar.set_style(style.with_key("counts", show));
        if !bar.is_hidden() {
            bar.tick();
            bar.enable_steady_tick(REDRAW_EVERY);
        }
        let drawn = bar.clone();
        suspend_progress_while_logging(move |write| drawn.suspend(write));
        Progress { bar, unit, counts }
    }

    /// No bar: the terminal shows each task, or a bar would be in the way.
    pub(crate) fn hidden() -> Progress {
        Progress { bar: ProgressBar::hidden(), unit: Unit::Tasks, counts: Arc::default() }
    }

    pub(crate) fn note(&mut self, body: &[u8], confirmed: u64, failed: u64) {
        self.counts.confirmed.store(confirmed, Ordering::Relaxed);
        self.counts.failed.store(failed, Ordering::Relaxed);
        self.advance(body.len());
    }

    /// Counts a task of this length as dealt with.
    pub(crate) fn advance(&self, length: usize) {
        self.bar.inc(match self.unit {
            Unit::Tasks => 1,
            Unit::Bytes => length as u64 + 1,
        });
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    /// From now on, no bar follows a log line.
    fn drop(&mut self) {
        self.end();
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
