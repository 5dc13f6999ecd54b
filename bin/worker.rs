//! `worker`: works a RabbitMQ queue with several threads.

mod cli;
mod events;
mod init;
mod manual;
mod streams;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use clap::Parser;
use cli::{BrokerArgs, Exit, Patience, QueueArgs, parse_duration, print_line};
use crossbeam_channel::{Receiver, bounded};
use events::EventLog;
use log::{Level, error, info, log_enabled, warn};
use rabbit_work::{
    Command, Delivery, Error, Failure, Handler, RetryPolicy, StopReason, Summary, Trigger, Worker,
    shutdown,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use signal_hook::consts::SIGCHLD;
use streams::{is_read_only, is_unwritable, refuse_where_a_stream_goes};

/// Work the tasks of a RabbitMQ queue: run COMMAND for each, with the body on its standard input;
/// or, without a COMMAND, print it and sleep a second for each dot in it.
///
/// A task that fails is tried again after a delay, and ends in the queue NAME.dead when it has
/// failed too often; queuectl shows and replays what is there.
#[derive(Debug, Parser)]
#[command(
    name = "worker",
    version,
    after_long_help = manual::sections(MANUAL, ENVIRONMENT, LAST)
)]
pub(crate) struct Options {
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

    /// Stop when the queue and its delay queues are empty; what other workers have in hand is
    /// not waited for
    #[arg(long)]
    drain: bool,

    /// Make a dead letter of a task that failed this often
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: u32,

    /// How long a failed task waits before its second attempt; each further wait doubles. Each is
    /// rounded up, see Durations
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = parse_duration)]
    retry_delay: Duration,

    /// The longest that a failed task waits, also before its second attempt
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = parse_duration)]
    max_retry_delay: Duration,

    /// Stop after this many tasks were run
    #[arg(long, value_name = "N")]
    max_tasks: Option<u64>,

    /// How long running tasks may go on after the first signal
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = parse_duration)]
    grace: Duration,

    /// How long a command may run; then its process group gets SIGTERM, and SIGKILL 5 s later
    #[arg(long, value_name = "DUR", value_parser = parse_duration, requires = "command")]
    task_timeout: Option<Duration>,

    /// Put thread and task id before each line that commands write; one of more than 64 KiB may
    /// become several
    #[arg(long, requires = "command")]
    tag: bool,

    /// End when the broker is not reached or the connection is lost
    #[arg(long)]
    no_reconnect: bool,

    /// Touch FILE every few seconds while every thread consumes, or works within its time limit;
    /// removed at exit. A path that exists is refused, unless it is a regular file with nothing
    /// but a process id in it
    #[arg(long, value_name = "FILE")]
    health_file: Option<PathBuf>,

    /// Append one JSON object for each event to FILE: time event task attempt thread queue ms,
    /// and the reason of a failure. Where nobody reads a pipe for 2 s, events are left out
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,

    /// Print a summary object on standard output at exit; see Files for its keys
    #[arg(long)]
    json: bool,

    /// Print the tasks, as the tutorial does, and ack them; without a COMMAND, queues other than
    /// task_queue need it
    #[arg(long, conflicts_with = "command")]
    print: bool,

    /// The command to run for each task, and its arguments; {} in an argument is the body
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const MANUAL: &str = "\
Exit status:
  0    stopped; or drained, or --max-tasks reached, and no dead letter made
  1    drained, or --max-tasks reached, but this run made a dead letter or may
       have, lost its session during the last tasks, or could not start one of
       them; or standard output could not be written, or the system gave no
       thread
  2    usage or configuration; a command that cannot be found, or could not be
       executed for 5 s; a message that no worker can read
  3    the grace ended with tasks still running; they go back to the queue
  4    a signal ended --drain or --max-tasks before it was through
  69   no broker, or the connection lost, with --no-reconnect
  130  a second signal ended it

