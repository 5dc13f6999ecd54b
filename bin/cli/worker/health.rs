//! The health of all workers of a run, as one judgement.

use std::time::Duration;

use rabbit_work::{Health, Worker};

use crate::cli::worker::options::Options;

/// How long a command may take to end after its time limit.
const END_TIMEOUT: Duration = Duration::from_secs(6);

pub(crate) struct WorkersHealth {
    workers: Vec<Health>,
    /// How long a healthy worker may have a task.
    task_limit: Option<Duration>,
}

impl WorkersHealth {
    pub(crate) fn of(options: &Options, workers: &[Worker]) -> WorkersHealth {
        WorkersHealth {
            workers: workers.iter().map(Worker::health).collect(),
            task_limit: options.task_timeout.map(|limit| limit.saturating_add(END_TIMEOUT)),
        }
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.workers.iter().all(|it| it.is_healthy(self.task_limit))
    }
}
