//! A command under test: started, read, signalled, and waited for with a limit.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};
use signal_hook::consts::{SIGINT, SIGQUIT};

/// A command to be run.
pub(crate) struct Command {
    command: std::process::Command,
    input: Input,
    kind: Kind,
}

/// What is to be added to its arguments.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A worker that prints its tasks unless it has a command for them.
    Worker,
    Other,
}

/// A running command. Dropping it kills its process group.
pub(crate) struct Running {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    ended: Receiver<()>,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
}

/// What a command left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// The exit code, unless a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Command {
    /// The `producer`, with empty input.
    pub(crate) fn producer(arguments: &[&str]) -> Command {
        Command::program(env!("CARGO_BIN_EXE_producer"), arguments)
    }

    /// The `worker`, with empty input, and with `--print` where it has no command.
    pub(crate) fn worker(arguments: &[&str]) -> Command {
        let command = Command::program(env!("CARGO_BIN_EXE_worker"), arguments);
        Command { kind: Kind::Worker, ..command }
    }

    /// The `queuectl`, with empty input.
    pub(crate) fn queuectl(arguments: &[&str]) -> Command {
        Command::program(env!("CARGO_BIN_EXE_queuectl"), arguments)
    }

    /// Any other program, with empty input.
    pub(crate) fn program(program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
        let mut command = std::process::Command::new(program);
        let options = std::env::vars_os().map(|(name, _)| name);
        for name in options.filter(|name| name.as_encoded_bytes().starts_with(b"RABBIT_WORK_")) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .env_remove("AMQP_URL")
            .env_remove("AMQP_URL_FILE")
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        Command { command, input: Input::Bytes(Vec::new()), kind: Kind::Other }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Command {
        self.command.arg(argument);
        self
    }

    pub(crate) fn args(mut self, arguments: &[&str]) -> Command {
        self.command.args(arguments);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Command {
        self.command.env(key, value);
        self
    }

    pub(crate) fn current_dir(mut self, path: &Path) -> Command {
        self.command.current_dir(path);
        self
    }

    /// The bytes of its input, which then ends.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Command {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Keeps its input open, for `Running::write` and `Running::end_input`.
    pub(crate) fn open_stdin(mut self) -> Command {
        self.input = Input::Open;
        self
    }

    /// Where its output goes instead of to whoever waits for lines.
    pub(crate) fn stdout(mut self, to: impl Into<Stdio>) -> Command {
        self.command.stdout(to);
        self
    }

    pub(crate) fn start(mut self) -> Running {
        hear_signals();
        if self.kind == Kind::Worker && !self.command.get_args().any(|it| it == "--") {
            self.command.arg("--print");
        }
        let name = self.command.get_program().to_string_lossy().into_owned();
        let spawned = self.command.stdin(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let mut stdin = child.stdin.take();
        if let Input::Bytes(bytes) = self.input {
            feed(stdin.take(), bytes);
        }
        let stdout = match child.stdout.take() {
            Some(stdout) => Stream::listen(stdout),
            None => Stream::listen(io::empty()),
        };
        let stderr = Stream::listen(child.stderr.take().expect("the stream is a pipe"));
        Running { name, ended: watch(&child), child, status: None, stdin, stdout, stderr }
    }

    /// Starts it and waits for its end.
    pub(crate) fn run(self, within: Duration) -> Output {
        self.start().wait(within)
    }
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processor time that all its threads have used so far.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = self.proc("stat");
        // The name, in parentheses, may hold anything. The times are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|it| it.parse::<u64>().expect("a count of ticks")).sum();
        Duration::from_millis(ticks * MILLISECONDS_PER_TICK)
    }

    /// The most memory that it has had so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = self.proc("status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = peak.and_then(|it| it.trim().strip_suffix(" kB")).expect("a peak in kB");
        kilobytes.parse::<u64>().expect("a number") * 1024
    }

    fn proc(&self, file: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.id()));
        text.unwrap_or_else(|error| self.fail(&format!("no {file} in /proc: {error}")))
    }

    /// Adds to an input that was kept open.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut();
        let stdin = stdin.expect("the command was started with its input open");
        if let Err(error) = stdin.write_all(bytes) {
            self.fail(&format!("it does not read its input: {error}"));
        }
    }

    /// Adds all of a file to an input that was kept open.
    pub(crate) fn feed(&mut self, file: &mut fs::File) {
        let stdin = self.stdin.as_mut();
        let stdin = stdin.expect("the command was started with its input open");
        io::copy(file, stdin).expect("the command reads its input");
    }

    pub(crate) fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        assert!(self.status.is_none(), "{} has ended already", self.name);
        kill_process(self.pid(), signal_named(name)).expect("a child can be signalled");
    }

    /// Kills it, and only it: what it started lives on, as after any crash.
    pub(crate) fn kill(&self) {
        self.signal("KILL");
    }

    /// Waits for a line of its stdout, after those that earlier waits have passed.
    pub(crate) fn wait_for_stdout_line(
        &self,
        wanted: impl Fn(&str) -> bool,
        within: Duration,
    ) -> String {
        let line = self.stdout.wait_for_line(wanted, within);
        line.unwrap_or_else(|why| self.fail(&format!("no such line on stdout: {why}")))
    }

    /// Waits for a line of its stderr, after those that earlier waits have passed.
    pub(crate) fn wait_for_stderr_line(
        &self,
        wanted: impl Fn(&str) -> bool,
        within: Duration,
    ) -> String {
        let line = self.stderr.wait_for_line(wanted, within);
        line.unwrap_or_else(|why| self.fail(&format!("no such line on stderr: {why}")))
    }

    /// The same, for a program that may have nothing more to say: `None` once it has ended.
    pub(crate) fn next_stderr_line(
        &self,
        wanted: impl Fn(&str) -> bool,
        within: Duration,
    ) -> Option<String> {
        self.stderr.wait_for_line(wanted, within).ok()
    }

    /// Waits for its end; kills it and fails the test if that does not come in time.
    pub(crate) fn wait(mut self, within: Duration) -> Output {
        if self.ended.recv_timeout(within).is_err() {
            self.end();
            self.fail(&format!("not ended after {within:?}, so it was killed"));
        }
        let status = self.reap();
        let deadline = Instant::now() + LAST_WORDS;
        self.stdout.wait_for_end(deadline);
        self.stderr.wait_for_end(deadline);
        Output {
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn reap(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("a child can be waited for");
        self.status = Some(status);
        status
    }

    /// The group's leader is not reaped yet, so the group's number is still ours.
    fn end(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        self.reap();
    }

    fn fail(&self, why: &str) -> ! {
        let stdout = self.stdout.text();
        let stderr = self.stderr.text();
        panic!(
            "{}: {why}\n--- stdout:\n{}\n--- stderr:\n{}",
            self.name,
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_some() {
            return;
        }
        self.end();
        if thread::panicking() {
            let stderr = self.stderr.text();
            eprintln!("--- stderr of {}:\n{}", self.name, String::from_utf8_lossy(&stderr));
        }
    }
}

impl Output {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// What it says of errors: lines of its own, and records of the log without time and level.
    pub(crate) fn errors(&self) -> Vec<String> {
        let own = |line: &'_ str| {
            let names = ["producer: ", "worker: ", "queuectl: "];
            names.iter().find_map(|name| line.strip_prefix(name)).map(String::from)
        };
        let logged = |line: &str| line.split_once(" ERROR ").map(|(_, said)| said.to_owned());
        self.stderr().lines().filter_map(|line| own(line).or_else(|| logged(line))).collect()
    }

    /// Its stdout, after it must have exited with 0.
    pub(crate) fn success(&self) -> String {
        self.assert_code(0);
        self.stdout()
    }

    pub(crate) fn assert_code(&self, code: i32) {
        assert_eq!(
            (self.code, self.signal),
            (Some(code), None),
            "\n--- stdout:\n{}\n--- stderr:\n{}",
            self.stdout(),
            self.stderr()
        );
    }
}

/// The same on every Linux, whatever its kernel counts in.
const MILLISECONDS_PER_TICK: u64 = 10;

/// What a dead command's own children may still hold open is waited for so long.
const LAST_WORDS: Duration = Duration::from_secs(1);

enum Input {
    Bytes(Vec<u8>),
    Open,
}

/// An output stream, read by a thread: line by line for who waits, and as a whole.
struct Stream {
    text: Arc<Mutex<Vec<u8>>>,
    lines: Receiver<String>,
    ended: Receiver<()>,
}

impl Stream {
    fn listen(stream: impl Read + Send + 'static) -> Stream {
        let text = Arc::new(Mutex::new(Vec::new()));
        let (to, lines) = unbounded();
        let (end, ended) = bounded::<()>(0);
        thread::spawn({
            let text = Arc::clone(&text);
            move || {
                let _end = end;
                let _ = listen(stream, &text, &to);
            }
        });
        Stream { text, lines, ended }
    }

    fn wait_for_line(
        &self,
        wanted: impl Fn(&str) -> bool,
        within: Duration,
    ) -> Result<String, String> {
        let deadline = Instant::now() + within;
        loop {
            let line = self.lines.recv_deadline(deadline);
            let line = line.map_err(|error| format!("{error} ({within:?})"))?;
            if wanted(&line) {
                return Ok(line);
            }
        }
    }

    /// Nothing is ever sent there: the thread's end disconnects it.
    fn wait_for_end(&self, deadline: Instant) {
        let _ = self.ended.recv_deadline(deadline);
    }

    fn text(&self) -> Vec<u8> {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    }
}

fn listen(stream: impl Read, text: &Mutex<Vec<u8>>, lines: &Sender<String>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line)? > 0 {
        text.lock().unwrap_or_else(PoisonError::into_inner).extend(&line);
        let shown = line.strip_suffix(b"\n").unwrap_or(&line);
        let _ = lines.send(String::from_utf8_lossy(shown).into_owned());
        line.clear();
    }
    Ok(())
}

