//! [`Receipt`]: what became of a published task.

use crate::model::error::Error;
use crate::model::outcome::Outcome;
use crate::model::task::Task;

/// What became of one task.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct Receipt {
    /// The task, with the id it was published under.
    pub task: Task,
    /// What became of it.
    pub outcome: Outcome,
}

impl Receipt {
    /// A receipt for tests: a producer makes its receipts itself.
    pub fn new(task: Task, outcome: Outcome) -> Receipt {
        Receipt { task, outcome }
    }

    /// What a call that publishes one task returns.
    pub(crate) fn into_result(self) -> Result<String, Error> {
        match self.outcome {
            Outcome::Confirmed => Ok(self.task.id().unwrap_or_default().to_string()),
            outcome => Err(Error::NotConfirmed { outcome, task: Box::new(self.task) }),
        }
    }
}
