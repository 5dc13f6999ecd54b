//! The three stages of a stop, and what they do to running programs.

use std::fs;
use std::time::{Duration, Instant};

use super::{Bench, SOON, UNREAD, lives, state};
use crate::support::broker::poll;
use crate::support::command::{Command, Output, Running};
use crate::support::scripted::ScriptedBroker;
use crate::support::wire::Delivery;

const HEEDS: &str = "echo $$ > pid; echo up; exec sleep 600";
const IGNORES: &str = "trap '' TERM; echo $$ > pid; echo up; while :; do sleep 1; done";

/// A worker that runs the script for one task, and has begun to.
fn working(bench: &Bench, grace: &str, script: &str) -> Running {
    bench.publish(&[b"x"]);
    let worker = bench.worker(&["--threads", "2", "--grace", grace], &["sh", "-c", script]).start();
    worker.wait_for_stdout_line(|line| line == "up", SOON);
    worker
}

/// Nothing was acked, and nobody is left.
fn assert_given_back(bench: &Bench, output: &Output, code: i32) {
    output.assert_code(code);
    assert!(!lives(&bench.read("pid")), "an orphan");
    let left = bench.left();
    assert!(left.len() == 1 && left[0].redelivered, "{left:?}");
}

#[test]
fn the_first_signal_lets_it_finish() {
    let bench = Bench::new("finish");
    let worker = working(&bench, "30s", "echo up; sleep 1; echo done");
    worker.signal("HUP");
    let output = worker.wait(SOON);
    assert_eq!(output.success(), "up\ndone\n");
    assert!(bench.left().is_empty());
}

#[test]
fn at_the_end_of_the_grace_it_gets_sigterm() {
    let bench = Bench::new("grace");
    let worker = working(&bench, "1s", HEEDS);
    let signalled = Instant::now();
    worker.signal("TERM");
    let output = worker.wait(SOON);
    assert!(signalled.elapsed() < Duration::from_secs(4), "{:?}", signalled.elapsed());
    assert_given_back(&bench, &output, 3);
}

#[test]
fn a_signal_stops_it_also_where_whoever_started_it_had_blocked_that() {
    let bench = Bench::new("masked");
    for signal in ["INT", "TERM", "HUP"] {
        let worker = env!("CARGO_BIN_EXE_worker");
        let address = ["--print", "--url", bench.broker.url(), "--queue", &bench.queue];
        let masked = ["--block-signal", worker];
        let running = Command::program("env", &[&masked[..], &address].concat()).start();
        running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
        running.signal(signal);
        running.wait(SOON).assert_code(0);
    }
}

/// Whoever reads the events or the summary has to know what became of each task that began.
#[test]
fn what_ends_after_the_connection_went_silent_is_reported_as_what_may_run_twice() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        session.deliver(&Delivery::new(consumer.channel, &consumer.tag, 1).body("x"));
        session.stay_silent();
    });
    let dir = tempfile::tempdir().expect("a folder");
    let url = broker.url();
    let options = ["--url", &url, "--threads", "1", "--grace", "0s", "--events", "events"];
    let command = ["--", "sh", "-c", HEEDS];
    let worker = Command::worker(&[&options[..], &command].concat()).current_dir(dir.path());
    let worker = worker.start();
    worker.wait_for_stdout_line(|line| line == "up", SOON);

    worker.signal("TERM");
    let output = worker.wait(SOON);

    output.assert_code(3);
    assert!(output.stderr().contains("0 requeued, 1 may run twice"), "{}", output.stderr());
    let events = fs::read_to_string(dir.path().join("events")).expect("the events");
    assert!(events.lines().last().is_some_and(|it| it.contains("\"orphaned\"")), "{events}");
}

#[test]
fn what_is_left_behind_running_is_reported_as_requeued() {
    let bench = Bench::new("behind");
    bench.publish(&[b".........."]);
    let worker = bench.worker(&["--threads", "1", "--grace", "0s", "--events", "events"], &[]);
    let worker = worker.start();
    worker.wait_for_stdout_line(|line| line.contains("Received"), SOON);

    worker.signal("TERM");
    worker.wait(SOON).assert_code(3);

    let events = bench.read("events");
    assert!(events.lines().last().is_some_and(|it| it.contains("\"returned\"")), "{events}");
    assert_eq!(bench.left().len(), 1);
}