Command:
  standard input  the body, without the newline that ended its line: read it
                  with x=$(cat), for read x fails at an end without a newline.
                  The body takes the place of {}, too; put -- before {} where
                  it may begin with a dash. No shell is involved
  status 0        the task is done
  status 65       the task can never succeed: it is a dead letter at once
  any other       a status, a signal, or running past --task-timeout: it is
                  tried again later
  environment     TASK_ID TASK_QUEUE TASK_ATTEMPT TASK_MAX_ATTEMPTS
                  TASK_REDELIVERED TASK_WORKER, and what the task has of
                  TASK_CONTENT_TYPE TASK_PRIORITY TASK_ENQUEUED_AT
                  TASK_CORRELATION_ID TASK_REPLY_TO TASK_HEADER_<NAME>
  background      what it leaves there must not write to standard error for
                  long: the pipe is closed with the worker, or sooner. As the
                  first process of a container, the worker reaps it

Signals:
  first   nothing new is started, and what runs has --grace to finish
  second  what runs gets SIGTERM, and SIGKILL 5 s later
  third   what runs gets SIGKILL. What was not finished goes back to the queue;
          SIGKILL or SIGQUIT to the worker leaves its commands running

Events:
  started   a task is begun
  done      it is done, and acked
  retried   it failed, and waits for its next attempt
  dead      it failed for good, and is a dead letter
  failed    it failed and could not be handed over, so it goes back to the
            queue, uncounted; with --auto-ack it is lost
  returned  it is not finished here, and goes back to the queue
  orphaned  it ended after its session was lost, and may run twice
";

const ENVIRONMENT: &str = "  PATH            where COMMAND is looked for, unless it has a /
  TMPDIR          holds bodies of 64 KiB or more while their commands run; /tmp
                  by default
";

const LAST: &str = "
Files:
  --health-file  holds the process id, and is touched every 2 s while all is
                 well: every thread consumes, or works within --task-timeout,
                 and could start its last task. Older than 10 s it is stale
  --events       one object for each line: time (Unix seconds), event, task
                 (its id), attempt, thread, queue, ms (how long it ran), and
                 the reason of a failure. Where nobody reads a pipe for 2 s,
                 events are left out
  --json         one object, whatever ended it but options that cannot be
                 read: done retried dead returned seconds ended (drained,
                 max-tasks, signal or error), and if there are any, doubtful
                 (dead letters that may be there) and lost (by --auto-ack)

Examples:
  worker
  worker --queue mail --threads 4 -- ./send
  worker --queue convert --drain --task-timeout 5m -- gzip -9 -- {}
  worker --queue mail --health-file /tmp/worker.health --events events -- ./send

See also:
  producer(1), queuectl(1)
";

fn main() -> ExitCode {
    let options: Options = cli::parse();
    cli::init_logging();
    if !options.command.is_empty() {
        if let Some(status) = init::status_as_first_process() {
            return status.into();
        }
    }
    let output = Output::default();
    let ended = run(&options, &output).unwrap_or_else(|error| {
        // It never came to work.
        print_summary(&options, &output, None);
        Exit::for_error(&error)
    });
    ended.into()
}

fn run(options: &Options, output: &Output) -> Result<Exit, Error> {
    let mut worker = build(options)?;
    let command = command(options, output)?;
    if command.is_some() {
        hear_of_ended_commands()?;
    }
    let health_file = options.health_file.as_deref().and_then(location);
    if health_file.is_some() && health_file == options.events.as_deref().and_then(location) {
        return Err(Error::setting("--health-file", "it is the file of --events, too"));
    }
    let cancel_timeout = command.as_ref().map_or(Duration::ZERO, Command::cancel_timeout);
    let health =
        options.health_file.as_deref().map(|path| HealthFile::keep(path, options, &worker));
    let health = health.transpose()?;
    let patience = Patience { grace: options.grace, cancel_timeout, late: Exit::GraceExceeded };
    let (trigger, shutdown) = cli::stop_on_signals(patience)?;
    output.stop_when_unwritable(trigger);
    let events = options.events.as_deref().map(|path| EventLog::open(path, &shutdown));
    let events = events.transpose()?;
    if let Some(events) = events.clone() {
        worker = worker.observer(move |event| events.note(event));
    }
    let unfit = Arc::<OnceLock<String>>::default();
    let ended = match command {
        Some(command) => {
            let job = Job { command, output: output.clone(), unfit: Arc::clone(&unfit) };
            worker.run(job, &shutdown)
        }
        None => worker.run(Dots { output: output.clone() }, &shutdown),
    };
    drop(health);
    if let Some(events) = events {
        events.close();
    }
    let summary = worker.last_summary();
    if let Some(summary) = summary.filter(|summary| is_telling(summary, &ended)) {
        info!("{}", in_words(&summary));
    }
    print_summary(options, output, summary.as_ref());
    // The library's own record of it, where RUST_LOG does not leave that out.
    if let (Some(why), false) = (unfit.get(), log_enabled!(target: "rabbit_work", Level::Error)) {
        error!("{why}");
    }
    Ok(match ended {
        Ok(summary) => exit_for(&summary, options, output.error()),
        Err(error) => Exit::for_error(&error),
    })
}

