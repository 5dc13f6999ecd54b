//! `producer`: puts tasks on a RabbitMQ queue from a shell, each one confirmed.

mod cli;
mod input;
mod manual;
mod progress;
mod report;
#[cfg(unix)]
mod streams;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use cli::{BrokerArgs, Exit, Patience, QueueArgs, parse_duration, print_line};
use input::{Bodies, End, Piece, Source};
use rabbit_work::{Error, Producer, Shutdown, Task};
use report::{Report, Summary};

/// Put tasks on a RabbitMQ queue, each persistent, mandatory and confirmed by the broker.
#[derive(Debug, Parser)]
#[command(name = "producer", version, after_long_help = manual::sections(MANUAL, "", LAST))]
pub(crate) struct Options {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    queue: QueueArgs,

    /// One task for each line of FILE, or of standard input
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = "-",
        conflicts_with_all = ["message", "repeat", "body_file"]
    )]
    lines: Option<PathBuf>,

    /// As --lines, with a NUL after each task instead of a newline
    #[arg(long, conflicts_with_all = ["message", "repeat", "body_file"])]
    null: bool,

    /// One task with the whole of FILE as its body; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "message")]
    body_file: Option<PathBuf>,

    /// Publish the message this many times
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,

    /// Publish tasks that a broker restart loses
    #[arg(long)]
    transient: bool,

    /// Hold each task back this long before it comes to the queue. It is rounded up, see Durations
    #[arg(long, value_name = "DUR", value_parser = parse_duration, conflicts_with = "expiration")]
    delay: Option<Duration>,

    /// Let the broker drop a task that no worker has taken after this long; from a quorum queue
    /// it goes to the dead letters. Not with --delay: the broker would cut the delay short, and
    /// forget the expiration after it
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    expiration: Option<Duration>,

    /// The tasks' priority; it counts in a queue that was declared with priorities
    #[arg(long, value_name = "N")]
    priority: Option<u8>,

    /// A header of each task; may be repeated
    #[arg(long, value_name = "K=V", value_parser = parse_header)]
    header: Vec<(String, String)>,

    /// The media type of each task's body
    #[arg(long, value_name = "T")]
    content_type: Option<String>,

    /// How many publishes may be in flight
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,

    /// How long to go on trying
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,

    /// Write the tasks that were not confirmed to FILE, ready to be fed again. What was there
    /// before is gone
    #[arg(long, value_name = "FILE")]
    failed: Option<PathBuf>,

    /// Print a summary object on standard output at exit; see Files for its keys
    #[arg(long)]
    json: bool,

    /// The words of one task's body, joined by one space; without any, Hello World! goes to
    /// task_queue, and another --queue is refused
    #[arg(value_name = "MESSAGE")]
    message: Vec<OsString>,
}

const MANUAL: &str = "\
Exit status:
  0    every task is confirmed and routed
  1    at least one is not, or the input was not read to its end; or standard
       output could not be written, or the system gave no thread
  2    usage or configuration: a bad URL, a refused login, a queue declared
       otherwise; no MESSAGE for another queue than task_queue
  69   no broker was reached within --timeout
  130  a second signal ended it

Signals:
  first   no further task is read; those in flight are waited for, for
          --timeout at most. The log, and read in --json, say how far it came:
          go on with the next line
  second  ends it now
";

const LAST: &str = "
Files:
  --lines   a line of more than 128 MiB, which no broker takes, is named,
            counted as not confirmed, and those behind it go on; so is a task
            of --null
  --failed  has the tasks that were not confirmed, byte for byte: one for each
            line; with --null, a NUL after each; with --body-file, the body
            alone. When the broker is not reached, or a task runs out of time,
            it gets the rest of the input, too. Feed it from another name: what
            is there at the start is gone
  --json    one object, whatever ended it but options that cannot be read:
            published confirmed nacked returned unconfirmed seconds, and read
            (tasks), where it did not come to the end of the input

Examples:
  producer First message.
  find photos -name '*.jpg' -print0 | producer --queue photos --null
  producer --queue mail --lines list --failed not-sent --timeout 5m
  producer --queue reports --delay 10m --header kind=weekly '2026 week 1'

See also:
  worker(1), queuectl(1)
";

fn main() -> ExitCode {
    let options: Options = cli::parse();
    cli::init_logging();
    let ended = run(&options).unwrap_or_else(|error| {
        if options.json {
            // The error says more than that this cannot be written.
            let _ = print_line(report::of_nothing());
        }
        Exit::for_error(&error)
    });
    ended.into()
}

fn run(options: &Options) -> Result<Exit, Error> {
    let broker = options.broker.broker()?;
    refuse_to_guess(options)?;
    let source = source(options);
    // The same for each task, whatever its body.
    task(Vec::new(), options).validate()?;
    if options.failed.is_some() {
        source.validate_for_another_feed()?;
    }
    if options.timeout.is_zero() {
        return Err(Error::setting("--timeout", "0 would wait for no broker"));
    }
    // Opened first: where there is no input, what failed before is still to be fed.
    let bodies = Bodies::open(&source)?;
    let summary = if options.json { Summary::Json } else { Summary::Nothing };
    let mut report = Report::open(&source, options.failed.as_deref(), summary)?;
    let patience =
        Patience { grace: options.timeout, cancel_timeout: Duration::ZERO, late: Exit::Failed };
    let (_trigger, shutdown) = cli::stop_on_signals(patience)?;
    let queue = options.queue.queue();
    if options.priority.is_some() && !queue.has_priorities() {
        log::warn!(
            "--priority has no effect: queue '{}' is declared without priorities, which a classic \
             queue needs; give producers and workers --max-priority N",
            queue.name()
        );
    }
    let mut producer = Producer::new(&broker, &queue)
        .window(options.window as usize)
        .timeout(options.timeout)
        .shutdown(&shutdown);
    if let Err(error) = producer.connect() {
        return not_connected(&error, &bodies, &shutdown, report);
    }
    let end = publish_all(&mut producer, &bodies, &shutdown, &mut report, options);
    report.close(&end)
}

