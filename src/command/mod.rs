//! Owns [`Command`]: a [`Handler`] that runs a program for each task (Unix).

pub(crate) mod output;
pub(crate) mod process;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use crossbeam_channel::RecvTimeoutError;
use log::debug;
use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::command::output::{Leftovers, OutputStream, Passing, Sink};
use crate::command::process::{Bell, Ended, KILL_AFTER, Process, Told};
use crate::model::error::Error;
use crate::model::failure_record::is_internal_header;
use crate::model::handler::{Delivery, Failure, Handler};
use crate::util::shutdown::is_closed;
use crate::util::text::printable;

/// Runs a program for each task, the body on its standard input, and reads its exit status.
///
/// | the program | the task |
/// |---|---|
/// | exits with 0 | is done |
/// | exits with 65 (`EX_DATAERR` of sysexits) | can never succeed: [`Failure::Reject`] |
/// | exits with any other status, dies of a signal, runs past the [time limit](Command::time_limit) | may succeed another time: [`Failure::Retry`] |
/// | could not be started for lack of memory, processes or descriptors, or was cancelled by a stop | [`Failure::Requeue`] |
/// | cannot be executed any more, such as one that was removed, nor within 5 s | [`Failure::StopWorker`] |
///
/// No shell is involved. `{}` in an argument is replaced by the body; an argument that begins
/// with it may then look like an option, so put `--` before it where the program knows that. A
/// body that holds a NUL, or is longer than the system allows for an argument (128 KiB on
/// Linux), can never succeed there.
///
/// Standard input is a file that holds the body: the program may read all, part or nothing of
/// it. A body of 64 KiB or more is held by the folder for temporary files (`TMPDIR`) while that
/// has room, a smaller one by memory. Standard output is this program's own: whole lines of
/// programs that run at the same time do not mix there if each is one write, of at most
/// `PIPE_BUF` bytes (4096 on Linux) into a pipe. Standard error is passed on in whole lines, of
/// up to 64 KiB, to this program's own, and the last 4 KiB of it become part of a failure's
/// reason.
///
/// The environment is this program's own without its `TASK_` variables, and with `TASK_ID`,
/// `TASK_QUEUE`, `TASK_ATTEMPT`, `TASK_MAX_ATTEMPTS`, `TASK_REDELIVERED` (0 or 1),
/// `TASK_CONTENT_TYPE`, `TASK_PRIORITY`, `TASK_ENQUEUED_AT` (Unix seconds),
/// `TASK_CORRELATION_ID`, `TASK_REPLY_TO`, `TASK_WORKER` (the number of the worker thread) and
/// a `TASK_HEADER_<NAME>` for each header, its name in upper case with `_` for whatever is
/// neither a letter nor a digit. What a task does not have is not set.
///
/// The program leads a process group of its own, so a Ctrl-C in a terminal does not reach it.
/// At the time limit, and when a stop is out of patience, the whole group gets SIGTERM, and
/// SIGKILL 5 s later. What the program leaves running in the background when it ends by itself
/// is let be; what that writes to standard error is passed on for 64 programs at a time, until
/// this one ends. Then the pipe is closed, and the next write there raises SIGPIPE: redirect it.
/// Nobody ends what runs when this program is killed. While nobody takes what programs write (a full pipe, a sink that waits), their
/// tasks wait for that too, and so do their time limits; a stop does not.
///
/// ```no_run
/// # fn main() -> Result<(), rabbit_work::Error> {
/// use std::time::Duration;
/// use rabbit_work::{Broker, Command, Queue, Worker, shutdown};
///
/// let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
/// let command = Command::new("convert", ["--", "{}", "-resize", "50%"])?
///     .time_limit(Duration::from_secs(60));
/// let (_trigger, shutdown) = shutdown();
/// Worker::new(&broker, &Queue::new("photos")).run(command, &shutdown)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Command {
    /// As it was asked for, and as the program itself sees it.
    name: OsString,
    path: PathBuf,
    arguments: Vec<OsString>,
    time_limit: Option<Duration>,
    lines: Lines,
    /// The names of our own variables that are not passed on.
    not_inherited: Vec<OsString>,
    bell: Mutex<Option<Arc<Bell>>>,
    leftovers: Leftovers,
}

