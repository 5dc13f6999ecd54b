//! The bar of a producer that waits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;
use rabbit_work::{BatchOutcome, BatchSummary, TaskEnd};

use crate::cli::common::progress::Line;

/// A bar on a terminal; otherwise nothing.
pub(super) struct WaitProgress {
    line: Line,
    counts: Arc<Mutex<Counts>>,
}

/// The counts that the bar shows.
#[derive(Clone, Copy, Debug)]
struct Counts {
    done: u64,
    dead: u64,
    left: u64,
    /// How many have ended since the bar began.
    ended: u64,
}

impl WaitProgress {
    pub(super) fn new(BatchSummary { done, dead, left, .. }: BatchSummary) -> WaitProgress {
        let bar = ProgressBar::new(done + dead + left).with_position(done + dead);
        let counts = Arc::new(Mutex::new(Counts { done, dead, left, ended: 0 }));
        let shown = Arc::clone(&counts);
        let line = Line::show(bar, "{wide_bar} {percent}%  {counts}", move |elapsed, out| {
            let counts = *shown.lock().unwrap_or_else(PoisonError::into_inner);
            out.write_str(&counts.as_text(elapsed))
        });
        WaitProgress { line, counts }
    }

    pub(super) fn note(&self, outcomes: &[BatchOutcome]) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for outcome in outcomes {
            match outcome.end {
                TaskEnd::Done => counts.done += 1,
                TaskEnd::Dead => counts.dead += 1,
            }
        }
        let ended = outcomes.len() as u64;
        counts.ended += ended;
        counts.left = counts.left.saturating_sub(ended);
        drop(counts);
        self.line.advance(ended);
    }

    /// Clears the bar while `print` writes to the terminal.
    pub(super) fn suspend(&self, print: impl FnOnce()) {
        self.line.suspend(print);
    }
}

impl Counts {
    fn as_text(self, elapsed: Duration) -> String {
        let Counts { done, dead, left, ended } = self;
        let counts = format!("done {done}, dead {dead}, left {left}");
        let rate = ended as f64 / elapsed.as_secs_f64().max(0.001);
        if ended == 0 {
            return counts;
        }
        let rest = (left as f64 / rate).ceil();
        let rate = if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") };
        let rest = Duration::try_from_secs_f64(rest).unwrap_or(Duration::MAX);
        let rest = humantime::format_duration(Duration::from_secs(rest.as_secs())).to_string();
        format!("{counts}, {rate}/s, {} left", with_spaces(&rest))
    }
}

/// `1h 5m 3s` as `1 h 5 m 3 s`.
fn with_spaces(duration: &str) -> String {
    let mut text = String::new();
    for letter in duration.chars() {
        let after_digit = text.ends_with(|last: char| last.is_ascii_digit());
        if letter.is_alphabetic() && after_digit {
            text.push(' ');
        }
        text.push(letter);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_counts_rate_and_the_time_left() {
        let counts = Counts { done: 812, dead: 3, left: 185, ended: 400 };
        let shown = counts.as_text(Duration::from_secs(10));
        assert_eq!(shown, "done 812, dead 3, left 185, 40/s, 5 s left");
        let slow = Counts { ended: 1, left: 400, ..counts }.as_text(Duration::from_secs(10));
        assert_eq!(slow, "done 812, dead 3, left 400, 0.1/s, 1 h 6 m 40 s left");
        let none = Counts { ended: 0, ..counts }.as_text(Duration::ZERO);
        assert_eq!(none, "done 812, dead 3, left 185");
    }
}
