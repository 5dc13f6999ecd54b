//! Owns what the commands share: the options for the broker and the queue, logging, signals,
//! exit statuses, and writing to stdout.

#![allow(dead_code)] // Each command is a crate of its own and uses its part.

use std::env;
use std::fmt;
#[cfg(feature = "tls")]
use std::fs;
use std::io::{self, Write};
#[cfg(unix)]
use std::os::fd::AsFd;
use std::path::Path;
#[cfg(feature = "tls")]
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(unix)]
use anstream::AutoStream;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Args, Parser, ValueEnum};
use log::{Level, LevelFilter, Log, Metadata, Record, error, warn};
#[cfg(unix)]
use rabbit_work::OutputStream;
#[cfg(feature = "tls")]
use rabbit_work::Tls;
use rabbit_work::{Argument, Broker, Error, Queue, QueueType, Shutdown, Trigger, shutdown};
#[cfg(unix)]
use rustix::event::{PollFd, PollFlags, poll};
#[cfg(unix)]
use rustix::io::Errno;

/// What a command ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Success,
    /// Some task was not dealt with as asked, or the system did not give what it takes.
    Failed,
    /// Usage or configuration.
    Usage,
    /// The grace ended with tasks still running.
    #[allow(dead_code)] // The producer runs none.
    GraceExceeded,
    /// A signal ended a batch before it was through.
    #[allow(dead_code)] // The worker's.
    Unfinished,
    /// No broker, EX_UNAVAILABLE of sysexits.
    Unreachable,
    /// Stopped by a second signal.
    Interrupted,
}

const URL_VARIABLE: &str = "AMQP_URL";

/// The tutorial's queue, on which its tasks may be tried out without a word more.
const TUTORIAL_QUEUE: &str = "task_queue";
/// In the help of a subcommand its own options come first, under no heading of theirs.
const BROKER: &str = "Broker";
const QUEUE: &str = "Queue";