/// What becomes of the lines that programs write.
enum Lines {
    Plain,
    Tagged(Arc<Sink>),
}

/// What is replaced by the body.
const PLACEHOLDER: &[u8] = b"{}";
/// `EX_DATAERR` of sysexits.h.
const NEVER_RETRY: i32 = 65;
/// From how many bytes on a file on a disk costs less than one in memory, to write and to read: at
/// 1 MiB 0.3 ms instead of 0.95 (Linux 6.18, ext4). Below that, making it costs more.
const LARGE: usize = 64 << 10;
/// What a killed program may take until it is gone.
const DYING: Duration = Duration::from_millis(500);
/// The pauses before further tries to start a program that cannot be executed: it may be about to
/// be replaced. In milliseconds, 5 s in all.
const PAUSES: [u64; 8] = [50, 100, 200, 400, 800, 1000, 1000, 1450];

impl Command {
    /// A handler that runs this program with these arguments. A program without a `/` in its
    /// name is looked for in `PATH`.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] when there is no such program or it is not executable.
    pub fn new<A: Into<OsString>>(
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Command, Error> {
        let name = program.into();
        let path = find(&name)?;
        let variables = env::vars_os().map(|(name, _)| name);
        let not_inherited = variables.filter(|name| name.as_bytes().starts_with(b"TASK_"));
        Ok(Command {
            path,
            name,
            arguments: arguments.into_iter().map(Into::into).collect(),
            time_limit: None,
            lines: Lines::Plain,
            not_inherited: not_inherited.collect(),
            bell: Mutex::new(None),
            leftovers: Leftovers::default(),
        })
    }

    /// Sets how long a program may run. Default: no limit.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Command {
        self.time_limit = Some(limit);
        self
    }

