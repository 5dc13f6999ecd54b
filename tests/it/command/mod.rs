//! The commands as a shell uses them: a program for each task, any bytes in, exit statuses.

mod body;
mod ending;
mod every_ending;
mod final_error;
mod first_process;
mod health_file;
mod input;
mod launch;
mod log;
mod long_input;
mod metrics;
mod missing_program;
mod no_threads;
mod output;
mod permissions;
mod progress;
mod refused_options;
mod service_manager;
mod stop;

use std::fs::{self, DirEntry, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use amiquip::AmqpValue;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::support::broker::{SharedBroker, poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output};

const SOON: Duration = Duration::from_secs(20);

/// A queue of its own on the shared broker, gone when the test is over.
struct Bench {
    broker: &'static SharedBroker,
    queue: String,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(test: &str) -> Bench {
        let broker = shared_broker();
        let queue = unique_queue(test);
        broker.client().declare(&queue);
        Bench { broker, queue, dir: tempfile::tempdir().expect("a folder") }
    }

    /// The same, with a classic queue also where the default is another type.
    fn with_classic(test: &str) -> Bench {
        let bench = Bench::new(test);
        let client = bench.broker.client();
        client.delete(&bench.queue);
        client.declare_classic(&bench.queue);
        bench
    }

    fn publish(&self, bodies: &[&[u8]]) {
        let messages = bodies.iter().map(|body| (*body, amiquip::AmqpProperties::default()));
        self.broker.client().publish_all(&self.queue, messages);
    }

    fn worker(&self, options: &[&str], command: &[&str]) -> Command {
        let address = ["--url", self.broker.url(), "--queue", &self.queue];
        let command = if command.is_empty() { vec![] } else { [&["--"], command].concat() };
        Command::worker(&[&address, options, &command].concat()).current_dir(self.dir.path())
    }

    fn producer(&self, options: &[&str]) -> Command {
        let address = ["--url", self.broker.url(), "--queue", &self.queue];
        Command::producer(&[&address, options].concat()).current_dir(self.dir.path())
    }

    /// A queue beside it that refuses what it has no room for; gone with it, too.
    fn full_queue(&self, room: i32) -> String {
        let name = format!("{}.full", self.queue);
        self.broker.client().declare_bounded(&name, room);
        name
    }

    /// A worker whose standard error is `full`, a full pipe that nobody reads; with arguments as
    /// a shell reads them.
    fn unread_worker(&self, arguments: &str) -> Command {
        let worker = env!("CARGO_BIN_EXE_worker");
        let (url, queue) = (self.broker.url(), &self.queue);
        // dd fills the pipe and fails; fd 3 keeps it open.
        let script = format!(
            "mkfifo full; exec 3<>full; dd if=/dev/zero of=full bs=4096 oflag=nonblock 2>&-; \
             exec {worker} --url {url} --queue {queue} {arguments} 2>full"
        );
        Command::program("sh", &["-c", &script]).current_dir(self.dir.path())
    }

    /// What is ready in the queue, taken out of it.
    fn left(&self) -> Vec<crate::support::client::Message> {
        self.broker.client().get_all(&self.queue)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for name in ["", ".dead", ".full"] {
                self.broker.client().delete(&format!("{}{name}", self.queue));
            }
        }
    }
}

fn executable(bench: &Bench, name: &str, content: &[u8]) {
    fs::write(bench.path(name), content).expect("written");
    Command::program("chmod", &["+x", &bench.path(name).to_string_lossy()]).run(SOON).success();
}

/// Begun by a shell that does `setting` first.
fn worker_after(bench: &Bench, setting: &str, options: &[&str], command: &[&str]) -> Command {
    let script = format!("{setting}; exec \"$0\" \"$@\"");
    let worker = env!("CARGO_BIN_EXE_worker");
    let address = ["-c", &script, worker, "--url", bench.broker.url(), "--queue", &bench.queue];
    Command::program("bash", &[&address, options, &["--"], command].concat())
}

/// What stands on the only dead letter.
fn last_words(bench: &Bench) -> String {
    let letters = bench.broker.client().get_all(&format!("{}.dead", bench.queue));
    assert_eq!(letters.len(), 1);
    match &letters[0].headers["x-rabbit-work-reason"] {
        AmqpValue::LongString(reason) => reason.clone(),
        other => panic!("no reason: {other:?}"),
    }
}

/// A program that runs on once its worker waits for a reader of its words: they are more than
/// the pipe between the two holds, by less than the worker takes out of it at a time.
const UNREAD: &str = "echo $$ > pid; yes words | head -c 67584 >&2; echo up; exec sleep 600";

/// What a shell does to have the others that write where it writes find no room there.
const UNBLOCK: &str = "dd if=/dev/null oflag=nonblock status=none";

/// Runs it with a pipe for its output that is not read before it is full; returns what it wrote.
fn run_into_full_pipe(command: Command) -> (Output, String) {
    let (end, pipe) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let same = pipe.try_clone().expect("another descriptor");
    let running = command.stdout(pipe).start();
    wait_until_full(&same);
    drop(same);
    let reading = thread::spawn(move || io::read_to_string(File::from(end)));
    let output = running.wait(SOON);
    (output, reading.join().expect("no panic").expect("text"))
}

fn wait_until_full(pipe: &impl AsFd) {
    let has_room = || rustix::event::poll(&mut [PollFd::new(pipe, PollFlags::OUT)], Some(&NOW));
    poll("the pipe is full", SOON, || (has_room() == Ok(0)).then_some(()));
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// How many tasks a worker's summary says were done, retried, dead and given back.
fn counts(summary: &str) -> [u64; 4] {
    let summary: serde_json::Value = serde_json::from_str(summary).expect("JSON");
    ["done", "retried", "dead", "returned"].map(|name| summary[name].as_u64().expect("a count"))
}

/// Whether a process is there and not a zombie.
fn lives(pid: &str) -> bool {
    !matches!(state(pid), Some('Z' | 'X') | None)
}

/// The processes that a process has started, also those that are zombies.
fn children(pid: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let of = |thread: DirEntry| fs::read_to_string(thread.path().join("children"));
    // A thread may have ended meanwhile.
    let children: String = threads.filter_map(|thread| of(thread.ok()?).ok()).collect();
    children.split_whitespace().map(str::to_string).collect()
}

/// The letter that `/proc` has for what a process does.
fn state(pid: &str) -> Option<char> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
