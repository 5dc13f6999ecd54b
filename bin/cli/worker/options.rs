//! The command line of `worker`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser};
use rabbit_work::{Broker, RetryPolicy, Worker, Workers};

use crate::cli::common::arguments::parse_duration;
use crate::cli::common::error::CommandError;
use crate::cli::common::manual::sections;
use crate::cli::common::options::BrokerArgs;
use crate::cli::common::variables::is_from_variable;
use crate::cli::worker::queues::{NamedQueue, QueuesArgs};
use crate::cli::worker::rate::Rate;

/// The options that say how a command runs, and what becomes of its output and exit status. Each requires
/// one. --print excludes each: clap waives what is required if a given option excludes it.
const OF_A_COMMAND: [&str; 6] =
    ["defer_delay", "max_defers", "task_timeout", "tag", "joblog", "results"];

/// Run COMMAND for each task of a RabbitMQ queue, with the task's body on its standard input.
///
/// Without a COMMAND, print each task and sleep a second for each dot in its body.
///
/// A failed task is tried again after a delay. After --max-attempts failures it is a dead letter in
/// the queue NAME.dead, which queuectl shows and replays.
#[derive(Debug, Parser)]
#[command(name = "worker", version, after_long_help = sections(MANUAL, ENVIRONMENT, LAST))]
#[command(group = ArgGroup::new("of_a_command").args(OF_A_COMMAND).multiple(true).requires("command"))]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,

    #[command(flatten)]
    pub(crate) queues: QueuesArgs,

    /// How many tasks run at a time, each thread on its own channel [default: number of processors]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// How many unacked tasks each thread may hold; 1 is fair dispatch, 0 is no limit
    #[arg(long, value_name = "N", default_value = "1")]
    prefetch: u16,

    /// Ack each task on delivery (at most once): a worker that stops LOSES the tasks it has not run
    #[arg(long)]
    pub(crate) auto_ack: bool,

    /// Exit once all queues and delay queues are empty at one moment; tasks of other workers may run on
    #[arg(long)]
    pub(crate) drain: bool,

    /// After this many failures, a task becomes a dead letter
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: u32,

    /// The delay before the second attempt; doubles with each further one; see Durations
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = parse_duration)]
    retry_delay: Duration,

    /// The longest delay between two attempts
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = parse_duration)]
    max_retry_delay: Duration,

    /// The delay of a task whose command exits with 75 ("not now"); see Durations
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = parse_duration)]
    defer_delay: Duration,

    /// After this many deferrals (status 75), the next one makes the task a dead letter
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_defers: u32,

    /// Each worker process starts at most N tasks a second, minute or hour, spread evenly
    #[arg(long, value_name = "N/s|m|h")]
    rate: Option<Rate>,

    /// Exit after running this many tasks, of all queues together
    #[arg(long, value_name = "N")]
    pub(crate) max_tasks: Option<u64>,

    /// Exit with 1 after N dead letters of this run; running tasks finish first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_dead: Option<u64>,

    /// How long running tasks may continue after the first signal
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = parse_duration)]
    pub(crate) grace: Duration,

    /// How long a command may run; then its process group gets SIGTERM, and SIGKILL 5 s later
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub(crate) task_timeout: Option<Duration>,

    /// Put thread and task id before each line that commands write; splits lines longer than 64 KiB
    #[arg(long)]
    pub(crate) tag: bool,

    /// Append a line for each run of COMMAND to FILE, in the format of GNU parallel's --joblog
    #[arg(long, value_name = "FILE")]
    pub(crate) joblog: Option<PathBuf>,

    /// Write each command's output and exit status only to DIR/ID or to FILE.jsonl; see Files
    #[arg(long, value_name = "DIR", conflicts_with = "tag")]
    pub(crate) results: Option<PathBuf>,

    /// Exit when the broker cannot be reached or the connection is lost
    #[arg(long)]
    no_reconnect: bool,

    /// Touch FILE every 2 s while the worker is healthy, and remove it at exit; see Files
    #[arg(long, value_name = "FILE")]
    pub(crate) health_file: Option<PathBuf>,

    /// Write metrics for Prometheus's textfile collector to FILE every 15 s
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics_file: Option<PathBuf>,

    /// Append one JSON object for each event to FILE; see Events and Files
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,

    /// Print a JSON summary on standard output at exit; see Files for its keys
    #[arg(long)]
    pub(crate) json: bool,

    /// Print the tasks and ack them. Required without a COMMAND, unless the queue is task_queue
    #[arg(long, conflicts_with = "command", conflicts_with_all = OF_A_COMMAND)]
    pub(crate) print: bool,

    /// The command to run for each task, and its arguments; {} in an argument is the body
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

impl Options {
    /// One worker for each queue.
    pub(crate) fn workers(&self) -> Result<Vec<Worker>, CommandError> {
        self.queues.refuse_repetition()?;
        self.refuse_what_has_no_effect()?;
        let broker = self.broker.broker()?;
        Ok(self.queues.named().iter().map(|named| self.worker(&broker, named)).collect())
    }