/// A shell lets what it starts in the background ignore these signals, and all that this starts
/// in its turn. Where they are handled here, a program started from here has their defaults.
fn hear_signals() {
    static HEARD: Once = Once::new();
    HEARD.call_once(|| {
        for signal in [SIGINT, SIGQUIT] {
            let always = Arc::new(AtomicBool::new(true));
            let heard = signal_hook::flag::register_conditional_default(signal, always);
            heard.expect("the signal can be handled");
        }
    });
}

/// In a thread, since a command that does not read would stop us.
fn feed(stdin: Option<ChildStdin>, bytes: Vec<u8>) {
    let mut stdin = stdin.expect("the input is a pipe");
    thread::spawn(move || stdin.write_all(&bytes));
}

/// Tells of the child's end by disconnecting. The child is left to be reaped by its owner, so
/// that its number cannot become somebody else's before a signal is sent to it.
fn watch(child: &Child) -> Receiver<()> {
    let pid = Pid::from_child(child);
    let (ended, watched) = bounded(1);
    thread::spawn(move || {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), options), Err(Errno::INTR)) {}
        let _ = ended.send(());
    });
    watched
}

fn signal_named(name: &str) -> Signal {
    match name {
        "INT" => Signal::INT,
        "TERM" => Signal::TERM,
        "HUP" => Signal::HUP,
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        "QUIT" => Signal::QUIT,
        "PIPE" => Signal::PIPE,
        "USR1" => Signal::USR1,
        _ => panic!("no signal is known here by the name {name}"),
    }
}