#[derive(Args, Debug)]
pub(crate) struct BrokerArgs {
    /// Broker URL, amqp://user:password@host:port/vhost; several, repeated or comma-separated, are
    /// the nodes of one cluster
    #[arg(
        long,
        global = true,
        help_heading = BROKER,
        value_name = "URL",
        env = URL_VARIABLE,
        hide_env_values = true,
        hide_default_value = true,
        default_value = "amqp://guest:guest@localhost:5672"
    )]
    url: Vec<String>,

    /// Try several addresses shuffled, so that a fleet spreads over the nodes, or as given; one that
    /// fails comes last from then on
    #[arg(
        long,
        global = true,
        help_heading = BROKER,
        value_enum,
        value_name = "ORDER",
        default_value = "shuffled"
    )]
    url_order: UrlOrder,

    /// Trust this authority's certificate (PEM, or several in one file) for amqps://
    #[cfg(feature = "tls")]
    #[arg(long, global = true, help_heading = BROKER, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Show this certificate (PEM) to the broker; needs --key
    #[cfg(feature = "tls")]
    #[arg(long, global = true, help_heading = BROKER, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The key of --cert (PEM, PKCS#8)
    #[cfg(feature = "tls")]
    #[arg(long, global = true, help_heading = BROKER, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct QueueArgs {
    /// The queue's name
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_name = "NAME",
        default_value = TUTORIAL_QUEUE
    )]
    queue: String,

    /// The queue's type
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_enum,
        value_name = "TYPE",
        default_value = "classic"
    )]
    queue_type: TypeArg,

    /// Declare the queue as not durable: a broker restart removes it
    #[arg(long, global = true, help_heading = QUEUE)]
    transient_queue: bool,

    /// After how many deliveries that ended in a crash a quorum queue makes a dead letter of a
    /// task; part of its declaration. Before RabbitMQ 4.3 a task given back counts, too, as at each
    /// stop; and so does what a worker that crashed had in hand beside, so use --prefetch 1. A
    /// classic queue does not count
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_name = "N",
        default_value = "20",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    delivery_limit: u32,

    /// Declare the queue with this argument, for instance x-single-active-consumer=true
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_name = "KEY=VALUE",
        value_parser = parse_argument
    )]
    queue_arg: Vec<(String, Argument)>,

    /// Declare a classic queue with the priorities 0 to N (x-max-priority)
    #[arg(
        long,
        global = true,
        help_heading = QUEUE,
        value_name = "N",
        value_parser = clap::value_parser!(u8).range(1..)
    )]
    max_priority: Option<u8>,

    /// Use the queue as it is, without declaring it
    #[arg(long, global = true, help_heading = QUEUE)]
    no_declare: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UrlOrder {
    Shuffled,
    Given,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TypeArg {
    Classic,
    Quorum,
}

impl BrokerArgs {
    pub(crate) fn broker(&self) -> Result<Broker, Error> {
        let mut broker = Broker::new(&self.url)?;
        if matches!(self.url_order, UrlOrder::Given) {
            broker = broker.in_order();
        }
        #[cfg(feature = "tls")]
        let broker = broker.tls(self.tls()?);
        Ok(broker)
    }

    #[cfg(feature = "tls")]
    fn tls(&self) -> Result<Tls, Error> {
        let options = [("--ca", &self.ca), ("--cert", &self.cert)];
        let given = options.into_iter().find(|(_, file)| file.is_some());
        if let Some((option, _)) = given.filter(|_| !self.names_an_encrypted_address()) {
            let reason = "no address is an amqps:// one, so nothing would be encrypted";
            return Err(Error::setting(option, reason));
        }
        let mut tls = Tls::default();
        if let Some(ca) = &self.ca {
            tls = tls.authority(read("--ca", ca)?);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls = tls.identity(read("--cert", cert)?, read("--key", key)?);
        }
        Ok(tls)
    }

    #[cfg(feature = "tls")]
    fn names_an_encrypted_address(&self) -> bool {
        let mut addresses = self.url.iter().flat_map(|url| url.split(','));
        addresses.any(|it| it.trim_start().to_ascii_lowercase().starts_with("amqps:"))
    }
}

impl QueueArgs {
    pub(crate) fn is_the_tutorial_s(&self) -> bool {
        self.queue == TUTORIAL_QUEUE
    }

    pub(crate) fn name(&self) -> &str {
        &self.queue
    }

    pub(crate) fn queue(&self) -> Queue {
        if self.queue.contains(',') {
            warn!("--queue names one queue, '{}', with a comma in its name", self.queue);
        }
        let kind = match self.queue_type {
            TypeArg::Classic => QueueType::Classic,
            TypeArg::Quorum => QueueType::Quorum,
        };
        let mut queue =
            Queue::new(&self.queue).queue_type(kind).delivery_limit(self.delivery_limit);
        if self.transient_queue {
            queue = queue.transient();
        }
        for (name, value) in &self.queue_arg {
            queue = queue.argument(name, value.clone());
        }
        if let Some(highest) = self.max_priority {
            queue = queue.argument("x-max-priority", i64::from(highest));
        }
        if self.no_declare {
            queue = queue.passive();
        }
        queue
    }
}

/// A value that reads as a number or as true or false is one; any other is a text.
fn parse_argument(text: &str) -> Result<(String, Argument), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            let number = value.parse::<i64>().map(Argument::from);
            let flag = value.parse::<bool>().map(Argument::from);
            Ok((name.into(), number.or(flag).unwrap_or_else(|_| value.into())))
        }
        _ => Err("it has the form KEY=VALUE".into()),
    }
}

impl From<&Error> for Exit {
    fn from(error: &Error) -> Exit {
        match error {
            // No matter of the broker's, nor of what was asked for.
            Error::NoThread { .. } => Exit::Failed,
            error if error.is_transient() => Exit::Unreachable,
            _ => Exit::Usage,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.status())
    }
}

impl Exit {
    /// This, or what comes after a success.
    pub(crate) fn then(self, next: impl FnOnce() -> Exit) -> Exit {
        if self == Exit::Success { next() } else { self }
    }

