//! `producer`: puts tasks on a RabbitMQ queue from a shell, each one confirmed.

mod cli;

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use cli::{BrokerArgs, Exit, Patience, QueueArgs, parse_duration, print_line};
use crossbeam_channel::{Receiver, Sender, bounded, select_biased};
use indicatif::{ProgressBar, ProgressStyle};
use log::{error, info, warn};
use rabbit_work::{Error, Outcome, Producer, Receipt, Shutdown, Task};
use serde_json::json;

/// Put tasks on a RabbitMQ queue, each persistent, mandatory and confirmed by the broker.
///
/// Exit status: 0 every task confirmed and routed; 1 at least one was not; 2 usage or
/// configuration; 69 broker unreachable; 130 stopped by a second signal.
#[derive(Debug, Parser)]
#[command(name = "producer", version)]
struct Options {
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
        conflicts_with_all = ["message", "repeat"]
    )]
    lines: Option<PathBuf>,

    /// Publish the message this many times
    #[arg(long, value_name = "N", default_value = "1")]
    repeat: u64,

    /// Publish tasks that a broker restart loses
    #[arg(long)]
    transient: bool,

    /// How many publishes may be in flight
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,

    /// How long to go on trying
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,

    /// Write the tasks that were not confirmed to FILE, ready to be fed again
    #[arg(long, value_name = "FILE")]
    failed: Option<PathBuf>,

    /// Print one summary object on standard output: published confirmed nacked returned
    /// unconfirmed seconds
    #[arg(long)]
    json: bool,

    /// The words of one task's body, joined by one space
    #[arg(value_name = "MESSAGE", default_value = "Hello World!", hide_default_value = true)]
    message: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    cli::init_logging();
    run(&options).unwrap_or_else(|error| Exit::for_error(&error)).into()
}

fn run(options: &Options) -> Result<Exit, Error> {
    let broker = options.broker.broker()?;
    let mut report = Report::open(options)?;
    let bodies = Bodies::open(options)?;
    let patience =
        Patience { grace: options.timeout, wind_down: Duration::ZERO, late: Exit::Failed };
    let (_trigger, shutdown) = cli::stop_on_signals(patience)?;
    let mut producer = Producer::new(&broker, &options.queue.queue())
        .window(options.window as usize)
        .timeout(options.timeout)
        .heed(&shutdown);
    if let Err(error) = producer.connect() {
        let stopped = shutdown.is_stopping();
        return if stopped { Ok(stopped_early(&shutdown)) } else { Err(error) };
    }
    let end = publish_all(&mut producer, &bodies, &shutdown, &mut report, options);
    report.close(&end, &shutdown)
}

fn stopped_early(shutdown: &Shutdown) -> Exit {
    warn!("stopped before anything was published");
    if shutdown.is_aborting() { Exit::Interrupted } else { Exit::Failed }
}

/// Why no further task was read.
#[derive(Debug)]
enum End {
    Finished,
    Stopped,
    GaveUp,
    Unreadable(io::Error),
}

fn publish_all(
    producer: &mut Producer,
    bodies: &Bodies,
    shutdown: &Shutdown,
    report: &mut Report,
    options: &Options,
) -> End {
    let end = loop {
        let body = match bodies.next(shutdown) {
            Ok(body) => body,
            Err(end) => break end,
        };
        let task = if options.transient { Task::new(body).transient() } else { Task::new(body) };
        report.read += 1;
        report.note(producer.send(task));
        if report.gave_up {
            break End::GaveUp;
        }
    };
    report.note(producer.flush());
    end
}

/// Where the tasks' bodies come from. Read by a thread of its own: reading may block for ever,
/// and a stop must not.
struct Bodies {
    receiver: Receiver<io::Result<Vec<u8>>>,
}

/// The longest line taken; RabbitMQ takes no longer body either.
const LONGEST_LINE: u64 = 128 * 1024 * 1024;

impl Bodies {
    fn open(options: &Options) -> Result<Bodies, Error> {
        let (sender, receiver) = bounded(256);
        let spawned = match &options.lines {
            None => {
                let body = options.message.join(" ").into_bytes();
                let repeat = options.repeat;
                spawn_reader(move || {
                    for _ in 0..repeat {
                        if sender.send(Ok(body.clone())).is_err() {
                            return;
                        }
                    }
                })
            }
            Some(path) if path == Path::new("-") => {
                spawn_reader(move || send_lines(io::stdin().lock(), &sender))
            }
            Some(path) => {
                let unreadable = |error| Error::setting("--lines", show(path, &error));
                let file = File::open(path).map_err(unreadable)?;
                spawn_reader(move || send_lines(BufReader::new(file), &sender))
            }
        };
        spawned.map_err(|error| Error::setting("reading", error.to_string()))?;
        Ok(Bodies { receiver })
    }

    /// The next body, or why there is none.
    fn next(&self, shutdown: &Shutdown) -> Result<Vec<u8>, End> {
        select_biased! {
            recv(shutdown.stopping()) -> _ => Err(End::Stopped),
            recv(self.receiver) -> body => match body {
                Ok(body) => body.map_err(End::Unreadable),
                Err(_) => Err(End::Finished),
            },
        }
    }
}

fn spawn_reader(read: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("reader".into()).spawn(read).map(drop)
}

fn send_lines(mut input: impl BufRead, sender: &Sender<io::Result<Vec<u8>>>) {
    while let Some(line) = next_line(&mut input).transpose() {
        let failed = line.is_err();
        if sender.send(line).is_err() || failed {
            return;
        }
    }
}