/// Where nobody can read it, that is told already.
fn print_summary(options: &Options, output: &Output, summary: Option<&Summary>) {
    if options.json && output.error().is_none() {
        let _ = output.written(print_line(as_json(summary)));
    }
}

/// Where a file is or would be, however its path is spelt.
fn location(path: &Path) -> Option<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
    Some(folder.join(path.file_name()?))
}

/// Whether there is something to tell: not of a usage error before the first task.
fn is_telling(summary: &Summary, ended: &Result<Summary, Error>) -> bool {
    let Summary { done, retried, dead, failed, lost, returned, orphaned, .. } = summary;
    let worked = done + retried + dead + failed + lost + returned + orphaned > 0;
    ended.as_ref().err().is_none_or(|error| worked || error.is_transient())
}

/// The handler that runs the command, where there is one.
fn command(options: &Options, output: &Output) -> Result<Option<Command>, Error> {
    let Some((program, arguments)) = options.command.split_first() else {
        return if cli::has_two_dashes() {
            // `-- $JOB` with an empty JOB is not to have the tasks done by something else.
            Err(Error::setting("command", "there is no command after --"))
        } else if !options.print && !options.queue.is_the_tutorial_s() {
            let reason = format!(
                "there is none for the tasks of '{}'; put -- and a command behind the options, or \
                 say --print: then each task is printed, and gone",
                options.queue.name()
            );
            Err(Error::setting("command", reason))
        } else if is_read_only(&io::stdout()) {
            let reason = "it is not open for writing: what is received would be acked and not \
                          shown; where it may be lost, use >/dev/null";
            Err(Error::setting("standard output", reason))
        } else {
            Ok(None)
        };
    };
    let mut command = Command::new(program, arguments)?;
    if let Some(limit) = options.task_timeout {
        if limit.is_zero() {
            return Err(Error::setting("--task-timeout", "0 would end every command at once"));
        }
        command = command.time_limit(limit);
    }
    if options.tag {
        if is_unwritable(&io::stdout()) || is_unwritable(&io::stderr()) {
            let reason = "standard output or standard error is closed, not open for writing, or \
                          /dev/null opened for reading as well: what commands write would be \
                          lost; where it may be, use >/dev/null";
            return Err(Error::setting("--tag", reason));
        }
        let output = output.clone();
        command =
            command.tag_lines(move |stream, lines| output.written(cli::write_all(stream, lines)));
    }
    Ok(Some(command))
}

/// Ignored, as by some supervisors, SIGCHLD would leave us without any command's exit status; that
/// it is heard is enough. Heard where it was not ignored, it would wake our first thread for each
/// command, which costs a short one 7 %.
fn hear_of_ended_commands() -> Result<(), Error> {
    if is_ignored(SIGCHLD) == Some(false) {
        return Ok(());
    }
    let heard = signal_hook::flag::register(SIGCHLD, Arc::default());
    heard.map(drop).map_err(|error| Error::setting("signals", error.to_string()))
}

/// Whether whoever started us had this signal ignored, where the system tells (Linux).
fn is_ignored(signal: i32) -> Option<bool> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let ignored = u64::from_str_radix(ignored.trim(), 16).ok()?;
    Some(ignored >> (signal - 1) & 1 == 1)
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
    Ok(worker)
}

fn retry_policy(options: &Options) -> RetryPolicy {
    RetryPolicy::new()
        .max_attempts(options.max_attempts)
        .first_delay(options.retry_delay)
        .longest_delay(options.max_retry_delay)
}

