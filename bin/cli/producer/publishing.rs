//! [`Publishing`]: what takes the tasks of the input, a producer or a batch.

use rabbit_work::{Producer, Receipt};

use crate::cli::common::error::CommandError;
use crate::cli::producer::options::TaskArgs;

/// Takes the bodies of the input, one by one.
pub(crate) trait Publishing {
    fn connect(&mut self) -> Result<(), CommandError>;

    /// Whether priorities have an effect in the queue; `None` if that is not known.
    fn has_priorities(&self) -> Option<bool>;

    /// Whether an earlier run has published the task of this number, from 1.
    fn has_published(&self, n: u64) -> bool;

    /// Publishes a task, unless an earlier run has.
    fn send(&mut self, body: Vec<u8>) -> Result<Sent, CommandError>;

    /// Notes a task that is too long to be published, by its start.
    fn skip(&mut self, start: &[u8]) -> Result<Vec<Receipt>, CommandError>;

    fn flush(&mut self) -> Vec<Receipt>;

    /// The bodies that were sent and are not published, because the input ended too early.
    fn take_held(&mut self) -> Vec<Vec<u8>>;

    /// Notes the end of the input.
    fn end(&mut self) -> Result<(), CommandError>;
}

/// What became of a body, with the receipts that have come in.
pub(crate) enum Sent {
    Now(Vec<Receipt>),
    /// An earlier run has published it.
    Before(Vec<Receipt>),
}

/// A producer whose tasks nobody waits for.
pub(crate) struct Plain<'a> {
    pub(crate) producer: Producer,
    pub(crate) task: &'a TaskArgs,
}

impl Publishing for Plain<'_> {
    fn connect(&mut self) -> Result<(), CommandError> {
        Ok(self.producer.connect()?)
    }

    fn has_priorities(&self) -> Option<bool> {
        self.producer.has_priorities()
    }

    fn has_published(&self, _: u64) -> bool {
        false
    }

    fn send(&mut self, body: Vec<u8>) -> Result<Sent, CommandError> {
        Ok(Sent::Now(self.producer.send(self.task.task(body))))
    }

    fn skip(&mut self, _: &[u8]) -> Result<Vec<Receipt>, CommandError> {
        Ok(Vec::new())
    }

    fn flush(&mut self) -> Vec<Receipt> {
        self.producer.flush()
    }

    fn take_held(&mut self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn end(&mut self) -> Result<(), CommandError> {
        Ok(())
    }
}
