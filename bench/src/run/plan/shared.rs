//! What a program of many threads does: each publishes one task after the other.

use super::Plan;
use crate::run::work::{Fill, Work};

impl Plan<'_> {
    /// 32 threads through one shared producer, beside one such thread, and beside one producer that
    /// only sends: with a full window, and with 32 tasks, of which the threads never have more in flight.
    pub(super) fn shared(&self) -> Work {
        let mut work = Work::new("publish/shared-32-threads");
        for (name, library, tasks, settings) in [
            ("rabbit-work", "rabbit-work-shared", 40_000, "threads=32"),
            ("one-by-one", "rabbit-work-shared", 5_000, "threads=1"),
            ("window", "rabbit-work", 40_000, "window=1000"),
            ("window-32", "rabbit-work", 40_000, "window=32"),
            ("raw-window-32", "raw", 40_000, "window=32"),
        ] {
            let tasks = self.options.tasks(tasks);
            let settings = format!("publish queue={{queue}} count={tasks} size=16 {settings}");
            work.add(name, tasks, Fill::Nothing, self.contend(library, &settings));
        }
        work
    }
}
