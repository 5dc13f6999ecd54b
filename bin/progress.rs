//! Owns the progress bar of a producer.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::cli;
use super::input::{Source, length};

/// How far it is, on a terminal, for long input; nothing elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    unit: Unit,
    started: Instant,
    shown: Instant,
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Tasks,
    /// The bytes of the input, where how many tasks it has is not known.
    Bytes,
}

/// No eye sees more often.
const SHOW_AGAIN: Duration = Duration::from_millis(100);

impl Progress {
    pub(crate) fn new(source: &Source) -> Progress {
        let (bar, unit) = match source {
            Source::Words(_, count) | Source::Whole(_, count) if *count > 1 => {
                (ProgressBar::new(*count), Unit::Tasks)
            }
            Source::Words(..) | Source::Whole(..) => (ProgressBar::hidden(), Unit::Tasks),
            Source::Pieces(path, _) => match length(path) {
                Some(length) => (ProgressBar::new(length), Unit::Bytes),
                None => (ProgressBar::no_length(), Unit::Bytes),
            },
        };
        let template = match bar.length() {
            Some(_) => "{wide_bar} {percent}%  {msg}, {eta} left",
            None => "{spinner} {msg}, {elapsed}",
        };
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(message(0, 0, 0.0));
        let drawn = bar.clone();
        cli::log_by_way_of(move |write| drawn.suspend(write));
        let now = Instant::now();
        Progress { bar, unit, started: now, shown: now }
    }

    /// For a terminal that shows each task already.
    pub(crate) fn hidden() -> Progress {
        let now = Instant::now();
        Progress { bar: ProgressBar::hidden(), unit: Unit::Tasks, started: now, shown: now }
    }

    pub(crate) fn note(&mut self, body: &[u8], confirmed: u64, failed: u64) {
        self.bar.inc(match self.unit {
            Unit::Tasks => 1,
            Unit::Bytes => body.len() as u64 + 1,
        });
        if self.shown.elapsed() >= SHOW_AGAIN {
            self.shown = Instant::now();
            let rate = confirmed as f64 / self.started.elapsed().as_secs_f64();
            self.bar.set_message(message(confirmed, failed, rate));
        }
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

fn message(confirmed: u64, failed: u64, rate: f64) -> String {
    format!("{confirmed} confirmed, {failed} failed, {rate:.0}/s")
}