    /// Hands what programs write to `sink`, line by line with thread and task id before each,
    /// instead of passing it on. It is called with whole lines, from several threads at a time;
    /// a line of more than 64 KiB comes in pieces. Where it fails, the task is not done: the
    /// pipe is closed, and the task goes back to the queue. Default: passed on as it is.
    #[must_use]
    pub fn tag_lines(
        mut self,
        sink: impl Fn(OutputStream, &[u8]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Command {
        self.lines = Lines::Tagged(Arc::new(sink));
        self
    }

    /// The program for one task, not started yet.
    fn prepare(&self, delivery: &Delivery) -> Result<std::process::Command, Failure> {
        let mut command = std::process::Command::new(&self.path);
        command.arg0(&self.name);
        for argument in &self.arguments {
            command.arg(filled_in(argument, delivery.body())?);
        }
        for name in &self.not_inherited {
            command.env_remove(name);
        }
        command.envs(variables(delivery));
        command.stdin(input(delivery.body()).map_err(|error| not_started(&error))?);
        command.stderr(Stdio::piped());
        if matches!(self.lines, Lines::Tagged(_)) {
            command.stdout(Stdio::piped());
        }
        Ok(command)
    }

    fn passing(&self, delivery: &Delivery) -> Passing {
        match &self.lines {
            Lines::Plain => Passing::Plain,
            Lines::Tagged(sink) => {
                let id = delivery.task().id().unwrap_or("-");
                let tag = format!("[{} {}] ", delivery.thread(), printable(id));
                Passing::Tagged { tag: tag.into_bytes().into(), sink: Arc::clone(sink) }
            }
        }
    }

    /// The same for all tasks of a run.
    fn bell(&self, delivery: &Delivery) -> io::Result<Arc<Bell>> {
        let mut bell = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        match bell.as_ref() {
            Some(bell) if bell.rings_for(delivery.cancelled()) => Ok(Arc::clone(bell)),
            _ => {
                let hung = Arc::new(Bell::hang(delivery.cancelled(), delivery.killed())?);
                *bell = Some(Arc::clone(&hung));
                Ok(hung)
            }
        }
    }

    /// Starts the program for one task, also where it is about to be replaced.
    fn start(&self, delivery: &Delivery) -> Result<Process, Failure> {
        let mut command = self.prepare(delivery)?;
        let mut start = || Process::start(&mut command, self.time_limit, &self.passing(delivery));
        for pause in PAUSES {
            match start() {
                Err(error) if is_not_executable(&error) || is_being_written(&error) => {
                    debug!("{} cannot be executed: {error}", self.name.to_string_lossy());
                }
                started => return started.map_err(|error| self.not_executed(&error)),
            }
            let pause = Duration::from_millis(pause);
            if delivery.cancelled().recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return Err(Failure::requeue("a stop came before its start"));
            }
        }
        start().map_err(|error| self.not_executed(&error))
    }

    /// What the start of the program failed of: a task too large for it fails each time, a
    /// program that cannot be executed fails with each task, and all else may pass by itself.
    fn not_executed(&self, error: &io::Error) -> Failure {
        match Errno::from_io_error(error) {
            Some(Errno::TOOBIG) => {
                Failure::reject("the body or the headers are too long for the command line")
            }
            _ if is_not_executable(error) => {
                let name = self.name.to_string_lossy();
                Failure::stop_worker(format!("the command {name} cannot be executed: {error}"))
            }
            _ => not_started(error),
        }
    }

    fn read_end(&self, ended: &Ended) -> Result<(), Failure> {
        match (ended.told, &ended.unwritable) {
            (Some(Told::Cancelled), _) => Err(Failure::requeue("ended by a stop")),
            (_, Some(error)) => {
                Err(Failure::requeue(format!("its output cannot be written: {error}")))
            }
            (Some(Told::OutOfTime), _) => {
                let limit = self.time_limit.unwrap_or_default();
                Err(Failure::retry(with_tail(
                    &format!("ran past its time limit of {limit:?}"),
                    ended,
                )))
            }
            (None, None) => read_status(ended),
        }
    }
}

impl Handler for Command {
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure> {
        if is_closed(delivery.cancelled()) {
            return Err(Failure::requeue("a stop came before its start"));
        }
        let bell = self.bell(delivery).map_err(|error| not_started(&error))?;
        let process = self.start(delivery)?;
        let ended = process
            .attend(&bell, &self.leftovers)
            .map_err(|error| Failure::requeue(format!("killed, it cannot be watched: {error}")))?;
        self.read_end(&ended)
    }

    fn cancel_timeout(&self) -> Duration {
        KILL_AFTER + DYING
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Lines::Plain => "Plain",
            Lines::Tagged(_) => "Tagged",
        })
    }
}

fn find(name: &OsStr) -> Result<PathBuf, Error> {
    let unfit = |why: &str| Error::setting("command", format!("{}: {why}", name.to_string_lossy()));
    let candidates = candidates(name);
    if let Some(path) = candidates.iter().find(|path| is_executable(path)) {
        return match unfit_script(path) {
            Some(why) => Err(unfit(&why)),
            None => Ok(path.clone()),
        };
    }
    match candidates.iter().find(|path| path.exists()) {
        Some(path) if path.is_dir() => Err(unfit("is a folder")),
        Some(_) => Err(unfit("is not executable")),
        None if name.as_bytes().contains(&b'/') => Err(unfit("not found")),
        None => Err(unfit("not found in PATH")),
    }
}