/// The next line without its newline; bytes as they are.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = input.take(LONGEST_LINE + 1).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if read as u64 > LONGEST_LINE {
        let error = format!("a line has more than {LONGEST_LINE} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok((read > 0).then_some(line))
}

/// What became of the tasks, for people, for scripts, and for another try.
struct Report {
    started: Instant,
    sent: Sent,
    summary: Summary,
    failed: Option<BufWriter<File>>,
    progress: ProgressBar,
    /// How many tasks were read from the input.
    read: u64,
    confirmed: u64,
    nacked: u64,
    returned: u64,
    unconfirmed: u64,
    /// A task ran out of time: there is no sense in reading on.
    gave_up: bool,
    unwritable: Option<io::Error>,
}

/// What is printed at the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Summary {
    Json,
    Nothing,
}

/// What is printed for each confirmed task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Line,
    Nothing,
}

impl Report {
    fn open(options: &Options) -> Result<Report, Error> {
        let failed =
            options.failed.as_deref().map(|path| open_failed(path, options)).transpose()?;
        let quiet = options.json || options.lines.is_some();
        Ok(Report {
            started: Instant::now(),
            sent: if quiet { Sent::Nothing } else { Sent::Line },
            summary: if options.json { Summary::Json } else { Summary::Nothing },
            failed,
            progress: progress(options),
            read: 0,
            confirmed: 0,
            nacked: 0,
            returned: 0,
            unconfirmed: 0,
            gave_up: false,
            unwritable: None,
        })
    }

    fn note(&mut self, receipts: Vec<Receipt>) {
        for receipt in receipts {
            if receipt.outcome == Outcome::Confirmed {
                self.note_confirmed(&receipt.task);
            } else {
                self.note_failed(&receipt);
            }
        }
    }

    fn note_confirmed(&mut self, task: &Task) {
        self.confirmed += 1;
        self.progress.inc(1);
        if self.sent == Sent::Line && self.unwritable.is_none() {
            let line = format!(" [x] Sent '{}'", String::from_utf8_lossy(task.body()));
            self.unwritable = print_line(line).err();
        }
    }

    fn note_failed(&mut self, receipt: &Receipt) {
        match receipt.outcome {
            Outcome::Nacked => self.nacked += 1,
            Outcome::Returned { .. } => self.returned += 1,
            _ => {
                self.unconfirmed += 1;
                self.gave_up = true;
            }
        }
        // One line says it; a million would bury it.
        if self.not_confirmed() == 1 {
            let id = receipt.task.id().unwrap_or("without an id");
            error!("task {id}: {}", receipt.outcome);
        }
        if let Some(failed) = &mut self.failed {
            let written =
                failed.write_all(receipt.task.body()).and_then(|()| failed.write_all(b"\n"));
            if let Err(error) = written {
                error!("--failed cannot be written: {error}");
                self.failed = None;
            }
        }
    }

    fn not_confirmed(&self) -> u64 {
        self.nacked + self.returned + self.unconfirmed
    }

    fn close(mut self, end: &End, shutdown: &Shutdown) -> Result<Exit, Error> {
        self.progress.finish_and_clear();
        if let Some(failed) = &mut self.failed {
            failed.flush().map_err(|error| Error::setting("--failed", error.to_string()))?;
        }
        self.tell_end(end);
        if self.summary == Summary::Json && self.unwritable.is_none() {
            self.unwritable = print_line(self.as_json()).err();
        }
        Ok(match end {
            _ if shutdown.is_aborting() => Exit::Interrupted,
            End::Finished if self.not_confirmed() == 0 => self.exit_as_printed(),
            _ => Exit::Failed,
        })
    }

    fn tell_end(&self, end: &End) {
        let read = self.read;
        match end {
            End::Finished => {}
            End::Stopped => warn!("stopped after {read} tasks were read"),
            End::GaveUp => error!("gave up after {read} tasks were read; the rest was not"),
            End::Unreadable(error) => error!("stopped after {read} tasks were read: {error}"),
        }
        if self.sent == Sent::Nothing {
            let (confirmed, failed) = (self.confirmed, self.not_confirmed());
            let seconds = self.started.elapsed().as_secs_f64();
            info!("{confirmed} tasks confirmed and {failed} not, in {seconds:.1} s");
        }
    }

    fn as_json(&self) -> serde_json::Value {
        json!({
            "published": self.confirmed + self.not_confirmed(),
            "confirmed": self.confirmed,
            "nacked": self.nacked,
            "returned": self.returned,
            "unconfirmed": self.unconfirmed,
            "seconds": self.started.elapsed().as_secs_f64(),
        })
    }

    /// Every task is confirmed, but whoever reads our output may not know: a reader that went
    /// away did not want to, a full disk is an error.
    fn exit_as_printed(&self) -> Exit {
        match &self.unwritable {
            None => Exit::Success,
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
            Some(error) => {
                error!("every task is confirmed, but standard output cannot be written: {error}");
                Exit::Failed
            }
        }
    }
}

fn open_failed(path: &Path, options: &Options) -> Result<BufWriter<File>, Error> {
    let input = options.lines.as_deref().and_then(|input| input.canonicalize().ok());
    if input.is_some() && input == path.canonicalize().ok() {
        return Err(Error::setting("--failed", "it would overwrite the input"));
    }
    let file =
        File::create(path).map_err(|error| Error::setting("--failed", show(path, &error)))?;
    Ok(BufWriter::new(file))
}

/// A bar on a terminal, for long input; nothing elsewhere.
fn progress(options: &Options) -> ProgressBar {
    if options.lines.is_none() {
        return ProgressBar::hidden();
    }
    let template = "{spinner} {human_pos} confirmed, {per_sec}, {elapsed}";
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::no_length();
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar
}

fn show(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
