//! [`ProgramEnd`]: how the program ended that a handler ran for a task, as data for records of it.

use std::fmt;
use std::time::{Duration, SystemTime};

/// How the program ended that `Command` ran for a task.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProgramEnd {
    /// When it was started, by the system's clock.
    pub started: SystemTime,
    /// How long it ran.
    pub elapsed: Duration,
    /// Its exit status; `None` if a signal ended it.
    pub exit: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether the worker stopped it: it ran past its time limit, or its task was cancelled.
    pub stopped: bool,
    /// Why its output could not be passed on, if that failed.
    pub output_error: Option<String>,
    /// How many bytes it wrote to standard output; 0 if that is this program's own, where nobody
    /// counts.
    pub output_bytes: u64,
    /// The start of its standard output, up to `Delivery::kept_output` bytes.
    pub(crate) output: Vec<u8>,
}

/// Without the output: logs carry no bodies.
impl fmt::Debug for ProgramEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramEnd")
            .field("started", &self.started)
            .field("elapsed", &self.elapsed)
            .field("exit", &self.exit)
            .field("signal", &self.signal)
            .field("stopped", &self.stopped)
            .field("output_error", &self.output_error)
            .field("output_bytes", &self.output_bytes)
            .finish()
    }
}