    fn status(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::GraceExceeded => 3,
            Exit::Unfinished => 4,
            Exit::Unreachable => 69,
            Exit::Interrupted => 130,
        }
    }

    /// Tells the error that ends the command, and the status that goes with it.
    pub(crate) fn for_error(error: &Error) -> Exit {
        error!("{}", error.chain());
        Exit::from(error)
    }
}

/// What the command line says, or its end. A URL in a wrong place is told without its login.
#[allow(clippy::exit)]
pub(crate) fn parse<T: Parser>() -> T {
    let mut command = T::command();
    if env::var_os(URL_VARIABLE).is_some_and(|url| url.is_empty()) {
        // In files of variables that is how none is given.
        command = command.mut_arg("url", |url| url.env(None));
    }
    let runs_a_command = command.get_positionals().any(Arg::is_last_set);
    let parsed = command.try_get_matches().and_then(|matches| T::from_arg_matches(&matches));
    parsed.unwrap_or_else(|mut error| {
        if runs_a_command {
            hint_at_dashes(&mut error);
        }
        if !error.use_stderr() {
            // --help and --version, which repeat nothing that was given.
            error.exit();
        }
        let _ = write!(io::stderr(), "{}", without_logins(&error.render().to_string()));
        std::process::exit(i32::from(Exit::Usage.status()))
    })
}

/// A word that is no option is most likely the command.
fn hint_at_dashes(error: &mut clap::Error) {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return };
    if error.kind() == ErrorKind::UnknownArgument && !word.starts_with('-') {
        let hint = format!("put -- before the command: -- {word}").into();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint]));
    }
}

/// The text without what is between `://` and the `@` that ends it, the last one: a password may
/// hold another.
fn without_logins(text: &str) -> String {
    let mut parts = text.split("://");
    let mut shown = parts.next().unwrap_or_default().to_string();
    for part in parts {
        match part.rsplit_once('@') {
            Some((_, after)) => shown += &format!("://…@{after}"),
            None => shown += &format!("://{part}"),
        }
    }
    shown
}

/// Logs to stderr as RUST_LOG says, default `info`. Why a connection ended, our own records tell.
/// What the command itself has an error for, its exit status comes from: that is written whatever
/// RUST_LOG says, where it leaves it out in a plain line.
pub(crate) fn init_logging() {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Info).parse_default_env();
    #[cfg(unix)]
    write_patiently(&mut builder);
    builder.format(|out, record| {
        let style = out.default_level_style(record.level());
        let time = out.timestamp_millis();
        writeln!(out, "{time} {style}{:<5}{style:#} {}", record.level(), record.args())
    });
    let logger = Logger(builder.build());
    log::set_max_level(logger.0.filter().max(LevelFilter::Error));
    // There is no other one.
    let _ = log::set_boxed_logger(Box::new(logger));
}

