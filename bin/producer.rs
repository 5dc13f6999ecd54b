//! `producer`: puts tasks on a RabbitMQ queue from a shell, each one confirmed.

mod cli;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use cli::{BrokerArgs, Exit, Patience, QueueArgs, parse_duration, print_line};
use crossbeam_channel::{Receiver, Select, Sender, bounded, select_biased};
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
    #[arg(long, value_name = "N", default_value = "1")]
    repeat: u64,

    /// Publish tasks that a broker restart loses
    #[arg(long)]
    transient: bool,

    /// Hold each task back this long before it comes to the queue
    #[arg(long, value_name = "DUR", value_parser = parse_duration, conflicts_with = "expiration")]
    delay: Option<Duration>,

    /// Let the broker drop a task that no worker has taken after this long. Not with --delay:
    /// the broker would cut the delay short, and forget the expiration after it
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

    /// Write the tasks that were not confirmed to FILE, byte for byte and ready to be fed again:
    /// one for each line; with --null, a NUL after each; with --body-file, the body alone. When
    /// the broker is not reached, or a task runs out of time, the rest of the input is written
    /// there unpublished. After a signal the rest is not read: the log says how many tasks were
    #[arg(long, value_name = "FILE")]
    failed: Option<PathBuf>,

    /// Print one summary object on standard output: published confirmed nacked returned
    /// unconfirmed seconds
    #[arg(long)]
    json: bool,

    /// The words of one task's body, joined by one space
    #[arg(value_name = "MESSAGE", default_value = "Hello World!", hide_default_value = true)]
    message: Vec<OsString>,
}

fn main() -> ExitCode {
    let options: Options = cli::parse();
    cli::init_logging();
    run(&options).unwrap_or_else(|error| Exit::for_error(&error)).into()
}

fn run(options: &Options) -> Result<Exit, Error> {
    let broker = options.broker.broker()?;
    let source = Source::of(options);
    let mut report = Report::open(&source, options)?;
    let bodies = Bodies::open(&source, options)?;
    let patience =
        Patience { grace: options.timeout, wind_down: Duration::ZERO, late: Exit::Failed };
    let (_trigger, shutdown) = cli::stop_on_signals(patience)?;
    let mut producer = Producer::new(&broker, &options.queue.queue())
        .window(options.window as usize)
        .timeout(options.timeout)
        .heed(&shutdown);
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
    if shutdown.is_stopping() {
        report.note_unsent(bodies.read_ahead());
        return report.close(&End::Stopped);
    }
    let exit = Exit::for_error(error);
    if report.failed.is_some() {
        let end = report.keep_rest(bodies, shutdown, End::GaveUp);
        report.flush_failed();
        report.tell_end(&end);
    }
    Ok(if cli::is_interrupted() { Exit::Interrupted } else { exit })
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
        if !bodies.are_coming(shutdown) {
            // Nobody reads confirms, or publishes again, while we wait for the next body.
            report.note(producer.flush());
            if report.gave_up {
                break End::GaveUp;
            }
        }
        let body = match bodies.next(shutdown) {
            Ok(body) => body,
            Err(end) => break end,
        };
        report.read += 1;
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
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("it has the form NAME=VALUE".into()),
    }
}

/// Where the tasks' bodies come from.
#[derive(Debug)]
enum Source {
    /// The words of the command line, so many times.
    Words(u64),
    /// A whole file, so many times.
    Whole(PathBuf, u64),
    /// The pieces of a file, each ended by this byte.
    Pieces(PathBuf, u8),
}

impl Source {
    fn of(options: &Options) -> Source {
        let end = if options.null { 0 } else { b'\n' };
        match (&options.lines, &options.body_file) {
            (Some(path), _) => Source::Pieces(path.clone(), end),
            (None, _) if options.null => Source::Pieces("-".into(), end),
            (None, Some(path)) => Source::Whole(path.clone(), options.repeat),
            (None, None) => Source::Words(options.repeat),
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Source::Words(_) => None,
            Source::Whole(path, _) | Source::Pieces(path, _) => Some(path),
        }
    }

    /// What follows each task where they are written down.
    fn end(&self) -> &'static [u8] {
        match self {
            Source::Pieces(_, 0) => b"\0",
            Source::Whole(..) => b"",
            Source::Words(_) | Source::Pieces(..) => b"\n",
        }
    }
}

/// The bodies as they are read, by a thread of its own: reading may block for ever, and a stop
/// must not.
struct Bodies {
    receiver: Receiver<io::Result<Vec<u8>>>,
}

/// The longest body taken; RabbitMQ takes no longer one either.
const LONGEST_BODY: u64 = 128 * 1024 * 1024;

/// An input that pauses for longer than this is not a stream of tasks in full flow.
const LULL: Duration = Duration::from_millis(50);

