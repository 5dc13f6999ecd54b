//! [`Output`]: what the worker itself writes, and the first failure to write it.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use rabbit_work::{OutputStream, Trigger};

use crate::cli::common::logging::with_progress_suspended;
use crate::cli::common::stdio;

/// A worker whose output or records are lost is of no use: the first failed write stops it, and tasks
/// whose output was not written are requeued.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    failed: Arc<OnceLock<WriteError>>,
    trigger: Arc<OnceLock<Trigger>>,
}

/// What could not be written, and why.
#[derive(Debug)]
pub(crate) struct WriteError {
    what: &'static str,
    error: io::Error,
}

const STANDARD_OUTPUT: &str = "standard output";

impl Output {
    pub(crate) fn stop_when_unwritable(&self, trigger: Trigger) {
        let _ = self.trigger.set(trigger);
    }

    /// Writes one line to standard output.
    pub(crate) fn print_line(&self, line: impl fmt::Display) -> io::Result<()> {
        stdio::print_line(line).map_err(|error| self.fail(error))
    }

    pub(crate) fn write_all(&self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        let mut written = Ok(());
        with_progress_suspended(&mut || written = stdio::write_all(stream, bytes));
        written.map_err(|error| self.fail(error))
    }

    /// Keeps the first error of standard output, and stops the worker.
    pub(crate) fn fail(&self, error: io::Error) -> io::Error {
        self.fail_at(STANDARD_OUTPUT, error)
    }

    /// The same for the file of an option.
    pub(crate) fn fail_at(&self, what: &'static str, error: io::Error) -> io::Error {
        let copy = io::Error::new(error.kind(), error.to_string());
        let _ = self.failed.set(WriteError { what, error });
        if let Some(trigger) = self.trigger.get() {
            trigger.stop();
        }
        copy
    }

    pub(crate) fn error(&self) -> Option<&WriteError> {
        self.failed.get()
    }

    /// Whether standard output may be written, as far as we know.
    pub(crate) fn is_writable(&self) -> bool {
        self.error().is_none_or(|failed| failed.what != STANDARD_OUTPUT)
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be written: {}", self.what, self.error)
    }
}