/// A command can make a standard error that it shares with us non-blocking; what then finds no
/// room must wait for it, or a line is cut.
#[cfg(unix)]
fn write_patiently(builder: &mut env_logger::Builder) {
    struct Stderr;

    impl Write for Stderr {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            write_all(OutputStream::Stderr, bytes).map(|()| bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    builder.target(env_logger::Target::Pipe(Box::new(Stderr)));
    // A pipe gets no colours unless it is told so.
    if !matches!(env::var("RUST_LOG_STYLE").as_deref(), Ok("always" | "never")) {
        builder.write_style(AutoStream::choice(&io::stderr()).into());
    }
}

/// Writes records, while what else is on the terminal makes way.
struct Logger(env_logger::Logger);

type Way = Box<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

static WAY: OnceLock<Way> = OnceLock::new();

/// Has each record written by calling this, with what writes it.
pub(crate) fn log_by_way_of(way: impl Fn(&mut dyn FnMut()) + Send + Sync + 'static) {
    let _ = WAY.set(Box::new(way));
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !is_the_client_library(metadata.target())
            && (self.0.enabled(metadata) || is_an_error_of_ours(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if is_the_client_library(record.target()) {
            return;
        }
        let mut write: Box<dyn FnMut()> = if self.0.matches(record) {
            Box::new(|| self.0.log(record))
        } else if is_an_error_of_ours(record.metadata()) {
            Box::new(|| write_plainly(record))
        } else {
            return;
        };
        match WAY.get() {
            Some(way) => way(&mut write),
            None => write(),
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Whose records are left out, whatever is asked for: they print the login with the password, and
/// bodies (amiquip 0.4.2 io_loop/handshake_state.rs:35, io_loop/connection_state.rs:88). And the
/// thread that they come from must not wait for whoever reads standard error: it sends heartbeats.
fn is_the_client_library(target: &str) -> bool {
    ["amiquip", "mio"].iter().any(|library| target.starts_with(library))
}

/// The command's name, in which its own records are.
fn name() -> &'static str {
    module_path!().split("::").next().unwrap_or_default()
}

fn is_an_error_of_ours(metadata: &Metadata<'_>) -> bool {
    metadata.level() == Level::Error && metadata.target().split("::").next() == Some(name())
}

fn write_plainly(record: &Record<'_>) {
    let line = format!("{}: {}\n", name(), record.args());
    // Whoever is not told by this is told by the exit status.
    #[cfg(unix)]
    let _ = write_all(OutputStream::Stderr, line.as_bytes());
    #[cfg(not(unix))]
    let _ = io::stderr().write_all(line.as_bytes());
}

/// How long a command may take to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// After the first signal, until what runs is cancelled.
    pub(crate) grace: Duration,
    /// From then on, or after the second signal, until that has ended.
    pub(crate) cancel_timeout: Duration,
    /// What it ends with when that is not enough.
    pub(crate) late: Exit,
}

/// For whatever else there is to do at an end: giving back, closing, reporting.
const CLOSING: Duration = Duration::from_millis(1500);
/// What killed programs may take until they are gone.
const DYING: Duration = Duration::from_millis(300);

/// A second signal that comes this soon is the first one's echo: `timeout` signals its child and
/// then its whole group, the child with it, and so do some supervisors.
const ECHO: Duration = Duration::from_millis(200);

/// Connects the signals to a shutdown: the first stops, the second aborts, the third kills.
/// Should the process still be there when its patience is over, it ends all the same: a stop is
/// always bounded.
pub(crate) fn stop_on_signals(patience: Patience) -> Result<(Trigger, Shutdown), Error> {
    #[cfg(unix)]
    unblock_signals()
        .and_then(|()| outlive_the_limit_on_files())
        .map_err(|error| Error::setting("signals", error.to_string()))?;
    let (trigger, shutdown) = shutdown();
    let handed_out = trigger.clone();
    let mut first = None;
    // Nothing in here may wait, or no further signal would have an effect.
    let handle = move || {
        let since_first = first.get_or_insert_with(Instant::now).elapsed();
        if SIGNALS.load(Ordering::SeqCst) == 1 && since_first < ECHO {
            return;
        }
        match SIGNALS.fetch_add(1, Ordering::SeqCst) {
            0 => {
                trigger.stop();
                let limit = patience.grace.saturating_add(patience.cancel_timeout + CLOSING * 2);
                end_after(limit, patience.late, trigger.clone());
                tell_stopping();
            }
            1 => {
                trigger.abort();
                end_after(patience.cancel_timeout + CLOSING, Exit::Interrupted, trigger.clone());
            }
            _ => {
                trigger.kill();
                end_after(CLOSING, Exit::Interrupted, trigger.clone());
            }
        }
    };
    ctrlc::set_handler(handle).map_err(|error| match error {
        ctrlc::Error::System(error) => {
            Error::setting("signals", format!("the system gave no thread for them: {error}"))
        }
        error => Error::setting("signals", error.to_string()),
    })?;
    Ok((handed_out, shutdown))
}

/// Whoever started us may have kept them from us: a mask is passed on.
#[cfg(unix)]
pub(crate) fn unblock_signals() -> io::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let ours = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    Ok(ours.thread_unblock()?)
}

/// A write beyond `ulimit -f` is to fail as one to a full disk does: unheard, SIGXFSZ would end us
/// without a word.
#[cfg(unix)]
fn outlive_the_limit_on_files() -> io::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).map(drop)
}

/// In a thread of its own: stderr may be a pipe that nobody reads. And not before it is true.
fn tell_stopping() {
    let tell = || {
        thread::sleep(ECHO);
        warn!("stopping; a second signal ends it now");
    };
    // A stop without these words is a stop.
    let _ = thread::Builder::new().name("stopping".into()).spawn(tell);
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

/// Whether a second signal came: an abort may also be our own last resort.
pub(crate) fn is_interrupted() -> bool {
    SIGNALS.load(Ordering::SeqCst) > 1
}

type LastDeed = Box<dyn FnOnce() + Send>;

static LAST_DEED: Mutex<Option<LastDeed>> = Mutex::new(None);

/// Has this done by the last resort, too. It may not take longer than a second or so.
pub(crate) fn at_last_resort(deed: impl FnOnce() + Send + 'static) {
    *LAST_DEED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(deed));
}

/// The last resort, when an orderly end did not come in time. Programs that still run are not
/// left behind.
#[allow(clippy::exit)]
fn end_after(limit: Duration, exit: Exit, trigger: Trigger) {
    let last_resort = move || {
        thread::sleep(limit);
        trigger.kill();
        thread::sleep(DYING);
        // Held to the end: another last resort waits until this one has done it.
        let mut deed = LAST_DEED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(deed) = deed.take() {
            deed();
        }
        std::process::exit(i32::from(exit.status()));
    };
    // Without a thread the orderly end is what is left; to say so here could block for ever.
    let _ = thread::Builder::new().name("last-resort".into()).spawn(last_resort);
}

/// Writes one line to stdout.
pub(crate) fn print_line(line: impl fmt::Display) -> io::Result<()> {
    write_out(format!("{line}\n").as_bytes())
}

/// Writes bytes to stdout.
#[cfg(unix)]
pub(crate) fn write_out(bytes: &[u8]) -> io::Result<()> {
    write_all(OutputStream::Stdout, bytes)
}

#[cfg(not(unix))]
pub(crate) fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Whoever writes it means standard output, and would find a file of that name.
pub(crate) fn refuse_dash(option: &'static str, path: &Path) -> Result<(), Error> {
    if path == Path::new("-") {
        let reason = "for standard output write /dev/stdout, and for a file of that name ./-";
        return Err(Error::setting(option, reason));
    }
    Ok(())
}

/// Whether what is behind `--` was given, be it nothing: `-- $JOB` with an empty JOB.
pub(crate) fn has_two_dashes() -> bool {
    env::args_os().any(|word| word == "--")
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    // humantime takes it for months.
    if text.contains('M') {
        return Err("M is for months; write 5m for minutes".into());
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; write 500ms, 30s, 5m or 1h"))
}

/// A delay of the ladder, as its help names it.
pub(crate) fn in_one_unit(delay: Duration) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let millis = delay.as_millis();
    let fitting = units.into_iter().find(|(_, unit)| millis >= *unit && millis % unit == 0);
    fitting.map_or_else(|| "0s".into(), |(name, unit)| format!("{}{name}", millis / unit))
}

#[cfg(feature = "tls")]
fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| Error::setting(option, format!("{}: {error}", path.display())))
}

/// Writes all of it to one of our own streams, and waits for room where another program that shares
/// the stream made it non-blocking.
#[cfg(unix)]
pub(crate) fn write_all(stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        OutputStream::Stdout => write_patiently_to(io::stdout().lock(), bytes),
        OutputStream::Stderr => write_patiently_to(io::stderr().lock(), bytes),
    }
}

#[cfg(unix)]
fn write_patiently_to(mut out: impl Write + AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match when_writable(&mut out, |out| out.write(bytes))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => bytes = &bytes[count..],
        }
    }
    when_writable(&mut out, Write::flush)
}

#[cfg(unix)]
fn when_writable<O: Write + AsFd, T>(
    out: &mut O,
    write: impl Fn(&mut O) -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match write(out) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_until_writable(out)?,
            written => return written,
        }
    }
}

/// Returns also when all readers are gone: the next write fails then.
#[cfg(unix)]
fn wait_until_writable(out: &impl AsFd) -> io::Result<()> {
    match poll(&mut [PollFd::new(out, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
