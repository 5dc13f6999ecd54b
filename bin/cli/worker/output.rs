//! [`Output`]: what the worker itself writes to standard output and standard error.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use rabbit_work::{OutputStream, Trigger};

use crate::cli::common::stdio;

/// A worker whose output is lost is of no use: the first failed write stops it, and tasks whose
/// output was not written are requeued.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    error: Arc<OnceLock<io::Error>>,
    trigger: Arc<OnceLock<Trigger>>,
}

impl Output {
    pub(crate) fn stop_when_unwritable(&self, trigger: Trigger) {
        let _ = self.trigger.set(trigger);
    }

    /// Writes one line to standard output.
    pub(crate) fn print_line(&self, line: impl fmt::Display) -> io::Result<()> {
        stdio::print_line(line).map_err(|error| self.fail(error))
    }

    pub(crate) fn write_all(&self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        stdio::write_all(stream, bytes).map_err(|error| self.fail(error))
    }

    /// Keeps the first error, and stops the worker.
    pub(crate) fn fail(&self, error: io::Error) -> io::Error {
        let copy = io::Error::new(error.kind(), error.to_string());
        let _ = self.error.set(error);
        if let Some(trigger) = self.trigger.get() {
            trigger.stop();
        }
        copy
    }

    pub(crate) fn error(&self) -> Option<&io::Error> {
        self.error.get()
    }
}
