//! Processes for tests to kill or count: this test program again, which runs one test of this file
//! with settings from the environment. Without them, each of these tests does nothing.

use std::env;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rabbit_work::{
    Broker, Delivery, Failure, Producer, Queue, QueueType, RetryPolicy, Shutdown, Task, Worker,
    Workers, shutdown, shutdown_on_signals,
};
use rustix::process::{Signal, getpid, kill_process};

use crate::support::broker::poll;
use crate::support::command::Command;
use crate::support::ledger::Ledger;

/// A worker of the library that keeps a ledger.
pub(crate) struct LedgerWorker<'a> {
    pub(crate) url: &'a str,
    pub(crate) queue: &'a str,
    pub(crate) ledger: &'a Path,
    pub(crate) threads: usize,
    pub(crate) prefetch: u16,
    pub(crate) task: Duration,
    pub(crate) at_the_end: AtTheEnd,
}

/// What the task does as its last act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtTheEnd {
    Return,
    KillItsProcess,
}

/// What a `LedgerWorker` does in a task, for the shell; its argument is the ledger.
pub(crate) const LEDGER_SCRIPT: &str = r#"echo "S $TASK_ID" >>"$0"
    case $TASK_ID in
        *dead) exit 1 ;;
        *once) [ "$TASK_ATTEMPT" -gt 1 ] || exit 1 ;;
    esac
    echo "F $TASK_ID" >>"$0""#;