/// Nothing was published: the input is not confirmed, all of it.
fn not_connected(
    error: &Error,
    bodies: &Bodies,
    shutdown: &Shutdown,
    mut report: Report,
) -> Result<Exit, Error> {
    report.end_progress();
    if shutdown.is_stopping() {
        report.note_unsent(bodies.read_ahead());
        return report.close(&End::Stopped);
    }
    let exit = Exit::for_error(error);
    let end = report.keep_rest(bodies, shutdown, End::GaveUp);
    if report.failed.is_some() {
        report.flush_failed();
        report.tell_end(&end);
    }
    report.print_summary(&end);
    Ok(if cli::is_interrupted() { Exit::Interrupted } else { exit })
}

fn publish_all(
    producer: &mut Producer,
    bodies: &Bodies,
    shutdown: &Shutdown,
    report: &mut Report,
    options: &Options,
) -> End {
    let end = loop {
        if !bodies.are_coming(shutdown) {
            // Nobody reads confirms, or publishes again, while we wait for the next body.
            report.note(producer.flush());
            if report.gave_up {
                break End::GaveUp;
            }
        }
        let body = match bodies.next(shutdown) {
            Ok(Piece::Body(body)) => body,
            Ok(too_long) => {
                report.note_unsent([too_long].into_iter());
                continue;
            }
            Err(end) => break end,
        };
        report.note_read();
        report.note(producer.send(task(body, options)));
        if report.gave_up {
            break End::GaveUp;
        }
    };
    report.note(producer.flush());
    match end {
        End::Finished => end,
        End::GaveUp => report.keep_rest(bodies, shutdown, end),
        End::Stopped | End::Unreadable(_) => {
            report.note_unsent(bodies.read_ahead());
            end
        }
    }
}

fn source(options: &Options) -> Source {
    let end = if options.null { 0 } else { b'\n' };
    match (&options.lines, &options.body_file) {
        (Some(path), _) => Source::Pieces(path.clone(), end),
        (None, _) if options.null => Source::Pieces("-".into(), end),
        (None, Some(path)) => Source::Whole(path.clone(), options.repeat),
        (None, None) if options.message.is_empty() => {
            Source::Words(b"Hello World!".to_vec(), options.repeat)
        }
        (None, None) => Source::Words(join(&options.message), options.repeat),
    }
}

/// Hello World! is for the tutorial's queue; where the words are missing for another one, they, or
/// an input that was to be read, were meant.
fn refuse_to_guess(options: &Options) -> Result<(), Error> {
    let reads = options.lines.is_some() || options.null || options.body_file.is_some();
    if reads || !options.message.is_empty() {
        return Ok(());
    }
    if cli::has_two_dashes() {
        return Err(Error::setting("MESSAGE", "there is none after --"));
    }
    if !options.queue.is_the_tutorial_s() {
        return Err(Error::setting("MESSAGE", UNREAD));
    }
    #[cfg(unix)]
    refuse_unread_input()?;
    Ok(())
}

/// A file, or a pipe that brings something, was meant to be read. One that brings nothing may be
/// what whoever tries it out was started with.
#[cfg(unix)]
fn refuse_unread_input() -> Result<(), Error> {
    use std::os::unix::fs::FileTypeExt;

    let stdin = std::io::stdin();
    let Some(kind) = streams::what_it_is(&stdin) else { return Ok(()) };
    let is_pipe = kind.is_fifo() || kind.is_socket();
    if kind.is_file() || is_pipe && streams::has_something(&stdin) {
        return Err(Error::setting("MESSAGE", UNREAD));
    }
    if is_pipe {
        log::warn!("a MESSAGE: {UNREAD}");
    }
    Ok(())
}

const UNREAD: &str = "there is none, and standard input is not read without --lines or --null";

/// Any bytes, as a body is.
fn join(words: &[OsString]) -> Vec<u8> {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_encoded_bytes()).collect();
    words.join(&b' ')
}

fn task(body: Vec<u8>, options: &Options) -> Task {
    let mut task = Task::new(body);
    if options.transient {
        task = task.transient();
    }
    if let Some(delay) = options.delay {
        task = task.with_delay(delay);
    }
    if let Some(expiration) = options.expiration {
        task = task.with_expiration(expiration);
    }
    if let Some(priority) = options.priority {
        task = task.with_priority(priority);
    }
    for (name, value) in &options.header {
        task = task.with_header(name, value);
    }
    if let Some(content_type) = &options.content_type {
        task = task.with_content_type(content_type);
    }
    task
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, _)) if name.starts_with("x-rabbit-work-") => {
            Err("names that begin with x-rabbit-work- are the worker's own".into())
        }
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("it has the form NAME=VALUE".into()),
    }
}