    fn refuse_what_has_no_effect(&self) -> Result<(), CommandError> {
        if self.auto_ack && self.max_dead.is_some() && !is_from_variable("max-dead") {
            let reason =
                "--auto-ack makes no dead letters: a failed task is lost; leave out one of both";
            return Err(CommandError::usage("--max-dead", reason));
        }
        let is_unused = self.queues.named().iter().all(|it| it.threads.is_some());
        if self.threads.is_some() && is_unused && !is_from_variable("threads") {
            let reason = "each --queue NAME=N has threads of its own; leave out --threads, or =N";
            return Err(CommandError::usage("--threads", reason));
        }
        Ok(())
    }

    /// These workers, with the limits of the process.
    pub(crate) fn limited(&self, mut workers: Workers) -> Workers {
        if let Some(limit) = self.max_tasks {
            workers = workers.max_tasks(limit);
        }
        if let Some(limit) = self.max_dead {
            workers = workers.max_dead(limit);
        }
        if let Some(Rate { tasks, per }) = self.rate {
            workers = workers.rate(tasks, per);
        }
        workers
    }

    fn worker(&self, broker: &Broker, named: &NamedQueue) -> Worker {
        let mut worker = Worker::new(broker, &self.queues.queue(named))
            .prefetch(self.prefetch)
            .grace(self.grace)
            .retry(self.retry_policy());
        if self.drain {
            worker = worker.drain();
        }
        if let Some(threads) = named.threads.or(self.threads) {
            worker = worker.threads(threads);
        }
        if self.auto_ack {
            worker = worker.auto_ack();
        }
        if self.no_reconnect {
            worker = worker.no_reconnect();
        }
        worker
    }

    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy::new()
            .max_attempts(self.max_attempts)
            .first_delay(self.retry_delay)
            .longest_delay(self.max_retry_delay)
            .defer_delay(self.defer_delay)
            .max_defers(self.max_defers)
    }
}

const MANUAL: &str = "\
Exit status:
  0    stopped; or drained, or --max-tasks reached, without a dead letter
  1    after --drain or --max-tasks, one of: this run made a dead letter, or may
       have; the connection was lost during the last tasks; one of them could
       not be started. In any run, one of: --max-dead was reached; standard
       output, --joblog or --results could not be written; the system could not
       start a thread
  2    usage or configuration; a command that cannot be found, or could not be
       executed for 5 s; a message that the worker cannot parse
  3    the grace period ended with tasks still running; they are requeued
  4    a signal ended --drain or --max-tasks early
  69   with --no-reconnect: no broker was reached, or the connection was lost
  130  exited at a second signal

Command:
  standard input  the body, without the newline that ended its line. Read it
                  with x=$(cat): read x fails without a newline. {} in an
                  argument is replaced by the body; put -- before {} if the
                  body may begin with a dash. No shell is involved
  status 0        the task is done
  status 65       the task can never succeed: it becomes a dead letter at once
  status 75       not now: the task is deferred, uncounted. It waits for
                  --defer-delay, or for the delay that the command writes to
                  the file TASK_DEFER_FILE (120 or 2m; at most 42d)
  any other       another status, a signal, or running past --task-timeout: the
                  task is tried again later
  environment     TASK_ID TASK_QUEUE TASK_ATTEMPT TASK_MAX_ATTEMPTS
                  TASK_DEFERRALS TASK_DEFER_FILE TASK_REDELIVERED TASK_WORKER,
                  and what the task has of TASK_TYPE TASK_CONTENT_TYPE
                  TASK_CONTENT_ENCODING TASK_PRIORITY TASK_ENQUEUED_AT
                  TASK_CORRELATION_ID TASK_REPLY_TO TASK_HEADER_<NAME>
                  TRACEPARENT TRACESTATE BAGGAGE. The worker does not pass on
                  its own variables of these names, nor RABBIT_WORK_<OPTION>
  background      processes that a command leaves behind must not write to
                  standard error for long: the pipe is closed when the worker
                  exits, or earlier. As the first process of a container, the
                  worker reaps them

Signals:
  first   starts no further task; running tasks have --grace to finish
  second  commands get SIGTERM, and SIGKILL 5 s later
  third   commands get SIGKILL. Unfinished tasks are requeued. SIGKILL or
          SIGQUIT to the worker leaves its commands running

Events:
  started   a task starts
  done      it is done and acked
  retried   it failed, and waits for its next attempt
  deferred  its command exited with 75, and it waits, without a failure
  dead      it failed for good, and is a dead letter
  failed    it failed and could not be moved to the retry or dead-letter queue:
            it is requeued without counting an attempt; with --auto-ack it is
            lost
  returned  it was not finished here, and is requeued
  orphaned  it ended after its connection was lost, and may run twice