impl Bodies {
    fn open(source: &Source, options: &Options) -> Result<Bodies, Error> {
        let (sender, receiver) = bounded(256);
        let spawned = match source {
            Source::Words(count) => {
                let (body, count) = (join(&options.message), *count);
                spawn_reader(move || repeat(&body, count, &sender))
            }
            Source::Whole(path, count) => {
                let (body, count) = (read_whole(path)?, *count);
                spawn_reader(move || repeat(&body, count, &sender))
            }
            Source::Pieces(path, end) => {
                let (input, end) = (open_input("--lines", path)?, *end);
                spawn_reader(move || send_pieces(BufReader::new(input), end, &sender))
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

    /// Waits a moment for the input to go on or to end; says whether it does.
    fn are_coming(&self, shutdown: &Shutdown) -> bool {
        let mut ready = Select::new();
        ready.recv(&self.receiver);
        ready.recv(shutdown.stopping());
        ready.ready_timeout(LULL).is_ok()
    }

    /// What was read and not asked for.
    fn read_ahead(&self) -> impl Iterator<Item = Vec<u8>> {
        // No more than that: the reader goes on while there is room.
        let count = self.receiver.len();
        self.receiver.try_iter().take(count).filter_map(Result::ok)
    }
}

/// Any bytes, as a body is.
fn join(words: &[OsString]) -> Vec<u8> {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_encoded_bytes()).collect();
    words.join(&b' ')
}

fn spawn_reader(read: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("reader".into()).spawn(read).map(drop)
}

fn repeat(body: &[u8], count: u64, sender: &Sender<io::Result<Vec<u8>>>) {
    for _ in 0..count {
        if sender.send(Ok(body.to_vec())).is_err() {
            return;
        }
    }
}

fn open_input(option: &'static str, path: &Path) -> Result<Box<dyn Read + Send>, Error> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path).map_err(|error| Error::setting(option, show(path, &error)))?;
    Ok(Box::new(file))
}

fn read_whole(path: &Path) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    let input = open_input("--body-file", path)?;
    let read = input.take(LONGEST_BODY + 1).read_to_end(&mut body);
    read.map_err(|error| Error::setting("--body-file", show(path, &error)))?;
    if body.len() as u64 > LONGEST_BODY {
        let error = format!("{}: it has more than {LONGEST_BODY} bytes", path.display());
        return Err(Error::setting("--body-file", error));
    }
    Ok(body)
}

fn send_pieces(mut input: impl BufRead, end: u8, sender: &Sender<io::Result<Vec<u8>>>) {
    while let Some(piece) = next_piece(&mut input, end).transpose() {
        let failed = piece.is_err();
        if sender.send(piece).is_err() || failed {
            return;
        }
    }
}

/// The next piece of the input without the byte that ends it; all others as they are.
fn next_piece(input: &mut impl BufRead, end: u8) -> io::Result<Option<Vec<u8>>> {
    let mut piece = Vec::new();
    let read = input.take(LONGEST_BODY + 1).read_until(end, &mut piece)?;
    if piece.last() == Some(&end) {
        piece.pop();
    } else if read as u64 > LONGEST_BODY {
        let error = format!("a task has more than {LONGEST_BODY} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok((read > 0).then_some(piece))
}

/// How far it is, on a terminal, for long input; nothing elsewhere.
struct Progress {
    bar: ProgressBar,
    unit: Unit,
    started: Instant,
    shown: Instant,
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Tasks,
    /// The bytes of the input, where how many tasks it has is not known.
    Bytes,
}

/// No eye sees more often.
const SHOW_AGAIN: Duration = Duration::from_millis(100);

impl Progress {
    fn new(source: &Source) -> Progress {
        let (bar, unit) = match source {
            Source::Words(count) | Source::Whole(_, count) if *count > 1 => {
                (ProgressBar::new(*count), Unit::Tasks)
            }
            Source::Words(_) | Source::Whole(..) => (ProgressBar::hidden(), Unit::Tasks),
            Source::Pieces(path, _) => match length(path) {
                Some(length) => (ProgressBar::new(length), Unit::Bytes),
                None => (ProgressBar::no_length(), Unit::Bytes),
            },
        };
        let template = match bar.length() {
            Some(_) => "{wide_bar} {percent}%  {msg}, {eta} left",
            None => "{spinner} {msg}, {elapsed}",
        };
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        let now = Instant::now();
        Progress { bar, unit, started: now, shown: now }
    }

    fn note(&mut self, body: &[u8], confirmed: u64, failed: u64) {
        self.bar.inc(match self.unit {
            Unit::Tasks => 1,
            Unit::Bytes => body.len() as u64 + 1,
        });
        if self.shown.elapsed() >= SHOW_AGAIN {
            self.shown = Instant::now();
            let rate = confirmed as f64 / self.started.elapsed().as_secs_f64();
            self.bar.set_message(format!("{confirmed} confirmed, {failed} failed, {rate:.0}/s"));
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// How many bytes the input has, where it is a file.
fn length(path: &Path) -> Option<u64> {
    metadata(path).filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// Of the input.
fn metadata(path: &Path) -> Option<fs::Metadata> {
    if path == Path::new("-") { stdin_metadata() } else { fs::metadata(path).ok() }
}

#[cfg(unix)]
fn stdin_metadata() -> Option<fs::Metadata> {
    use std::os::fd::AsFd;

    let stdin = io::stdin().as_fd().try_clone_to_owned().ok()?;
    File::from(stdin).metadata().ok()
}

#[cfg(not(unix))]
fn stdin_metadata() -> Option<fs::Metadata> {
    None
}

/// What became of the tasks, for people, for scripts, and for another try.
struct Report {
    started: Instant,
    sent: Sent,
    summary: Summary,
    failed: Option<BufWriter<File>>,
    /// What follows each task there.
    failed_end: &'static [u8],
    progress: Progress,
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
    fn open(source: &Source, options: &Options) -> Result<Report, Error> {
        let failed = options.failed.as_deref().map(|path| open_failed(path, source)).transpose()?;
        let quiet = options.json || !matches!(source, Source::Words(_));
        Ok(Report {
            started: Instant::now(),
            sent: if quiet { Sent::Nothing } else { Sent::Line },
            summary: if options.json { Summary::Json } else { Summary::Nothing },
            failed,
            failed_end: source.end(),
            progress: Progress::new(source),
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
            self.progress.note(receipt.task.body(), self.confirmed, self.not_confirmed());
        }
    }

    /// Tasks that were read, and not sent any more.
    fn note_unsent(&mut self, bodies: impl Iterator<Item = Vec<u8>>) {
        for body in bodies {
            self.read += 1;
            self.unconfirmed += 1;
            self.write_failed(&body);
        }
    }

    /// Reads on where somebody wants to have the rest, once nothing is published any more.
    fn keep_rest(&mut self, bodies: &Bodies, shutdown: &Shutdown, why: End) -> End {
        if self.failed.is_some() {
            warn!("the rest of the input goes to --failed and is not published");
        }
        while self.failed.is_some() {
            match bodies.next(shutdown) {
                Ok(body) => self.note_unsent([body].into_iter()),
                Err(End::Finished) => return why,
                Err(end) => {
                    self.note_unsent(bodies.read_ahead());
                    return end;
                }
            }
        }
        self.note_unsent(bodies.read_ahead());
        why
    }

    fn note_confirmed(&mut self, task: &Task) {
        self.confirmed += 1;
        if self.sent == Sent::Line && self.unwritable.is_none() {
            let line = format!(" [x] Sent '{}'", String::from_utf8_lossy(task.body()));
            self.unwritable = print_line(line).err();
        }
    }

    fn note_failed(&mut self, receipt: &Receipt) {
        match receipt.outcome {
            Outcome::Nacked => self.nacked += 1,
            Outcome::Returned { .. } => self.returned += 1,
            // A matter of this task alone.
            Outcome::Refused { .. } => self.unconfirmed += 1,
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
        self.write_failed(receipt.task.body());
    }

    fn write_failed(&mut self, body: &[u8]) {
        let Some(failed) = &mut self.failed else { return };
        let written = failed.write_all(body).and_then(|()| failed.write_all(self.failed_end));
        if let Err(error) = written {
            error!("--failed cannot be written: {error}");
            self.failed = None;
        }
    }

    fn not_confirmed(&self) -> u64 {
        self.nacked + self.returned + self.unconfirmed
    }

    fn close(mut self, end: &End) -> Result<Exit, Error> {
        self.progress.end();
        self.flush_failed();
        self.tell_end(end);
        if self.summary == Summary::Json && self.unwritable.is_none() {
            self.unwritable = print_line(self.as_json()).err();
        }
        Ok(match end {
            _ if cli::is_interrupted() => Exit::Interrupted,
            End::Finished if self.not_confirmed() == 0 => self.exit_as_printed(),
            _ => Exit::Failed,
        })
    }

    fn flush_failed(&mut self) {
        if let Some(Err(error)) = self.failed.as_mut().map(BufWriter::flush) {
            error!("--failed cannot be written: {error}");
            self.failed = None;
        }
    }

    fn tell_end(&self, end: &End) {
        let read = self.read;
        match end {
            End::Finished => {}
            End::Stopped => warn!("stopped after {read} tasks were read"),
            End::GaveUp if self.failed.is_some() => {
                warn!("gave up; all {read} tasks were read, and --failed has those not confirmed");
            }
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

fn open_failed(path: &Path, source: &Source) -> Result<BufWriter<File>, Error> {
    if source.path().is_some_and(|input| is_same_file(input, path)) {
        return Err(Error::setting("--failed", "it would overwrite the input"));
    }
    let file =
        File::create(path).map_err(|error| Error::setting("--failed", show(path, &error)))?;
    Ok(BufWriter::new(file))
}

/// Whether the input is this very file, by whatever name, or redirected from it. Terminals and
/// other devices may be both.
#[cfg(unix)]
fn is_same_file(input: &Path, output: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let identity = |it: fs::Metadata| it.is_file().then(|| (it.dev(), it.ino()));
    let input = metadata(input).and_then(identity);
    input.is_some() && input == fs::metadata(output).ok().and_then(identity)
}

#[cfg(not(unix))]
fn is_same_file(input: &Path, output: &Path) -> bool {
    let input = input.canonicalize().ok();
    input.is_some() && input == output.canonicalize().ok()
}

fn show(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