fn candidates(name: &OsStr) -> Vec<PathBuf> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(name)];
    }
    let path = env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let folders = env::split_paths(&path);
    // An empty entry is the current folder.
    let folders = folders.map(|it| if it.as_os_str().is_empty() { ".".into() } else { it });
    folders.map(|folder: PathBuf| folder.join(name)).collect()
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

/// Why a script that is marked executable cannot be executed, where that can be told. What the
/// system reads is the first 256 bytes, and what ends a name there is a blank, a tab or the line.
fn unfit_script(path: &Path) -> Option<String> {
    let mut start = Vec::new();
    File::open(path).ok()?.take(256).read_to_end(&mut start).ok()?;
    let Some(line) = start.strip_prefix(b"#!") else {
        // There is none in a text, and some in the first bytes of every program.
        let is_text = !start.contains(&0);
        return is_text.then(|| "is neither a program nor a script that begins with #!".into());
    };
    let mut words = line.split(|byte| *byte == b'\n').next()?.split(|byte| b" \t".contains(byte));
    let interpreter =
        Path::new(OsStr::from_bytes(words.find(|word| !word.is_empty()).unwrap_or_default()));
    (!is_executable(interpreter)).then(|| format!("its interpreter {interpreter:?} is not there"))
}

/// The argument with the body in it, where it has a place for that.
fn filled_in(argument: &OsStr, body: &[u8]) -> Result<OsString, Failure> {
    let mut rest = argument.as_bytes();
    let mut filled = Vec::new();
    while let Some(place) = rest.windows(PLACEHOLDER.len()).position(|it| it == PLACEHOLDER) {
        if body.contains(&0) {
            return Err(Failure::reject("the body holds a NUL, which no argument can"));
        }
        filled.extend_from_slice(&rest[..place]);
        filled.extend_from_slice(body);
        rest = &rest[place + PLACEHOLDER.len()..];
    }
    filled.extend_from_slice(rest);
    Ok(OsString::from_vec(filled))
}

/// What the program finds in its environment about the task. What an environment cannot hold
/// (a NUL) is left out.
fn variables(delivery: &Delivery) -> Vec<(String, String)> {
    let task = delivery.task();
    let enqueued = task.enqueued_at().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let named = [
        ("TASK_ID", task.id().map(str::to_string)),
        ("TASK_QUEUE", Some(delivery.queue().to_string())),
        ("TASK_ATTEMPT", Some(delivery.attempt().to_string())),
        (
            "TASK_MAX_ATTEMPTS",
            Some(delivery.max_attempts()).filter(|most| *most > 0).map(|most| most.to_string()),
        ),
        ("TASK_REDELIVERED", Some(u8::from(delivery.redelivered()).to_string())),
        ("TASK_CONTENT_TYPE", task.content_type().map(str::to_string)),
        ("TASK_PRIORITY", task.priority().map(|priority| priority.to_string())),
        ("TASK_ENQUEUED_AT", enqueued.map(|since| since.as_secs().to_string())),
        ("TASK_CORRELATION_ID", task.correlation_id().map(str::to_string)),
        ("TASK_REPLY_TO", task.reply_to().map(str::to_string)),
        ("TASK_WORKER", Some(delivery.thread().to_string())),
    ];
    let named = named.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?)));
    let sent = task.headers_as_text().filter(|(name, _)| !is_internal_header(name));
    let headers = sent.map(|(name, value)| (header_variable(name), value));
    named.chain(headers).filter(|(_, value)| !value.contains('\0')).collect()
}

fn header_variable(name: &str) -> String {
    let letter = |it: char| if it.is_ascii_alphanumeric() { it.to_ascii_uppercase() } else { '_' };
    "TASK_HEADER_".chars().chain(name.chars().map(letter)).collect()
}