Queues:
  NAME=N    works the queue NAME with N threads. --queue mail=2 --queue pdf=6
            works both at the same time, each on a connection of its own
  NAME      has --threads threads. A number after the last = is always a number
            of threads: write shard=2=4 for 4 threads of the queue shard=2
  options   apply to each queue; --drain, --max-tasks, --max-dead and --rate to
            all together. The health file is fresh while all are healthy.
            Thread numbers count from 1 in each queue
  failure   of one queue, such as a refused login, or --no-reconnect after a
            lost connection, does not end the others. The exit status is the
            worst of all: 130, 2, 3, 69, 4, 1, 0
  priority  does not exist between queues: the broker pushes a task of each
            queue to each free thread of that queue, and the worker cannot
            choose. Give urgent queues more threads, or use priorities within
            one queue: --max-priority

Dispatch:
  --prefetch  with 0, tasks go round-robin to all threads, and the whole queue
              may end up in memory
";

const ENVIRONMENT: &str = "  PATH            where COMMAND is looked up, unless it has a /
  TMPDIR          holds bodies of 64 KiB or more while their commands run, and
                  the files of TASK_DEFER_FILE; /tmp by default
";

const LAST: &str = "
Files:
  --health-file  holds the process id, and is touched every 2 s while the
                 worker is healthy: each thread consumes or runs a task within
                 --task-timeout, and its last command could be started. It is
                 stale after 10 s. An existing path is refused, unless it is a
                 regular file with nothing but a process id in it
  --events       one object for each line: time (Unix seconds), event, task
                 (its id), attempt, thread, queue, host, bytes (of the body),
                 ms (how long it ran), exit or signal of the command that
                 ended, and the reason of a failure. If nobody reads a pipe
                 for 2 s, events are dropped
  --joblog       tab-separated, with a heading: Seq (the number of the run) Host
                 (always :) Starttime JobRuntime Send (bytes of the body, if
                 COMMAND has no {}) Receive (bytes of standard output, with
                 --results) Exitval (-1: stopped by the worker) Signal Command
  --results      DIR/ID/stdout, stderr, exit (as in a shell: 137 for signal 9)
                 and attempt, of the last run; characters of the ID that are
                 no part of a safe name are %XX. A run that is not over has a
                 name that begins with .tmp-. FILE.jsonl gets one object for
                 each task after its last attempt: task queue attempt host
                 started seconds exit or signal reason stdout stderr (1 MiB
                 each, then stdout_cut is the number of bytes left out;
                 stdout_base64 if it is not UTF-8). A dead task whose command
                 was not started has a line without what a run has
  --json         one object, unless the options are invalid: done retried dead
                 returned seconds ended (drained, max-tasks, max-dead, signal
                 or error); and unless they are 0, deferred, doubtful (dead
                 letters that may exist) and lost (by --auto-ack). With several
                 queues they are sums, and by_queue has an object with the same
                 keys for each, and its error if it has one

Examples:
  worker
  worker --queue mail --threads 4 -- ./send
  worker --queue mail=2 --queue pdf=6 -- ./job
  worker --queue convert --drain --task-timeout 5m -- gzip -9 -- {}
  worker --queue photos --drain --joblog log --results out -- ./convert {}
  worker --queue mail --health-file /tmp/worker.health --events events -- ./send

See also:
  producer(1), queuectl(1)
";

#[cfg(test)]
mod tests {
    use super::*;

    /// Why these options are refused; empty if they are not.
    fn refusal(options: &str) -> String {
        let arguments = ["worker"].into_iter().chain(options.split_whitespace());
        match Options::try_parse_from(arguments) {
            Ok(options) => options.workers().err().map_or(String::new(), |it| it.to_string()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn an_option_that_would_have_no_effect_is_refused() {
        for (options, expected) in [
            ("--max-dead 1 --auto-ack -- true", "--max-dead: --auto-ack makes no dead letters"),
            ("--defer-delay 5s", "required arguments were not provided"),
            ("--max-defers 5", "required arguments were not provided"),
            ("--print --defer-delay 5s", "'--print' cannot be used with '--defer-delay <DUR>'"),
            ("--print --max-defers 5", "'--print' cannot be used with '--max-defers <N>'"),
            ("--print --task-timeout 5s", "'--print' cannot be used with '--task-timeout <DUR>'"),
            ("--print --tag", "'--print' cannot be used with '--tag'"),
            ("--print --joblog f", "'--print' cannot be used with '--joblog <FILE>'"),
            ("--print --results d", "'--print' cannot be used with '--results <DIR>'"),
            ("--joblog f --results d --print", "'--joblog <FILE>' cannot be used with '--print'"),
            ("--joblog f --results d -- true", ""),
            ("--print", ""),
            ("--threads 2 --queue a=1", "--threads: each --queue NAME=N has threads of its own"),
            ("--threads 2 --queue a=1 --queue b=1", "--threads: each --queue NAME=N"),
            ("--threads 2 --queue a=1 --queue b", ""),
            ("--threads 2", ""),
            ("--max-dead 1 --defer-delay 5s --max-defers 5 -- true", ""),
        ] {
            let refused = refusal(options);
            assert!(refused.contains(expected), "{options}: {refused}");
            assert_eq!(refused.is_empty(), expected.is_empty(), "{options}: {refused}");
        }
    }
}