#[test]
fn the_second_signal_brings_sigterm_at_once() {
    let bench = Bench::new("second");
    let worker = working(&bench, "60s", HEEDS);
    worker.signal("INT");
    worker.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    let signalled = Instant::now();
    worker.signal("INT");
    let output = worker.wait(SOON);
    assert!(signalled.elapsed() < Duration::from_secs(2), "{:?}", signalled.elapsed());
    assert_given_back(&bench, &output, 130);
}

#[test]
fn row_9_who_ignores_sigterm_is_killed_after_5_s() {
    let bench = Bench::new("ignores");
    let worker = working(&bench, "0s", IGNORES);
    let signalled = Instant::now();
    worker.signal("TERM");
    let output = worker.wait(SOON);
    let took = signalled.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(8)).contains(&took), "{took:?}");
    assert_given_back(&bench, &output, 3);
}

#[test]
fn what_was_killed_does_not_run_any_more() {
    let bench = Bench::new("counted");
    let worker = working(&bench, "1s", IGNORES);
    worker.signal("TERM");
    let output = worker.wait(SOON);
    assert_given_back(&bench, &output, 3);
    let stderr = output.stderr();
    assert!(stderr.contains("1 requeued, 0 may run twice, 0 still running"), "{stderr}");
}

#[test]
fn the_third_signal_kills_at_once() {
    let bench = Bench::new("third");
    let worker = working(&bench, "60s", IGNORES);
    worker.signal("INT");
    worker.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    let signalled = Instant::now();
    worker.signal("INT");
    worker.signal("TERM");
    let output = worker.wait(SOON);
    assert!(signalled.elapsed() < Duration::from_secs(4), "{:?}", signalled.elapsed());
    assert_given_back(&bench, &output, 130);
}

#[test]
fn what_the_program_started_ends_with_it_and_has_its_time_for_that() {
    let bench = Bench::new("nested");
    // The shell dies of SIGTERM at once; what it started needs a second.
    let script = "sh -c 'trap \"sleep 1; echo clean > clean; exit\" TERM; echo $$ > pid; echo up; \
                  while :; do sleep 0.1; done' & wait";
    let worker = working(&bench, "60s", script);
    worker.signal("INT");
    worker.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    worker.signal("INT");
    let output = worker.wait(SOON);
    assert_given_back(&bench, &output, 130);
    assert_eq!(bench.read("clean"), "clean\n");
}

#[test]
fn two_signals_at_once_are_one() {
    let bench = Bench::new("echo");
    let worker = working(&bench, "30s", "echo up; sleep 1; echo done");
    worker.signal("TERM");
    worker.signal("INT");
    let output = worker.wait(SOON);
    assert_eq!(output.success(), "up\ndone\n");
    assert!(bench.left().is_empty());
}

#[test]
fn a_full_stderr_that_nobody_reads_does_not_keep_it_from_ending() {
    let bench = Bench::new("blocked");
    let worker = bench.unread_worker("--print --grace 0s").start();
    poll("it heeds signals", SOON, || heeds_sigterm(worker.id()).then_some(()));
    worker.signal("TERM");
    worker.wait(SOON).assert_code(3);
}

#[test]
fn the_health_file_is_removed_also_where_there_is_no_orderly_end() {
    // The worker says nothing of a classic queue, and so comes to work though nobody reads it.
    let bench = Bench::with_classic("lastresort");
    let file = bench.path("health");
    let worker = bench.unread_worker("--print --grace 0s --health-file health").start();
    poll("the health file", SOON, || file.exists().then_some(()));

    worker.signal("TERM");
    worker.wait(SOON).assert_code(3);

    assert!(!file.exists());
}

#[test]
fn a_program_whose_words_nobody_reads_ends_with_its_worker() {
    let bench = Bench::new("unread");
    bench.publish(&[b"x"]);
    let worker = bench.unread_worker("--grace 0s -- sh -c \"$SCRIPT\"");
    let worker = worker.env("SCRIPT", UNREAD).env("RUST_LOG", "off").start();
    worker.wait_for_stdout_line(|line| line == "up", SOON);

    worker.signal("TERM");
    let output = worker.wait(SOON);

    assert_given_back(&bench, &output, 3);
}

