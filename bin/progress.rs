//! Owns the progress bar of a producer.

use std::fmt;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::cli;
use super::input::{Source, length};

/// How far it is, on a terminal, for long input; nothing elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    unit: Unit,
    counts: Arc<Counts>,
}

/// What the bar tells. It is drawn by a thread of its own, also while nothing happens.
#[derive(Default)]
struct Counts {
    confirmed: AtomicU64,
    failed: AtomicU64,
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Tasks,
    /// The bytes of the input, where how many tasks it has is not known.
    Bytes,
}

/// No eye sees more often.
const SHOW_AGAIN: Duration = Duration::from_millis(200);

impl Progress {
    pub(crate) fn new(source: &Source) -> Progress {
        let (bar, unit) = match source {
            Source::Words(_, count) | Source::Whole(_, count) if *count > 1 => {
                (ProgressBar::new(*count), Unit::Tasks)
            }
            Source::Words(..) | Source::Whole(..) => return Progress::hidden(),
            // A bar would wipe away what is typed.
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
        let told = Arc::clone(&counts);
        let tell = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            // What cannot be drawn is not drawn.
            let _ = told.tell(state.elapsed(), out);
        };
        bar.set_style(style.with_key("counts", tell));
        if !bar.is_hidden() {
            bar.tick();
            bar.enable_steady_tick(SHOW_AGAIN);
        }
        let drawn = bar.clone();
        cli::log_by_way_of(move |write| drawn.suspend(write));
        Progress { bar, unit, counts }
    }

    /// For a terminal that shows each task already, or where a bar would be in the way.
    pub(crate) fn hidden() -> Progress {
        Progress { bar: ProgressBar::hidden(), unit: Unit::Tasks, counts: Arc::default() }
    }

    pub(crate) fn note(&mut self, body: &[u8], confirmed: u64, failed: u64) {
        self.counts.confirmed.store(confirmed, Ordering::Relaxed);
        self.counts.failed.store(failed, Ordering::Relaxed);
        self.bar.inc(match self.unit {
            Unit::Tasks => 1,
            Unit::Bytes => body.len() as u64 + 1,
        });
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    /// What is logged from now on is not followed by a bar.
    fn drop(&mut self) {
        self.end();
    }
}

impl Counts {
    fn tell(&self, elapsed: Duration, out: &mut dyn fmt::Write) -> fmt::Result {
        let (confirmed, failed) =
            (self.confirmed.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed));
        let rate = confirmed as f64 / elapsed.as_secs_f64().max(f64::EPSILON);
        write!(out, "{confirmed} confirmed, {failed} failed, {rate:.0}/s")
    }
}

fn is_typed(path: &Path) -> bool {
    path == Path::new("-") && io::stdin().is_terminal()
}
