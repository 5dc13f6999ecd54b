//! What commands do: lines to tasks, one task, and a command for each task.

use std::fs;

use super::Plan;
use crate::run::work::{Clock, Contender, Fill, Work, is_installed, shell, words};
use rabbit_work_bench::Error;

impl Plan<'_> {
    /// Each line of a file becomes a task. The whole process is measured.
    pub(super) fn lines(&self) -> Result<Vec<Work>, Error> {
        let works = [(60_000, 16), (60_000, 1024), (400_000, 34), (10_000, 16), (1_000_000, 16)];
        works.into_iter().map(|(count, size)| self.lines_of(count, size)).collect()
    }

    fn lines_of(&self, count: u64, size: usize) -> Result<Work, Error> {
        let name = format!("lines/{count}-of-{size}-bytes");
        let tasks = self.options.tasks(count);
        let mut work = Work::new(name);
        if !self.options.includes_work(&work.name) {
            return Ok(work);
        }
        let is_long = count >= 400_000;
        if is_long {
            // A target depends on the longest.
            work.most_rounds = if count == 1_000_000 { 3 } else { 1 };
        }
        let file = self.options.scratch.join(format!("{count}-{size}.lines"));
        fs::write(&file, format!("{}\n", "x".repeat(size)).repeat(tasks as usize))?;
        let file = file.display();
        let settings = format!("publish queue={{queue}} count={tasks} size={size} window=1000");
        let libraries: &[&str] = if is_long { &["raw"] } else { &["raw", "rabbit-work"] };
        for library in libraries {
            work.add_whole(library, tasks, Fill::Nothing, self.contend(library, &settings));
        }
        let producer = self.program(&format!("producer --queue {{queue}} --lines {file}"));
        work.add_whole("producer", tasks, Fill::Nothing, words(&producer));
        if !is_long && is_installed("amqp-publish") {
            let command = shell(format!("amqp-publish --url {{url}} -r {{queue}} -p -l <{file}"));
            work.add_whole("amqp-publish-unconfirmed", tasks, Fill::Nothing, command);
        }
        Ok(work)
    }

    /// One task, with all that a process costs.
    pub(super) fn cold(&self) -> Vec<Work> {
        let times = if self.options.quick { 2 } else { 25 };
        let mut work = Work::new("cold/hello");
        let mut add = |name: &str, command: Vec<String>| {
            let clock = Clock::WholeProcesses(times);
            let (name, fill) = (name.into(), Fill::Nothing);
            work.contenders.push(Contender { name, tasks: times, command, fill, clock });
        };
        let one = "publish queue={queue} count=1 size=5 window=1";
        add("raw", self.contend("raw", one));
        if is_installed("amqp-publish") {
            add("amqp-publish", words("amqp-publish --url {url} -r {queue} -p -b hello"));
        }
        add("producer", words(&self.program("producer --queue {queue} hello")));
        for library in self.built(&["amiquip", "amiquip-nodelay", "lapin", "amqprs"]) {
            add(library, self.contend(library, one));
        }
        if let Some(command) = self.pika(one) {
            add("pika", command);
        }
        vec![work]
    }

    /// A command for each task.
    pub(super) fn command(&self) -> Result<Vec<Work>, Error> {
        let mut works = Vec::new();
        for threads in [1, 2, 4] {
            works.push(self.command_true(threads)?);
        }
        for threads in [1, 2, 4] {
            works.push(self.command_large(threads)?);
        }
        Ok(works)
    }

    /// For tasks of 100 bytes. The locale counts: in C, xargs forks faster.
    fn command_true(&self, threads: u64) -> Result<Work, Error> {
        let tasks = self.options.tasks(1500);
        let file = self.options.scratch.join("command.lines");
        fs::write(&file, format!("{}\n", "x".repeat(100)).repeat(tasks as usize))?;
        let file = file.display();
        let fill = Fill::Tasks { count: tasks, size: 100 };
        let mut work = Work::new(format!("command/true-threads-{threads}"));
        for (name, locale) in [("xargs", "C.UTF-8"), ("xargs-in-C", "C")] {
            let command = format!("LC_ALL={locale} exec xargs -P {threads} -n 1 true <{file}");
            work.add_whole(name, tasks, Fill::Nothing, shell(command));
        }
        let of_worker = format!("worker --queue {{queue}} --threads {threads} --max-tasks {tasks}");
        work.add_whole(
            "worker",
            tasks,
            fill,
            words(&format!("{} -- true", self.program(&of_worker))),
        );
        let settings = format!(
            "consume queue={{queue}} count={tasks} prefetch=1 threads={threads} command=true"
        );
        work.add_whole("amiquip-nodelay", tasks, fill, self.contend("amiquip-nodelay", &settings));
        Ok(work)
    }

    /// For tasks of 1 MiB, which the command reads; under xargs from a file.
    fn command_large(&self, threads: u64) -> Result<Work, Error> {
        let tasks = self.options.tasks(200);
        let file = self.options.scratch.join("large");
        fs::write(&file, vec![b'x'; 1 << 20])?;
        let file = file.display();
        let fill = Fill::Tasks { count: tasks, size: 1 << 20 };
        let mut work = Work::new(format!("command/1-MiB-threads-{threads}"));
        work.most_rounds = 3;
        let xargs = format!(
            "seq {tasks} | LC_ALL=C.UTF-8 xargs -P {threads} -n 1 sh -c 'cat <{file} >/dev/null'"
        );
        work.add_whole("xargs", tasks, Fill::Nothing, shell(xargs));
        let worker =
            format!("worker --queue {{queue}} --threads {threads} --max-tasks {tasks} -- sh -c");
        let mut worker = words(&self.program(&worker));
        worker.push("cat >/dev/null".into());
        work.add_whole("worker", tasks, fill, worker);
        // Not for `true`: a command that does not read its input ends amqp-consume.
        if is_installed("amqp-consume") {
            let each = tasks / threads;
            let consume = format!("amqp-consume --url {{url}} -q {{queue}} -p 1 -c {each} --");
            let one = format!("{consume} sh -c 'cat >/dev/null' & all=\"$all $!\"; ");
            let all = one.repeat(threads as usize);
            let command = shell(format!("all=; {all} for it in $all; do wait $it || exit; done"));
            work.add_whole("amqp-consume", each * threads, fill, command);
        }
        Ok(work)
    }
}
