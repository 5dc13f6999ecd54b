//! What libraries do: publish, consume, and both at once.

use super::Plan;
use crate::run::work::{Fill, Work};

/// In the order of the tables.
const LIBRARIES: [&str; 6] =
    ["raw", "amiquip", "amiquip-nodelay", "rabbit-work", "lapin", "amqprs"];

impl Plan<'_> {
    pub(super) fn publish(&self) -> Vec<Work> {
        let mut works = Vec::new();
        for size in [16, 1024] {
            let tasks = self.options.tasks(30_000);
            let settings = format!("publish queue={{queue}} count={tasks} size={size} window=1000");
            let mut work = Work::new(format!("publish/{size}-bytes"));
            for library in self.built(&LIBRARIES).chain(["raw-same-bytes"]) {
                work.add(library, tasks, Fill::Nothing, self.contend(library, &settings));
            }
            works.push(work);
        }
        works.push(self.one_by_one());
        works.push(self.shared());
        works
    }

    fn one_by_one(&self) -> Work {
        let settings = |tasks| format!("publish queue={{queue}} count={tasks} size=16 window=1");
        let mut work = Work::new("publish/one-by-one");
        for library in self.built(&LIBRARIES) {
            // Without TCP_NODELAY, many take 40 ms.
            let tasks = self.options.tasks(if library == "amiquip" { 100 } else { 6_000 });
            work.add(library, tasks, Fill::Nothing, self.contend(library, &settings(tasks)));
        }
        let tasks = self.options.tasks(3_000);
        if let Some(command) = self.pika(&settings(tasks)) {
            work.add("pika", tasks, Fill::Nothing, command);
        }
        work
    }

    pub(super) fn consume(&self) -> Vec<Work> {
        let works =
            [(1, 1, 8_000), (1, 4, 12_000), (10, 1, 20_000), (100, 1, 30_000), (1000, 1, 30_000)];
        works.map(|(prefetch, threads, tasks)| self.consume_with(prefetch, threads, tasks)).into()
    }

    fn consume_with(&self, prefetch: u16, threads: usize, tasks: u64) -> Work {
        let tasks = self.options.tasks(tasks);
        let fill = Fill::Tasks { count: tasks, size: 16 };
        let settings = format!("consume queue={{queue}} count={tasks} prefetch={prefetch}");
        let mut work = Work::new(format!("consume/prefetch-{prefetch}-threads-{threads}"));
        if threads > 1 || prefetch == 1000 {
            // No target depends on it.
            work.most_rounds = 3;
        }
        for library in self.built(&LIBRARIES) {
            let threads = if library == "raw" { 1 } else { threads };
            let settings = format!("{settings} threads={threads}");
            work.add(library, tasks, fill, self.contend(library, &settings));
        }
        if prefetch > 1 {
            let multiple = (prefetch / 2).min(50);
            let settings = format!("{settings} multiple={multiple}");
            let name = format!("raw-multiple-{multiple}");
            work.add(&name, tasks, fill, self.contend("raw", &settings));
        }
        let fewer = tasks.min(5_000);
        let settings = format!("consume queue={{queue}} count={fewer} prefetch={prefetch}");
        if let (1, Some(command)) = (threads, self.pika(&settings)) {
            work.add("pika", fewer, Fill::Tasks { count: fewer, size: 16 }, command);
        }
        work
    }

    /// Tasks without a batch, and tasks of a batch, for each of which the worker publishes an outcome.
    pub(super) fn outcomes(&self) -> Vec<Work> {
        let works = [(1, 4_000), (100, 20_000)].map(|(prefetch, tasks)| {
            let tasks = self.options.tasks(tasks);
            let settings = format!("outcomes queue={{queue}} count={tasks} prefetch={prefetch}");
            let mut work = Work::new(format!("outcomes/prefetch-{prefetch}"));
            work.most_rounds = 3;
            for (name, batch) in [("rabbit-work", false), ("rabbit-work-of-a-batch", true)] {
                let command = self.contend("rabbit-work", &format!("{settings} batch={batch}"));
                work.add(name, tasks, Fill::Nothing, command);
            }
            work
        });
        works.into()
    }

    /// From when a task was due to be published until the handler has it.
    pub(super) fn latency(&self) -> Vec<Work> {
        // At a low rate with the default prefetch; at a high one with what keeps up.
        let works =
            [("200-a-second", "200", 1_000, 1), ("half-of-the-limit", "{rate}", 20_000, 100)];
        works
            .map(|(name, rate, tasks, prefetch)| {
                let tasks = self.options.tasks(tasks);
                let settings =
                    format!("pass queue={{queue}} count={tasks} rate={rate} prefetch={prefetch}");
                let mut work = Work::new(format!("latency/{name}"));
                work.most_rounds = 3;
                for library in self.built(&LIBRARIES) {
                    work.add(library, tasks, Fill::Nothing, self.contend(library, &settings));
                }
                work
            })
            .into()
    }

    /// Tasks that fail: each third twice, and each hundredth always.
    pub(super) fn failures(&self) -> Vec<Work> {
        let tasks = self.options.tasks(30_000);
        let mut work = Work::new("failures/some");
        work.most_rounds = 3;
        for kind in ["none", "some"] {
            let command = self.program(&format!("failing {tasks} {kind} {{queue}}"));
            let command = crate::run::work::words(&command);
            work.add(&format!("failing-{kind}"), tasks, Fill::Nothing, command);
        }
        vec![work]
    }
}
