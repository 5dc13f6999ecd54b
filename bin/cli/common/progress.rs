//! [`Line`]: a line on a terminal that shows how far a command is, redrawn in its place.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::cli::common::logging::suspend_progress_while_logging;

/// On standard error, if that is a terminal. Log lines get rows of their own. Dropping this clears it.
pub(crate) struct Line(ProgressBar);

/// Often enough for the eye.
const REDRAW_EVERY: Duration = Duration::from_millis(200);

impl Line {
    pub(crate) fn hidden() -> Line {
        Line(ProgressBar::hidden())
    }

    /// Shows this bar. `{counts}` in the template is what `write` writes after so long a time. A
    /// thread of its own draws it, also while nothing happens.
    pub(crate) fn show(
        bar: ProgressBar,
        template: &str,
        write: impl Fn(Duration, &mut dyn fmt::Write) -> fmt::Result + Send + Sync + 'static,
    ) -> Line {
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
        let write = Arc::new(write);
        let counts = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            // There is nowhere to report that a bar cannot be drawn.
            let _ = write(state.elapsed(), out);
        };
        bar.set_style(style.with_key("counts", counts));
        if !bar.is_hidden() {
            bar.tick();
            bar.enable_steady_tick(REDRAW_EVERY);
        }
        let drawn = bar.clone();
        suspend_progress_while_logging(move |write| drawn.suspend(write));
        Line(bar)
    }

    pub(crate) fn advance(&self, by: u64) {
        self.0.inc(by);
    }

    /// Clears it while `print` writes to the terminal.
    pub(crate) fn suspend(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }

    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Line {
    /// From now on, nothing follows a log line.
    fn drop(&mut self) {
        self.end();
    }
}
