//! [`Command`]: a [`Handler`] that runs a program for each task, and turns its exit status into a
//! result.

mod cancel;
mod defer_file;
mod kept;
mod launch;
pub(crate) mod output;
mod pipe;
mod process;
mod status;
mod zombies;

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::RecvTimeoutError;
use log::debug;
use rustix::io::Errno;

use crate::command::cancel::{CancelPipes, KILL_AFTER};
use crate::command::defer_file::{DeferFile, DeferFiles};
use crate::command::kept::{Kept, OutputFiles};
use crate::command::launch::{
    filled_in, find, input, is_being_written, is_not_executable, is_not_inherited, not_started,
    variables,
};
use crate::command::output::{BackgroundPipes, OutputMode, OutputStream, Sink};
use crate::command::process::{Ended, Process, StopCause};
use crate::command::status::{verdict_of_status, with_tail};
use crate::model::error::Error;
use crate::model::handler::{Delivery, Failure, Handler};
use crate::util::shutdown::is_closed;
use crate::util::text::printable;

/// Runs a program for each task, the body on its standard input, and reads its exit status.
///
/// | the program | the task |
/// |---|---|
/// | exits with 0 | is done |
/// | exits with 65 (`EX_DATAERR` of sysexits) | can never succeed: [`Failure::Reject`] |
/// | exits with 75 (`EX_TEMPFAIL`) | is to be tried later, without a failure: [`Failure::Defer`] |
/// | exits with any other status, dies of a signal, runs past the [time limit](Command::time_limit) | may succeed another time: [`Failure::Retry`] |
/// | could not be started for lack of memory, processes or descriptors, or was cancelled by a stop | [`Failure::Requeue`] |
/// | cannot be executed any more, such as one that was removed, nor within 5 s | [`Failure::StopWorker`] |
///
/// No shell is involved. `{}` in an argument is replaced by the body; an argument that begins
/// with it may then look like an option, so put `--` before it if the program supports that. A
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
/// The environment is this program's own without its `TASK_` and `RABBIT_WORK_` variables, its trace
/// and its service manager's variables (`NOTIFY_SOCKET`, `WATCHDOG_PID`, `WATCHDOG_USEC`), and with
/// `TASK_ID`,
/// `TASK_QUEUE`, `TASK_ATTEMPT`, `TASK_MAX_ATTEMPTS`, `TASK_DEFERRALS`, `TASK_REDELIVERED` (0 or 1),
/// `TASK_CONTENT_TYPE`, `TASK_CONTENT_ENCODING`, `TASK_TYPE`, `TASK_PRIORITY`, `TASK_ENQUEUED_AT`
/// (Unix seconds), `TASK_CORRELATION_ID`, `TASK_REPLY_TO`, `TASK_WORKER` (the number of the worker thread) and
/// a `TASK_HEADER_<NAME>` for each header, its name in upper case with `_` for whatever is
/// neither a letter nor a digit. The headers `traceparent`, `tracestate` and `baggage` set
/// `TRACEPARENT`, `TRACESTATE` and `BAGGAGE`. What a task does not have is not set.
///
/// `TASK_DEFER_FILE` names a file that does not exist yet. Before it exits with 75, the program may
/// write there how long the task is to wait: `120` for seconds, or `2m`. Anything else is ignored,
/// with one warning. More than 42 days count as 42. The path is in the folder for temporary files. The
/// program may also move a file there. The file is removed after the task.
///
/// The program leads a process group of its own, so a Ctrl-C in a terminal does not reach it.
/// At the time limit, and when a stop is out of patience, the whole group gets SIGTERM, and
/// SIGKILL 5 s later. When this program itself is killed, the programs it started go on.
///
/// A program that ends by itself may leave others running in the background. Their standard error
/// is passed on for 64 programs at a time, until this one ends. Then the pipe is closed, and the
/// next write to it raises SIGPIPE: redirect it.
///
/// While the output of programs is not read (a full pipe, a sink that waits), their tasks and time
/// limits wait. A stop does not.
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
    /// As it was given, and as the program itself sees it (`argv[0]`).
    name: OsString,
    path: PathBuf,
    arguments: Vec<OsString>,
    time_limit: Option<Duration>,
    lines: Lines,
    /// The names of our own variables that are not passed on.
    not_inherited: Vec<OsString>,
    cancel: CancelPipes,
    defer_files: DeferFiles,
    background: BackgroundPipes,
}