/// A file without a name that holds the body, at its start. Not a pipe: nobody has to feed it,
/// and a program that does not read it holds up nothing.
fn input(body: &[u8]) -> io::Result<Stdio> {
    if body.is_empty() {
        return Ok(Stdio::null());
    }
    let on_disk = (body.len() >= LARGE).then(|| holding(body, tempfile::tempfile()?));
    match on_disk {
        Some(Ok(file)) => Ok(file.into()),
        // Whatever is wrong with the disk is no matter of the task's.
        None | Some(Err(_)) => Ok(holding(body, file_in_memory()?)?.into()),
    }
}

fn holding(body: &[u8], file: File) -> io::Result<File> {
    file.write_all_at(body, 0)?;
    Ok(file)
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn file_in_memory() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};

    Ok(File::from(memfd_create("task", MemfdFlags::CLOEXEC)?))
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn file_in_memory() -> io::Result<File> {
    tempfile::tempfile()
}

/// Whether it is the program that is missing or cannot be executed.
fn is_not_executable(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::NOENT
                | Errno::ACCESS
                | Errno::PERM
                | Errno::NOEXEC
                | Errno::NOTDIR
                | Errno::ISDIR
                | Errno::LOOP
                | Errno::INVAL
        )
    )
}

/// Whether somebody is writing the program's file.
fn is_being_written(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::TXTBSY)
}

/// Not the task's fault, but the system's matter; unless it is too large for the limit of files.
fn not_started(error: &io::Error) -> Failure {
    let what = format!("the command could not be started: {error}");
    match Errno::from_io_error(error) {
        Some(Errno::FBIG) => Failure::retry(what),
        _ => Failure::requeue(what),
    }
}

fn read_status(ended: &Ended) -> Result<(), Failure> {
    match ended.status.code() {
        Some(0) => Ok(()),
        Some(NEVER_RETRY) => Err(Failure::reject(with_tail("exit status 65", ended))),
        Some(code) => Err(Failure::retry(with_tail(&format!("exit status {code}"), ended))),
        None => Err(Failure::retry(with_tail(&signal_in_words(ended.status), ended))),
    }
}

fn signal_in_words(status: ExitStatus) -> String {
    let core = if status.core_dumped() { ", core dumped" } else { "" };
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}{core}"),
        None => status.to_string(),
    }
}