/// What the worker itself writes. A worker whose output is lost does no good: it stops, and what
/// was not written goes back.
#[derive(Clone, Debug, Default)]
struct Output {
    lost: Arc<OnceLock<io::Error>>,
    trigger: Arc<OnceLock<Trigger>>,
}

impl Output {
    fn stop_when_unwritable(&self, trigger: Trigger) {
        let _ = self.trigger.set(trigger);
    }

    fn written(&self, result: io::Result<()>) -> io::Result<()> {
        result.map_err(|error| {
            let copy = io::Error::new(error.kind(), error.to_string());
            let _ = self.lost.set(error);
            if let Some(trigger) = self.trigger.get() {
                trigger.stop();
            }
            copy
        })
    }

    fn error(&self) -> Option<&io::Error> {
        self.lost.get()
    }
}

/// A command for each task.
struct Job {
    command: Command,
    output: Output,
    /// Why no task can be done here, once that is so.
    unfit: Arc<OnceLock<String>>,
}

impl Handler for Job {
    /// A command that failed because nobody reads our standard output any more (`| head -1`) is
    /// not at fault, and neither is its task: the worker stops.
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure> {
        let failed = match self.command.handle(delivery) {
            Err(failure) if has_no_reader(&io::stdout()) => failure,
            Err(Failure::StopWorker { reason, .. }) => {
                let _ = self.unfit.set(reason.clone());
                return Err(Failure::stop_worker(reason));
            }
            answer => return answer,
        };
        let _ = self.output.written(Err(io::ErrorKind::BrokenPipe.into()));
        Err(Failure::requeue(format!("nobody reads standard output any more: {failed}")))
    }

    fn cancel_timeout(&self) -> Duration {
        self.command.cancel_timeout()
    }
}