/// How the lines that programs write are forwarded.
enum Lines {
    Plain,
    Forwarded(Arc<Sink>),
    Tagged(Arc<Sink>),
}

/// The reason of a task whose program was not started.
const STOPPED_BEFORE_START: &str = "the worker stopped before it started";
/// The time a killed program may take to disappear.
const EXIT_AFTER_KILL: Duration = Duration::from_millis(500);
/// The pauses between tries to start a program that cannot be executed, because an update may be
/// replacing it. In milliseconds, 5 s in all.
const PAUSES: [u64; 8] = [50, 100, 200, 400, 800, 1000, 1000, 1450];

impl Command {
    /// A handler that runs this program with these arguments. A program without a `/` in its
    /// name is looked up in `PATH`.
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
        let not_inherited = variables.filter(|name| is_not_inherited(name));
        Ok(Command {
            path,
            name,
            arguments: arguments.into_iter().map(Into::into).collect(),
            time_limit: None,
            lines: Lines::Plain,
            not_inherited: not_inherited.collect(),
            cancel: CancelPipes::default(),
            defer_files: DeferFiles::default(),
            background: BackgroundPipes::default(),
        })
    }

    /// Sets how long a program may run. Default: no limit.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Command {
        self.time_limit = Some(limit);
        self
    }

    /// Does not pass this variable of this program's environment on, such as one with a password.
    #[must_use]
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Command {
        self.not_inherited.push(name.into());
        self
    }

    /// Hands what programs write to `sink`, line by line with thread and task id before each,
    /// instead of passing it on. It is called with whole lines, from several threads at a time;
    /// a line of more than 64 KiB comes in pieces. If it fails, the pipe is closed and the task is
    /// requeued. Default: output is passed on unchanged.
    #[must_use]
    pub fn tag_lines(
        mut self,
        sink: impl Fn(OutputStream, &[u8]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Command {
        self.lines = Lines::Tagged(Arc::new(sink));
        self
    }

    /// Hands what programs write and this program passes on to `sink`, in whole lines, instead of
    /// writing it to this program's own stream: their standard error, but not their standard output,
    /// which they write themselves. It is called from several threads at a time; a line of more than
    /// 64 KiB comes in pieces. If it fails, the pipe is closed and the task is requeued. Default: this
    /// program's own streams.
    #[must_use]
    pub fn forward_lines(
        mut self,
        sink: impl Fn(OutputStream, &[u8]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Command {
        self.lines = Lines::Forwarded(Arc::new(sink));
        self
    }

    /// Does the work of one task as [`Handler::handle`] does, with these two files as the program's
    /// standard output and standard error. Nothing is passed on or [tagged](Command::tag_lines).
    /// Both files have to be open for reading as well: the end of standard error becomes part of
    /// a failure's reason. A file that is open for appending also holds what a process writes that
    /// the program left in the background.
    ///
    /// # Errors
    /// As those of [`Handler::handle`]; and [`Failure::Requeue`] if a file cannot be read.
    ///
    /// # Blocking
    /// As long as the program runs.
    pub fn handle_into(
        &self,
        delivery: &Delivery,
        stdout: &File,
        stderr: &File,
    ) -> Result<(), Failure> {
        self.run(delivery, Some(OutputFiles { stdout, stderr }))
    }

    fn run(&self, delivery: &Delivery, files: Option<OutputFiles<'_>>) -> Result<(), Failure> {
        if is_closed(delivery.cancelled()) {
            return Err(Failure::requeue(STOPPED_BEFORE_START));
        }
        let cancel = self.cancel.of(delivery).map_err(|error| not_started(&error))?;
        let defer_file = self.defer_files.file();
        let (started, since) = (SystemTime::now(), Instant::now());
        let process = self.start(delivery, &defer_file, files)?;
        let mut ended = process.wait(&cancel, &self.background).map_err(|error| {
            Failure::requeue(format!(
                "the worker killed the command, because it could not wait for it: {error}"
            ))
        })?;
        let elapsed = since.elapsed();
        if let Some(files) = files {
            ended.kept = Kept::of_files(files, delivery.kept_output).map_err(|error| {
                Failure::requeue(format!("its output cannot be read back: {error}"))
            })?;
        }
        let verdict = self.verdict(&ended);
        // A handler may run several programs for one task: the first one counts.
        let _ = delivery.program_end.set(Box::new(ended.into_program_end(started, elapsed)));
        verdict.map_err(|failure| defer_file.with_delay(failure, delivery))
    }

    /// The program for one task, not started yet.
    fn prepare(
        &self,
        delivery: &Delivery,
        defer_file: &DeferFile<'_>,
        files: Option<OutputFiles<'_>>,
    ) -> Result<std::process::Command, Failure> {
        let mut command = std::process::Command::new(&self.path);
        command.arg0(&self.name);
        for argument in &self.arguments {
            command.arg(filled_in(argument, delivery.body())?);
        }
        for name in &self.not_inherited {
            command.env_remove(name);
        }
        command.envs(variables(delivery));
        command.envs(defer_file.path().map(|path| ("TASK_DEFER_FILE", path)));
        command.stdin(input(delivery.body()).map_err(|error| not_started(&error))?);
        let (stdout, stderr) =
            self.output_streams(delivery, files).map_err(|error| not_started(&error))?;
        command.stdout(stdout).stderr(stderr);
        Ok(command)
    }

    /// Standard output and standard error of a program.
    fn output_streams(
        &self,
        delivery: &Delivery,
        files: Option<OutputFiles<'_>>,
    ) -> io::Result<(Stdio, Stdio)> {
        if let Some(OutputFiles { stdout, stderr }) = files {
            return Ok((stdout.try_clone()?.into(), stderr.try_clone()?.into()));
        }
        let is_read = matches!(self.lines, Lines::Tagged(_)) || delivery.kept_output > 0;
        let stdout = if is_read { Stdio::piped() } else { Stdio::inherit() };
        Ok((stdout, Stdio::piped()))
    }

    fn output_mode(&self, delivery: &Delivery) -> OutputMode {
        match &self.lines {
            Lines::Plain => OutputMode::Plain,
            Lines::Forwarded(sink) => OutputMode::Forwarded(Arc::clone(sink)),
            Lines::Tagged(sink) => {
                let id = delivery.task().id().unwrap_or("-");
                let tag = format!("[{} {}] ", delivery.thread(), printable(id));
                OutputMode::Tagged { tag: tag.into_bytes().into(), sink: Arc::clone(sink) }
            }
        }
    }

    /// Starts the program for one task, and tries again for a while if it cannot be executed.
    fn start(
        &self,
        delivery: &Delivery,
        defer_file: &DeferFile<'_>,
        files: Option<OutputFiles<'_>>,
    ) -> Result<Process, Failure> {
        let mut command = self.prepare(delivery, defer_file, files)?;
        let (limit, mode, kept) =
            (self.time_limit, self.output_mode(delivery), delivery.kept_output);
        let mut start = || Process::start(&mut command, limit, &mode, kept);
        for pause in PAUSES {
            match start() {
                Err(error) if is_not_executable(&error) || is_being_written(&error) => {
                    debug!("{} cannot be executed: {error}", self.name.to_string_lossy());
                }
                started => return started.map_err(|error| self.start_failure(&error)),
            }
            let pause = Duration::from_millis(pause);
            if delivery.cancelled().recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return Err(Failure::requeue(STOPPED_BEFORE_START));
            }
        }
        start().map_err(|error| self.start_failure(&error))
    }

    /// A task too large for the program never succeeds; a program that cannot be executed stops the
    /// worker; every other error is temporary.
    fn start_failure(&self, error: &io::Error) -> Failure {
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

    fn verdict(&self, ended: &Ended) -> Result<(), Failure> {
        match (ended.stopped_by, &ended.output_error) {
            (Some(StopCause::Cancelled), _) => Err(Failure::requeue("the worker stopped it")),
            (_, Some(error)) => {
                Err(Failure::requeue(format!("its output cannot be written: {error}")))
            }
            (Some(StopCause::TimeLimit), _) => {
                let limit = self.time_limit.unwrap_or_default();
                Err(Failure::retry(with_tail(
                    &format!("ran past its time limit of {limit:?}"),
                    ended,
                )))
            }
            (None, None) => verdict_of_status(ended),
        }
    }
}

impl Handler for Command {
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure> {
        self.run(delivery, None)
    }

    fn cancel_timeout(&self) -> Duration {
        KILL_AFTER + EXIT_AFTER_KILL
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Lines::Plain => "Plain",
            Lines::Forwarded(_) => "Forwarded",
            Lines::Tagged(_) => "Tagged",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::handler::test_delivery;
    use crate::model::task::Task;

    fn run(command: Command, task: Task) -> Result<(), Failure> {
        command.handle(&test_delivery(task))
    }

    fn sh(script: &str) -> Command {
        Command::new("sh", ["-c", script]).expect("sh is there")
    }

    #[test]
    fn the_exit_status_says_what_becomes_of_the_task() {
        assert_eq!(run(sh("exit 0"), Task::new("")), Ok(()));
        assert_eq!(run(sh("exit 65"), Task::new("")), Err(Failure::reject("exit status 65")));
        assert_eq!(run(sh("exit 75"), Task::new("")), Err(Failure::defer("exit status 75", None)));
        assert_eq!(run(sh("exit 255"), Task::new("")), Err(Failure::retry("exit status 255")));
        assert_eq!(run(sh("kill -9 $$"), Task::new("")), Err(Failure::retry("killed by signal 9")));
    }

    #[test]
    fn the_end_of_the_program_is_reported_as_data() {
        let end_of = |script: &str| {
            let mut delivery = test_delivery(Task::new(""));
            delivery.kept_output = 3;
            let _ = sh(script).handle(&delivery);
            delivery.program_end().cloned().expect("it ended")
        };
        let ended = end_of("echo words; exit 7");
        assert_eq!((ended.exit, ended.signal), (Some(7), None));
        assert_eq!((ended.output.as_slice(), ended.output_bytes), (b"wor".as_slice(), 6));
        let killed = end_of("kill -9 $$");
        assert_eq!((killed.exit, killed.signal), (None, Some(9)));
        assert_eq!((killed.output.as_slice(), killed.output_bytes), (b"".as_slice(), 0));
    }

    #[test]
    fn a_program_says_how_long_its_task_is_to_wait() {
        let command = sh("echo 90s >\"$TASK_DEFER_FILE\"; echo busy >&2; exit 75");
        let reason = "exit status 75; the end of its standard error: busy";
        let failed = run(command, Task::new(""));
        assert_eq!(failed, Err(Failure::defer(reason, Duration::from_secs(90))));
    }

    #[test]
    fn output_that_cannot_be_passed_on_is_reported_as_such() {
        let delivery = test_delivery(Task::new(""));
        let full = |_: OutputStream, _: &[u8]| Err(io::Error::other("full"));
        let failed = sh("echo words").tag_lines(full).handle(&delivery);
        assert_eq!(failed, Err(Failure::requeue("its output cannot be written: full")));
        let end = delivery.program_end().expect("it ended");
        assert_eq!(end.output_error.as_deref(), Some("full"));
    }

    #[test]
    fn files_hold_the_output_of_a_program_and_the_reason_has_its_end() {
        let [stdout, stderr] = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
        let mut delivery = test_delivery(Task::new(""));
        delivery.kept_output = 4;
        let failed =
            sh("echo result; seq 10000 >&2; exit 1").handle_into(&delivery, &stdout, &stderr);
        let reason = failed.expect_err("it failed").reason().to_string();
        assert!(reason.ends_with("\n9999\n10000"), "{reason}");
        assert!((4000..4200).contains(&reason.len()), "{}", reason.len());
        let length = |file: &File| file.metadata().expect("a length").len();
        assert_eq!((length(&stdout), length(&stderr)), (7, 48894));
        let end = delivery.program_end().expect("it ended");
        assert_eq!((end.output.as_slice(), end.output_bytes), (b"resu".as_slice(), 7));
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
    fn a_body_too_long_for_an_argument_never_succeeds() {
        let command = Command::new("true", ["{}"]).expect("true is there");
        let failed = run(command, Task::new(vec![b'x'; 4 << 20]));
        assert!(matches!(failed, Err(Failure::Reject { .. })), "{failed:?}");
    }

    #[test]
    fn what_cannot_be_run_is_refused_before_anything_is() {
        let why =
            |name: &str| Command::new(name, [""; 0]).expect_err("it cannot be run").to_string();
        assert_eq!(why("no-such-program"), "command: no-such-program: not found in PATH");
        assert_eq!(why("/no/such"), "command: /no/such: not found");
        assert_eq!(why("/etc/passwd"), "command: /etc/passwd: is not executable");
        assert_eq!(why("/usr"), "command: /usr: is a directory");
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
