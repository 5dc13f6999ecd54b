//! `worker`: works a RabbitMQ queue with several threads.

mod cli;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use clap::Parser;
use cli::{BrokerArgs, Exit, QueueArgs, parse_duration, print_line};
use log::{error, info, warn};
use rabbit_work::{
    Delivery, Ended, Error, Event, Failure, Handler, RetryPolicy, Summary, Trigger, Worker,
};
use serde_json::json;

/// Work the tasks of a RabbitMQ queue: for each, print it, sleep a second for each dot in it,
/// and ack it.
///
/// A task that fails is tried again after a delay, and ends in the queue NAME.dead when it has
/// failed too often; queuectl shows and replays what is there.
///
/// Exit status: 0 stopped, drained, or as many tasks as asked for; 1 drained or as many tasks as
/// asked for, but this run made a dead letter, or standard output could not be written; 2 usage or
/// configuration; 3 the grace ended with tasks still running; 69 broker unreachable, with
/// --no-reconnect; 130 stopped by a second signal.
#[derive(Debug, Parser)]
#[command(name = "worker", version)]
struct Options {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    queue: QueueArgs,

    /// How many tasks run at a time, each thread on a channel of its own [default: processors]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// How many tasks each thread may hold unacked; 1 is fair dispatch, 0 no limit (plain
    /// round-robin, and the whole queue may end up in memory)
    #[arg(long, value_name = "N", default_value = "1")]
    prefetch: u16,

    /// Let the broker count a task as done when it sends it: at most once. A worker that dies
    /// or stops LOSES what it was sent. For comparison only
    #[arg(long)]
    auto_ack: bool,

    /// Stop when the queue and its delay queues are empty
    #[arg(long)]
    drain: bool,

    /// Make a dead letter of a task that failed this often
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: u32,

    /// How long a failed task waits before its second attempt; each further wait is twice as
    /// long
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = parse_duration)]
    retry_delay: Duration,

    /// The longest that a failed task waits
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = parse_duration)]
    max_retry_delay: Duration,

    /// Stop after this many tasks were run
    #[arg(long, value_name = "N")]
    max_tasks: Option<u64>,

    /// How long running tasks may go on after the first signal
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = parse_duration)]
    grace: Duration,

    /// End when the broker is not reached or the connection is lost
    #[arg(long)]
    no_reconnect: bool,

    /// Append one JSON object for each event to FILE: time event task attempt thread queue ms
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,

    /// Print one summary object on standard output at exit: done retried dead returned seconds
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    cli::init_logging();
    run(&options).unwrap_or_else(|error| Exit::for_error(&error)).into()
}

fn run(options: &Options) -> Result<Exit, Error> {
    let worker = build(options)?;
    let late = options.grace + Duration::from_secs(4);
    let (trigger, shutdown) = cli::stop_on_signals(late, Exit::GraceOver)?;
    let unwritable = Arc::new(OnceLock::new());
    let summary = worker.run(Dots { trigger, unwritable: Arc::clone(&unwritable) }, &shutdown)?;
    info!("{}", in_words(&summary));
    if options.json && unwritable.get().is_none() {
        if let Err(error) = print_line(as_json(&summary)) {
            let _ = unwritable.set(error);
        }
    }
    Ok(exit_for(&summary, unwritable.get()))
}

fn build(options: &Options) -> Result<Worker, Error> {
    let mut worker = Worker::new(&options.broker.broker()?, &options.queue.queue())
        .prefetch(options.prefetch)
        .grace(options.grace)
        .retry(retry_policy(options));
    if options.drain {
        worker = worker.drain();
    }
    if let Some(threads) = options.threads {
        worker = worker.threads(threads);
    }
    if options.auto_ack {
        worker = worker.auto_ack();
    }
    if let Some(limit) = options.max_tasks {
        worker = worker.max_tasks(limit);
    }
    if options.no_reconnect {
        worker = worker.no_reconnect();
    }
    if let Some(path) = &options.events {
        let events = EventLog::open(path)?;
        worker = worker.observer(move |event| events.note(event));
    }
    Ok(worker)
}

fn retry_policy(options: &Options) -> RetryPolicy {
    RetryPolicy::new()
        .max_attempts(options.max_attempts)
        .first_delay(options.retry_delay)
        .longest_delay(options.max_retry_delay)
}

/// The tutorial's task: a second of work for each dot in the body.
struct Dots {
    trigger: Trigger,
    unwritable: Arc<OnceLock<io::Error>>,
}

impl Handler for Dots {
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure> {
        self.print(format!(" [x] Received '{}'", String::from_utf8_lossy(delivery.body())))?;
        let dots = delivery.body().iter().filter(|byte| **byte == b'.').count();
        thread::sleep(Duration::from_secs(dots as u64));
        self.print(" [x] Done".to_string())
    }
}

impl Dots {
    /// A worker whose output is lost does no good: it stops, and the task goes back.
    fn print(&self, line: String) -> Result<(), Failure> {
        print_line(line).map_err(|error| {
            let failure = Failure::postpone(format!("standard output cannot be written: {error}"));
            let _ = self.unwritable.set(error);
            self.trigger.stop();
            failure
        })
    }
}

/// The events file: one JSON object for each line.
struct EventLog {
    file: Mutex<File>,
}

impl EventLog {
    fn open(path: &Path) -> Result<EventLog, Error> {
        let opened = OpenOptions::new().create(true).append(true).open(path);
        let file = opened
            .map_err(|error| Error::setting("--events", format!("{}: {error}", path.display())))?;
        Ok(EventLog { file: Mutex::new(file) })
    }

    fn note(&self, event: &Event) {
        let since = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = json!({
            "time": since.as_millis() as f64 / 1000.0,
            "event": event.kind.name(),
            "task": event.task,
            "attempt": event.attempt,
            "thread": event.thread,
            "queue": event.queue,
            "ms": event.elapsed.as_millis() as u64,
        });
        // One write for each line, so that lines of several workers on one file do not mix.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            warn!("--events cannot be written: {error}");
        }
    }
}

fn in_words(summary: &Summary) -> String {
    let Summary { done, retried, dead, failed, returned, orphaned, running, elapsed, .. } = summary;
    let returned = returned + failed;
    format!(
        "{done} tasks done, {retried} retried, {dead} dead, {returned} given back, {orphaned} may run twice, \
         {running} still running, in {:.1} s",
        elapsed.as_secs_f64()
    )
}

fn as_json(summary: &Summary) -> serde_json::Value {
    json!({
        "done": summary.done,
        "retried": summary.retried,
        "dead": summary.dead,
        "returned": summary.returned + summary.failed,
        "seconds": summary.elapsed.as_secs_f64(),
    })
}

fn exit_for(summary: &Summary, unwritable: Option<&io::Error>) -> Exit {
    if let Some(error) = unwritable {
        error!("standard output cannot be written: {error}");
    }
    match summary.ended {
        Ended::Aborted => Exit::Interrupted,
        Ended::GraceOver => Exit::GraceOver,
        _ if unwritable.is_some() => Exit::Failed,
        Ended::Drained | Ended::MaxTasks if summary.dead > 0 => Exit::Failed,
        _ => Exit::Success,
    }
}