/// A pipe without a reader is in error, a socket or a terminal is hung up.
fn has_no_reader(output: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(output, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    polled.is_ok() && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// The tutorial's task: a second of work for each dot in the body.
struct Dots {
    output: Output,
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
    fn print(&self, line: String) -> Result<(), Failure> {
        let written = self.output.written(print_line(line));
        written.map_err(|error| {
            Failure::requeue(format!("standard output cannot be written: {error}"))
        })
    }
}

/// The health file, kept fresh by a thread while the worker is sound. Dropping it removes it.
#[derive(Clone)]
struct HealthFile {
    /// At the end of this the thread removes the file, and ends.
    end: Trigger,
    /// Closed when it has.
    removed: Receiver<Infallible>,
}

/// Well below the 10 s after which the file counts as stale.
const TOUCH: Duration = Duration::from_secs(2);
/// What ending a command at its time limit takes on top of that.
const ENDING: Duration = Duration::from_secs(6);
/// More bytes than a process id and a newline have.
const LONGEST_HEALTH: u64 = 16;
/// What removing the file may take: it may be on a disk that does not answer.
const REMOVING: Duration = Duration::from_secs(1);

impl HealthFile {
    fn keep(path: &Path, options: &Options, worker: &Worker) -> Result<HealthFile, Error> {
        let unfit = |error: io::Error| {
            Error::setting("--health-file", format!("{}: {error}", path.display()))
        };
        refuse_where_a_stream_goes("--health-file", path)?;
        // Nothing is sound yet; but whether it can be written is better told now.
        spare_what_is_not_ours(path).and_then(|()| touch(path)).map_err(unfit)?;
        fs::remove_file(path).map_err(unfit)?;
        let health = worker.health();
        let limit = options.task_timeout.map(|limit| limit.saturating_add(ENDING));
        let (end, ended) = shutdown();
        let (last, removed) = bounded(0);
        let path = path.to_path_buf();
        let keep_fresh = move || {
            let _last = last;
            while !ended.wait(TOUCH) {
                if !health.is_healthy(limit) {
                    continue;
                }
                if let Err(error) = touch(&path) {
                    warn!("--health-file cannot be written: {error}");
                }
            }
            let _ = fs::remove_file(&path);
        };
        thread::Builder::new().name("health".into()).spawn(keep_fresh).map_err(unfit)?;
        let file = HealthFile { end, removed };
        let at_the_last = file.clone();
        cli::at_last_resort(move || drop(at_the_last));
        Ok(file)
    }
}

impl Drop for HealthFile {
    fn drop(&mut self) {
        self.end.stop();
        let _ = self.removed.recv_timeout(REMOVING);
    }
}

/// A device, a link, or a file with something else in it, is not ours to write and remove.
fn spare_what_is_not_ours(path: &Path) -> io::Result<()> {
    // What else may be wrong with it shows when it is written.
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.is_file() {
        return Err(io::Error::other("it is there, and no regular file"));
    }
    let mut start = Vec::new();
    File::open(path)?.take(LONGEST_HEALTH).read_to_end(&mut start)?;
    let is_ours = start.iter().all(|it| it.is_ascii_digit() || *it == b'\n');
    if is_ours && found.len() < LONGEST_HEALTH {
        return Ok(());
    }
    Err(io::Error::other("it is there, and holds something else than a process id"))
}

fn touch(path: &Path) -> io::Result<()> {
    fs::write(path, format!("{}\n", std::process::id()))
}

fn in_words(summary: &Summary) -> String {
    let Summary { done, retried, dead, failed, returned, orphaned, running, elapsed, .. } = summary;
    let returned = returned + failed;
    let if_any = |count: u64, what: &str| match count {
        0 => String::new(),
        _ => format!(" {count} {what},"),
    };
    let (dead_unconfirmed, lost) =
        (if_any(summary.dead_unconfirmed, "maybe dead"), if_any(summary.lost, "lost"));
    format!(
        "{done} tasks done, {retried} retried, {dead} dead,{dead_unconfirmed}{lost} {returned} given back, \
         {orphaned} may run twice, {running} still running, in {:.1} s",
        elapsed.as_secs_f64()
    )
}

/// Of a worker that never came to work, without a summary.
fn as_json(summary: Option<&Summary>) -> serde_json::Value {
    let count = |of: fn(&Summary) -> u64| summary.map_or(0, of);
    let mut object = json!({
        "done": count(|it| it.done),
        "retried": count(|it| it.retried),
        "dead": count(|it| it.dead),
        "returned": count(|it| it.returned + it.failed),
        "seconds": summary.map_or(0.0, |it| it.elapsed.as_secs_f64()),
        "ended": ended_by(summary.map_or(StopReason::Failed, |it| it.ended)),
    });
    // What hardly any run has, and a status of 1 may come from.
    for (name, count) in
        [("doubtful", count(|it| it.dead_unconfirmed)), ("lost", count(|it| it.lost))]
    {
        if count > 0 {
            object[name] = json!(count);
        }
    }
    object
}

fn ended_by(ended: StopReason) -> &'static str {
    match ended {
        StopReason::Drained => "drained",
        StopReason::MaxTasks => "max-tasks",
        StopReason::Stopped | StopReason::GraceExceeded | StopReason::Aborted => "signal",
        _ => "error",
    }
}

fn exit_for(summary: &Summary, options: &Options, unwritable: Option<&io::Error>) -> Exit {
    let Summary { done, retried, dead, dead_unconfirmed, failed, lost, .. } = summary;
    let ran = done + retried + dead + failed + lost;
    let is_batch = options.drain || options.max_tasks.is_some();
    if let Some(error) = unwritable {
        error!("standard output cannot be written: {error}");
    }
    match summary.ended {
        StopReason::Aborted if cli::is_interrupted() => Exit::Interrupted,
        StopReason::Aborted | StopReason::GraceExceeded => Exit::GraceExceeded,
        StopReason::HandlerStopped => Exit::Usage,
        _ if unwritable.is_some() => Exit::Failed,
        StopReason::Stopped if is_batch => Exit::Unfinished,
        StopReason::Drained | StopReason::MaxTasks if dead + dead_unconfirmed + lost > 0 => {
            Exit::Failed
        }
        // What could not be started, or may run twice, is not known to have run.
        StopReason::MaxTasks if options.max_tasks.is_some_and(|asked| ran < asked) => Exit::Failed,
        _ => Exit::Success,
    }
}