/// Whether the worker, and no longer the shell before it, has a handler for it.
fn heeds_sigterm(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let caught = field("SigCgt:").and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    field("Name:").is_some_and(|name| name.trim() == "worker")
        && caught.is_some_and(|mask| mask & (1 << 14) != 0)
}

const CTRL_C: &[u8] = b"\x03";

/// A worker in a terminal of its own that runs the script for one task, and has begun to. What
/// it writes to either stream is the terminal's output.
fn working_in_a_terminal(bench: &Bench, script: &str) -> Running {
    bench.publish(&[b"x"]);
    let worker = env!("CARGO_BIN_EXE_worker");
    let (url, queue) = (bench.broker.url(), &bench.queue);
    let line =
        format!("exec {worker} --url {url} --queue {queue} --grace 60s -- sh -c \"$SCRIPT\"");
    let terminal = Command::program("script", &["-qefc", &line, "/dev/null"])
        .current_dir(bench.dir.path())
        .env("SCRIPT", script)
        .open_stdin()
        .start();
    wait_for_shown(&terminal, "up");
    terminal
}

fn wait_for_shown(terminal: &Running, words: &str) {
    terminal.wait_for_stdout_line(|line| line.contains(words), SOON);
}

#[test]
fn row_7_a_ctrl_c_in_the_terminal_does_not_reach_the_program() {
    let bench = Bench::new("tty");
    let script = "trap 'echo reached > reached' INT; echo up; sleep 1; echo finished";
    let mut terminal = working_in_a_terminal(&bench, script);
    terminal.write(CTRL_C);
    wait_for_shown(&terminal, "stopping");
    wait_for_shown(&terminal, "finished");
    terminal.wait(SOON).assert_code(0);
    assert!(!bench.path("reached").exists());
    assert!(bench.left().is_empty());
}

#[test]
fn a_second_ctrl_c_in_the_terminal_brings_the_program_sigterm() {
    let bench = Bench::new("tty2");
    let script = "trap 'echo reached > reached' INT; trap 'echo told > told; exit' TERM; \
                  echo $$ > pid; echo up; sleep 600 & wait";
    let mut terminal = working_in_a_terminal(&bench, script);
    terminal.write(CTRL_C);
    wait_for_shown(&terminal, "stopping");

    terminal.write(CTRL_C);
    let output = terminal.wait(SOON);

    assert_given_back(&bench, &output, 130);
    assert_eq!(bench.read("told"), "told\n");
    assert!(!bench.path("reached").exists());
}

#[test]
fn a_program_that_reads_the_terminal_is_stopped_and_reported_all_the_same() {
    let bench = Bench::new("reads");
    let script = "trap 'echo told > told; exit' TERM; echo $$ > pid; echo up; read line </dev/tty";
    let mut terminal = working_in_a_terminal(&bench, script);
    let pid = bench.read("pid");
    poll("it is stopped", SOON, || (state(&pid) == Some('T')).then_some(()));
    terminal.write(CTRL_C);
    wait_for_shown(&terminal, "stopping");

    terminal.write(CTRL_C);
    let output = terminal.wait(SOON);

    assert_given_back(&bench, &output, 130);
    assert_eq!(bench.read("told"), "told\n");
}

#[test]
fn a_third_ctrl_c_in_the_terminal_kills_the_program_at_once() {
    let bench = Bench::new("tty3");
    let script = "trap 'echo told' TERM; echo $$ > pid; echo up; while :; do sleep 1; done";
    let mut terminal = working_in_a_terminal(&bench, script);
    terminal.write(CTRL_C);
    wait_for_shown(&terminal, "stopping");
    let second = Instant::now();
    terminal.write(CTRL_C);
    wait_for_shown(&terminal, "told");

    terminal.write(CTRL_C);
    let output = terminal.wait(SOON);

    assert!(second.elapsed() < Duration::from_secs(5), "it was given its time");
    assert_given_back(&bench, &output, 130);
}

#[test]
fn a_worker_that_is_killed_gives_everything_back() {
    let bench = Bench::new("killed");
    let worker = working(&bench, "60s", HEEDS);
    worker.kill();
    worker.wait(SOON);
    let left = poll("the task is back", SOON, || Some(bench.left()).filter(|it| !it.is_empty()));
    assert!(left.len() == 1 && left[0].redelivered, "{left:?}");
    Command::program("kill", &["-9", bench.read("pid").trim()]).run(SOON);
}