impl<'a> LedgerWorker<'a> {
    /// One whose process dies of its first task. It has no more than that in hand: of several
    /// consumers, each that is still there when another dies is one more delivery.
    pub(crate) fn killer(url: &'a str, queue: &'a str, ledger: &'a Path) -> LedgerWorker<'a> {
        let at_the_end = AtTheEnd::KillItsProcess;
        let task = Duration::ZERO;
        LedgerWorker { url, queue, ledger, threads: 1, prefetch: 1, task, at_the_end }
    }

    /// The `worker`, with a command that keeps the ledger.
    pub(crate) fn with_command_per_task(&self) -> Command {
        let (threads, prefetch) = (self.threads.to_string(), self.prefetch.to_string());
        let to = ["--url", self.url, "--queue", self.queue];
        let own = ["--threads", &threads, "--prefetch", &prefetch, "--grace", "5s"];
        let policy =
            ["--max-attempts", "3", "--retry-delay", "100ms", "--max-retry-delay", "100ms"];
        let run = ["--", "sh", "-c", LEDGER_SCRIPT];
        Command::worker(&[&to[..], &own, &policy, &run].concat()).arg(self.ledger)
    }

    /// It prints `first task` when it has one, and stops at a signal.
    pub(crate) fn command(&self) -> Command {
        this_program("child::a_ledger_worker")
            .env("IT_URL", self.url)
            .env("IT_QUEUE", self.queue)
            .env("IT_LEDGER", self.ledger)
            .env("IT_THREADS", self.threads.to_string())
            .env("IT_PREFETCH", self.prefetch.to_string())
            .env("IT_TASK_MS", self.task.as_millis().to_string())
            .env("IT_END", format!("{:?}", self.at_the_end))
    }
}

/// Opens, consumes and closes so many sessions, and prints `threads and fds before, after`.
pub(crate) fn sessions(url: &str, queue: &str, count: usize) -> Command {
    this_program("child::sessions_in_a_loop")
        .env("IT_URL", url)
        .env("IT_QUEUE", queue)
        .env("IT_COUNT", count.to_string())
}

/// A worker of a chain: each task of the queue `PREFIX.N` leads to one of `PREFIX.N+1`, up to the last
/// step. With `IT_DIES_AT`, its process is killed in the first task of that step.
pub(crate) fn chain_worker(url: &str, prefix: &str, ledger: &Path, steps: usize) -> Command {
    this_program("child::a_chain_worker")
        .env("IT_URL", url)
        .env("IT_PREFIX", prefix)
        .env("IT_LEDGER", ledger)
        .env("IT_STEPS", steps.to_string())
}

fn this_program(test: &str) -> Command {
    let program = env::current_exe().expect("a test knows its program");
    Command::program(program, &[test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
}

fn var(name: &str) -> Option<String> {
    env::var(name).ok()
}

fn number(name: &str) -> usize {
    let text = var(name).expect("the caller sets it");
    text.parse().expect("a number")
}

#[test]
#[ignore = "runs only as a process of another test"]
fn a_ledger_worker() {
    let (Some(url), Some(queue)) = (var("IT_URL"), var("IT_QUEUE")) else { return };
    let ledger = Arc::new(Ledger::open(Path::new(&var("IT_LEDGER").expect("a ledger"))));
    let task = Duration::from_millis(number("IT_TASK_MS") as u64);
    let kills = var("IT_END").as_deref() == Some("KillItsProcess");
    let broker: Broker = url.parse().expect("a URL");
    let queue = match (var("IT_NO_DECLARE"), var("IT_QUORUM")) {
        (Some(_), _) => Queue::new(queue).passive(),
        (None, Some(_)) => Queue::new(queue).queue_type(QueueType::Quorum),
        (None, None) => Queue::new(queue),
    };
    let worker = Worker::new(&broker, &queue)
        .threads(number("IT_THREADS"))
        .prefetch(number("IT_PREFETCH") as u16)
        .grace(Duration::from_secs(5))
        .retry(retry_policy());
    let worker = if var("IT_DRAIN").is_some() { worker.drain() } else { worker };
    let started = AtomicBool::new(false);
    let work = move |delivery: &Delivery| {
        let id = delivery.task().id().unwrap_or("without-id");
        if !started.swap(true, Ordering::SeqCst) {
            println!("first task");
        }
        ledger.started(id);
        thread::sleep(task);
        if delivery.attempt() < attempts_needed(id) {
            return Err(Failure::retry("not yet"));
        }
        ledger.finished(id);
        if kills {
            let _ = kill_process(getpid(), Signal::KILL);
        }
        Ok(())
    };
    let summary = worker.run(work, &stop_on_signals());
    println!("ended: {summary:?}");
    summary.expect("a worker with a broker that comes back ends well");
}

#[test]
#[ignore = "runs only as a process of another test"]
fn a_chain_worker() {
    let (Some(url), Some(prefix)) = (var("IT_URL"), var("IT_PREFIX")) else { return };
    let ledger = Arc::new(Ledger::open(Path::new(&var("IT_LEDGER").expect("a ledger"))));
    let (steps, dies_at) = (number("IT_STEPS"), var("IT_DIES_AT"));
    let broker: Broker = url.parse().expect("a URL");
    let queue_of = |step: usize| Queue::new(format!("{prefix}.{step}"));
    let workers = (0..steps).fold(Workers::new(), |all, step| {
        let worker = Worker::new(&broker, &queue_of(step)).threads(2).prefetch(5);
        let worker = if var("IT_DRAIN").is_some() { worker.drain() } else { worker };
        let next = (step + 1 < steps).then(|| queue_of(step + 1));
        let (ledger, dies) = (Arc::clone(&ledger), dies_at == Some(step.to_string()));
        all.add(worker, move |delivery: &Delivery| {
            let name = format!("{}.{step}", String::from_utf8_lossy(delivery.body()));
            ledger.started(&format!("{name}/{}", delivery.task().id().unwrap_or_default()));
            if let Some(next) = &next {
                delivery.follow_up(next, Task::new(delivery.body()))?;
            }
            ledger.finished(&name);
            if dies {
                let _ = kill_process(getpid(), Signal::KILL);
            }
            Ok(())
        })
    });
    workers.run(&stop_on_signals()).expect("a worker with a broker that comes back ends well");
}

/// A program that prints each stage of a stop, and never ends by itself.
pub(crate) fn program_with_signals() -> Command {
    this_program("child::a_program_with_signals").env("IT_SIGNALS", "1")
}

#[test]
#[ignore = "runs only as a process of another test"]
fn a_program_with_signals() {
    if var("IT_SIGNALS").is_none() {
        return;
    }
    let (trigger, shutdown) = shutdown_on_signals().expect("they have no handler yet");
    drop(trigger);
    assert!(!shutdown.is_stopping(), "the handler has a trigger, too");
    let again = shutdown_on_signals().expect_err("one for each program");
    println!("{again}");
    let stages = [shutdown.stopping(), shutdown.aborting(), shutdown.killing()];
    for (stage, name) in stages.into_iter().zip(["stopping", "aborting", "killing"]) {
        let _ = stage.recv();
        // A second signal this soon would not count.
        thread::sleep(Duration::from_millis(300));
        println!("{name}, aborting: {}", shutdown.is_aborting());
    }
    thread::sleep(Duration::from_secs(600));
}

/// Three attempts, a moment apart; the same that `with_command_per_task` asks for.
fn retry_policy() -> RetryPolicy {
    let delay = Duration::from_millis(100);
    RetryPolicy::new().max_attempts(3).first_delay(delay).longest_delay(delay)
}

/// At which attempt a task is done, which the end of its id may say.
fn attempts_needed(id: &str) -> u32 {
    match id {
        _ if id.ends_with("dead") => u32::MAX,
        _ if id.ends_with("once") => 2,
        _ => var("IT_ATTEMPTS").map_or(1, |text| text.parse().expect("a number")),
    }
}

#[test]
#[ignore = "runs only as a process of another test"]
fn sessions_in_a_loop() {
    let (Some(url), Some(queue)) = (var("IT_URL"), var("IT_QUEUE")) else { return };
    let count = number("IT_COUNT");
    let broker: Broker = url.parse().expect("a URL");
    let queue = Queue::new(queue);
    run_sessions(&broker, &queue, 5);
    let before = threads_and_fds();
    run_sessions(&broker, &queue, count);
    println!("threads and fds {before:?}, {:?}", threads_and_fds());
}

/// Each session takes one task; one that lost its connection would be an error.
fn run_sessions(broker: &Broker, queue: &Queue, count: usize) {
    let mut producer = Producer::new(broker, queue);
    let sent = (0..count).flat_map(|number| producer.send(Task::new(number.to_string())));
    let mut confirmed = sent.count();
    confirmed += producer.flush().len();
    assert_eq!(confirmed, count);
    drop(producer);
    for number in 0..count {
        // The pair is made anew each time: none is shared with an earlier session.
        let (_trigger, shutdown) = shutdown();
        let worker = Worker::new(broker, queue).threads(2).max_tasks(1).no_reconnect();
        let summary = worker.run(|_: &Delivery| Ok(()), &shutdown);
        let summary = summary.unwrap_or_else(|error| panic!("session {number}: {error}"));
        assert_eq!((summary.done, summary.orphaned), (1, 0), "session {number}");
    }
}

/// Counted once the threads of the sessions are gone, some of which nobody waits for.
fn threads_and_fds() -> (usize, usize) {
    poll("no thread of a session is left", Duration::from_secs(10), || {
        (!has_session_threads()).then_some(())
    });
    let count = |path| fs::read_dir(path).expect("/proc").count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

fn has_session_threads() -> bool {
    let threads = fs::read_dir("/proc/self/task").expect("/proc");
    let names = threads.flatten().map(|it| fs::read_to_string(it.path().join("comm")));
    // One that ends meanwhile has no name any more.
    names.flatten().any(|name| name.starts_with("rw-") || name.starts_with("amiquip"))
}

fn stop_on_signals() -> Shutdown {
    let (trigger, shutdown) = shutdown();
    ctrlc::set_handler(move || trigger.stop()).expect("no other handler is set");
    shutdown
}
