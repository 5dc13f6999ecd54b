//! How it grows: with the backlog, threads, processes, prefetch and the way to the broker.

use super::Plan;
use crate::run::work::{Fill, Work, shell};

impl Plan<'_> {
    pub(super) fn growth(&self) -> Vec<Work> {
        let backlogs = [1_000, 10_000, 100_000, 1_000_000].map(|tasks| self.backlog(tasks));
        let threads = [1, 4, 16, 64, 256].map(|threads| self.threads(threads));
        let processes = [1, 2, 4, 8, 16].map(|processes| self.processes(processes));
        if self.options.quick {
            return vec![backlogs[0].clone(), threads[1].clone(), processes[1].clone()];
        }
        [&backlogs[..], &threads, &processes].concat()
    }

    /// How fast a backlog is worked off.
    fn backlog(&self, tasks: u64) -> Work {
        let mut work = Work::new(format!("growth/backlog-{tasks}"));
        let is_long = tasks == 1_000_000;
        work.most_rounds = if is_long { 1 } else { 3 };
        let tasks = self.options.tasks(tasks);
        let settings = format!("consume queue={{queue}} count={tasks} prefetch=100");
        let libraries: &[&str] = match is_long {
            true => &["raw", "rabbit-work"],
            false => &["raw", "amiquip-nodelay", "rabbit-work"],
        };
        for library in self.built(libraries) {
            let fill = Fill::Tasks { count: tasks, size: 16 };
            work.add(library, tasks, fill, self.contend(library, &settings));
        }
        work
    }

    /// Tasks that wait for 10 ms, on more and more threads.
    fn threads(&self, threads: u64) -> Work {
        let mut work = Work::new(format!("growth/threads-{threads}"));
        work.most_rounds = 3;
        let tasks = self.options.tasks(100 * threads);
        let settings =
            format!("consume queue={{queue}} count={tasks} threads={threads} task_us=10000");
        for library in self.built(&["amiquip-nodelay", "rabbit-work", "lapin"]) {
            let fill = Fill::Tasks { count: tasks, size: 16 };
            work.add(library, tasks, fill, self.contend(library, &settings));
        }
        work
    }

    /// Processes that share a queue.
    fn processes(&self, processes: u64) -> Work {
        let mut work = Work::new(format!("growth/processes-{processes}"));
        work.most_rounds = 3;
        let each = self.options.tasks(24_000) / processes;
        let settings = format!("consume queue={{queue}} count={each} prefetch=100");
        for library in self.built(&["raw", "amiquip-nodelay", "rabbit-work"]) {
            let one = self.contend(library, &settings).join(" ");
            let all = format!("{one} >/dev/null & all=\"$all $!\"; ").repeat(processes as usize);
            let script = format!("all=; {all} for it in $all; do wait $it || exit; done");
            let tasks = each * processes;
            let fill = Fill::Tasks { count: tasks + 100 * processes, size: 16 };
            work.add_whole(library, tasks, fill, shell(script));
        }
        work
    }

    /// A thread with tasks of 5 ms, and a broker that is some milliseconds away.
    pub(super) fn prefetch(&self) -> Vec<Work> {
        const TASK_MS: u64 = 5;
        let mut works = Vec::new();
        for delay in [1, 10, 50] {
            for prefetch in [1, 2, 3, 5, 10, 20, 50] {
                let mut work = Work::new(format!("prefetch/delay-{delay}ms-prefetch-{prefetch}"));
                (work.delay_ms, work.most_rounds) = (delay, 3);
                // For some two seconds.
                let expected = (prefetch * 1000 / (2 * delay + TASK_MS)).min(1000 / TASK_MS);
                let tasks = self.options.tasks(2 * expected.max(10));
                let settings = format!(
                    "consume queue={{queue}} count={tasks} prefetch={prefetch} task_us={}",
                    TASK_MS * 1000
                );
                let fill = Fill::Tasks { count: tasks, size: 16 };
                work.add("rabbit-work", tasks, fill, self.contend("rabbit-work", &settings));
                works.push(work);
            }
        }
        if self.options.quick {
            works.truncate(1);
        }
        works
    }

    /// 200 tasks for a worker that takes 20 ms for each, and one that takes 1 ms.
    pub(super) fn fairness(&self) -> Vec<Work> {
        let works = [1, 2, 5, 10, 20, 50, 100].map(|prefetch| {
            let mut work = Work::new(format!("fairness/prefetch-{prefetch}"));
            work.most_rounds = 3;
            let tasks = self.options.tasks(200).max(20);
            let settings =
                format!("share queue={{queue}} count={tasks} prefetch={prefetch} task_us=20000");
            let fill = Fill::Tasks { count: tasks, size: 16 };
            work.add("rabbit-work", tasks, fill, self.contend("rabbit-work", &settings));
            work
        });
        let count = if self.options.quick { 1 } else { works.len() };
        works[..count].to_vec()
    }
}