/// What happened, and the last that the program said.
fn with_tail(what: &str, ended: &Ended) -> String {
    let tail = ended.stderr_tail.trim_ascii_end();
    if tail.is_empty() {
        return what.to_string();
    }
    format!("{what}; the end of its standard error: {}", String::from_utf8_lossy(tail))
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::never;

    use super::*;
    use crate::model::task::Task;

    fn delivery(task: Task) -> Delivery {
        Delivery {
            task,
            redelivered: true,
            queue: "q".into(),
            thread: 3,
            attempt: 2,
            max_attempts: 5,
            cancelled: never(),
            killed: never(),
        }
    }

    fn run(command: Command, task: Task) -> Result<(), Failure> {
        command.handle(&delivery(task))
    }

    fn sh(script: &str) -> Command {
        Command::new("sh", ["-c", script]).expect("sh is there")
    }

    #[test]
    fn the_exit_status_says_what_becomes_of_the_task() {
        assert_eq!(run(sh("exit 0"), Task::new("")), Ok(()));
        assert_eq!(run(sh("exit 65"), Task::new("")), Err(Failure::reject("exit status 65")));
        assert_eq!(run(sh("exit 255"), Task::new("")), Err(Failure::retry("exit status 255")));
        assert_eq!(run(sh("kill -9 $$"), Task::new("")), Err(Failure::retry("killed by signal 9")));
    }

    #[test]
    fn the_reason_holds_the_end_of_standard_error() {
        let failed = run(sh("seq 10000 >&2; exit 1"), Task::new(""));
        let reason = failed.expect_err("it failed").reason().to_string();
        assert!(reason.starts_with("exit status 1; the end of its standard error: "), "{reason}");
        assert!(reason.ends_with("\n9999\n10000"), "{reason}");
        assert!((4000..4200).contains(&reason.len()), "{}", reason.len());
    }

    #[test]
    fn the_body_is_the_input_whatever_of_it_is_read() {
        let body: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
        let task = Task::new(body);
        assert_eq!(run(sh("test $(wc -c) = 3000000"), task.clone()), Ok(()));
        assert_eq!(run(sh("test $(head -c 7 | wc -c) = 7"), task.clone()), Ok(()));
        assert_eq!(run(sh("exec <&-"), task), Ok(()));
        assert_eq!(run(sh("test $(wc -c) = 0"), Task::new("")), Ok(()));
    }

    #[test]
    fn the_body_takes_the_place_of_braces_and_of_nothing_else() {
        let filled = |argument: &str, body: &[u8]| filled_in(OsStr::new(argument), body);
        assert_eq!(filled("{}", b"a b"), Ok("a b".into()));
        assert_eq!(filled("--name={}:{}", b"{}"), Ok("--name={}:{}".into()));
        assert_eq!(filled("{ }", b"x"), Ok("{ }".into()));
        assert_eq!(filled("{}", b"\xff"), Ok(OsString::from_vec(vec![0xff])));
        assert_eq!(filled("plain", b"\0"), Ok("plain".into()));
        assert!(matches!(filled("{}", b"a\0b"), Err(Failure::Reject { .. })));
    }

    #[test]
    fn a_body_too_long_for_an_argument_never_succeeds() {
        let command = Command::new("true", ["{}"]).expect("true is there");
        let failed = run(command, Task::new(vec![b'x'; 4 << 20]));
        assert!(matches!(failed, Err(Failure::Reject { .. })), "{failed:?}");
    }

    #[test]
    fn headers_set_variables_with_their_prefix_only() {
        let task = Task::new("")
            .with_id("i")
            .with_header("LD_PRELOAD", "evil.so")
            .with_header("a-b é=c", "1")
            .with_header("nul", "a\0b")
            .with_header("", "empty");
        let found = variables(&delivery(task));
        let value = |name: &str| {
            found.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
        };
        assert_eq!(value("TASK_ID"), Some("i"));
        assert_eq!(value("TASK_ATTEMPT"), Some("2"));
        assert_eq!(value("TASK_MAX_ATTEMPTS"), Some("5"));
        assert_eq!(value("TASK_REDELIVERED"), Some("1"));
        assert_eq!(value("TASK_WORKER"), Some("3"));
        assert_eq!(value("TASK_HEADER_LD_PRELOAD"), Some("evil.so"));
        assert_eq!(value("TASK_HEADER_A_B___C"), Some("1"));
        assert_eq!(value("TASK_HEADER_NUL"), None);
        assert_eq!(value("TASK_HEADER_"), Some("empty"));
        assert_eq!(value("TASK_PRIORITY"), None);
        assert!(found.iter().all(|(name, _)| name.starts_with("TASK_")));
    }

    #[test]
    fn what_cannot_be_run_is_refused_before_anything_is() {
        let why =
            |name: &str| Command::new(name, [""; 0]).expect_err("it cannot be run").to_string();
        assert_eq!(why("no-such-program"), "command: no-such-program: not found in PATH");
        assert_eq!(why("/no/such"), "command: /no/such: not found");
        assert_eq!(why("/etc/passwd"), "command: /etc/passwd: is not executable");
        assert_eq!(why("/usr"), "command: /usr: is a folder");
    }

    #[test]
    fn out_of_time_is_a_failure_that_may_pass() {
        let command = sh("echo busy >&2; sleep 1000").time_limit(Duration::from_millis(100));
        let failed = run(command, Task::new(""));
        assert!(matches!(failed, Err(Failure::Retry { .. })), "{failed:?}");
        assert_eq!(
            failed.expect_err("it failed").reason(),
            "ran past its time limit of 100ms; the end of its standard error: busy"
        );
    }
}
