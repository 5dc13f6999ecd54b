//! How a program ends: its exit status, its last words, its background processes, its time limit.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Bench, SOON, children, last_words, lives, worker_after};
use crate::support::broker::poll;
use crate::support::command::Command;
use crate::support::proxy::Proxy;

#[test]
fn a_dead_letter_says_how_it_ended_and_what_was_said_last() {
    let bench = Bench::new("lastwords");
    bench.publish(&[b"x"]);
    let script = "seq 1 10000 >&2; exit 65";
    bench.worker(&["--drain"], &["sh", "-c", script]).run(SOON).assert_code(1);
    let said: String = (1..=10_000).map(|n| format!("{n}\n")).collect();
    let last = said[said.len() - 4096..].trim_end();
    let wanted = format!("exit status 65; the end of its standard error: {last}");
    assert_eq!(last_words(&bench), wanted);
}

#[test]
fn a_list_of_dead_letters_shows_how_each_ended_and_what_was_said_last() {
    let bench = Bench::new("listed");
    bench.publish(&[b"exit 7", b"kill -9 $$"]);
    let options = ["--threads", "1", "--max-attempts", "1", "--drain"];
    let script = ["sh", "-c", "echo begun >&2; echo 'no such photo' >&2; eval \"$1\"", "sh", "{}"];
    bench.worker(&options, &script).run(SOON).assert_code(1);
    let list = ["--url", bench.broker.url(), "--queue", &bench.queue, "dead", "list"];

    let rows = Command::queuectl(&list).run(SOON).success();
    let letters = Command::queuectl(&list).arg("--json").run(SOON).success();

    let letters: Value = serde_json::from_str(&letters).expect("JSON");
    for (number, end) in ["exit status 7", "killed by signal 9"].iter().enumerate() {
        let said = format!("{end}; the end of its standard error: begun\nno such photo");
        assert_eq!(letters[number]["reason"], said, "{letters}");
        let row = rows.lines().nth(number + 1).unwrap_or_default();
        assert!(row.ends_with(&said.replace('\n', " ")), "{rows}");
    }
}

#[test]
fn programs_that_have_ended_are_gone_while_others_run() {
    let bench = Bench::new("reaped");
    let bodies = [&["exec sleep 600"][..], &["exit 3"; 30], &["true & kill -9 $$"; 30]].concat();
    bench.publish(&bodies.iter().map(|body| body.as_bytes()).collect::<Vec<_>>());
    let options = ["--threads", "2", "--max-attempts", "1", "--grace", "0s", "--events", "events"];
    let worker = bench.worker(&options, &["sh", "-c", "eval \"$1\"", "sh", "{}"]);
    let worker = worker.env("RUST_LOG", "error").start();

    poll("60 have ended", SOON, || {
        let events = fs::read_to_string(bench.path("events")).unwrap_or_default();
        (events.matches(r#""event":"dead""#).count() == 60).then_some(())
    });

    let children = children(worker.id());
    assert!(children.len() == 1 && lives(&children[0]), "{children:?}");
    worker.signal("TERM");
    worker.wait(SOON).assert_code(3);
}

#[test]
fn row_10_what_a_task_leaves_in_the_background_does_not_hold_it_up() {
    let bench = Bench::new("background");
    bench.publish(&[b"x"]);
    let started = Instant::now();
    let script = "(sleep 60; true) & echo $! > pid; echo said >&2; exit 0";
    let worker = bench.worker(&["--max-tasks", "1", "--tag"], &["sh", "-c", script]);
    // The background program holds the pipe to us too.
    let worker = worker.start();
    worker.wait_for_stderr_line(|line| line.contains("1 tasks done"), SOON);
    assert!(started.elapsed() < Duration::from_secs(30));
    let pid = bench.read("pid");
    assert!(lives(&pid), "it was let be");
    Command::program("pkill", &["-P", pid.trim()]).run(SOON);
    worker.wait(SOON).assert_code(0);
}

#[test]
fn row_12_at_the_time_limit_the_whole_group_ends() {
    let bench = Bench::new("limit");
    bench.publish(&[b"x"]);
    let script = "sleep 600 & echo $! > pid; echo stuck >&2; wait";
    let options = ["--max-tasks", "1", "--task-timeout", "500ms"];
    let started = Instant::now();
    let output = bench.worker(&options, &["sh", "-c", script]).run(SOON);
    assert!(started.elapsed() < Duration::from_secs(5), "SIGTERM was enough");
    let stderr = output.stderr();
    assert!(
        stderr.contains("time limit of 500ms; the end of its standard error: stuck"),
        "{stderr}"
    );
    assert!(!lives(&bench.read("pid")));
}

#[test]
fn row_12_the_others_go_on_while_a_program_runs_into_its_time_limit() {
    let bench = Bench::new("others");
    let quick = [&b"quick"[..]; 20];
    bench.publish(&[&[&b"stuck"[..]], &quick[..]].concat());
    let script = "if [ $(cat) = quick ]; then echo quick >> order; exit; fi
        trap 'echo stuck >> order; exit 1' TERM; sleep 600 & wait";
    let options = ["--threads", "2", "--max-tasks", "21", "--task-timeout", "4s"];

    bench.worker(&options, &["sh", "-c", script]).run(SOON);

    assert_eq!(bench.read("order"), "quick\n".repeat(20) + "stuck\n");
}

#[test]
fn rows_9_and_12_a_program_that_ignores_the_time_limit_is_killed() {
    let bench = Bench::new("ignores");
    bench.publish(&[b"x"]);
    let script = "trap '' TERM; echo $$ > pid; while :; do sleep 1; done";
    let options = ["--max-tasks", "1", "--task-timeout", "500ms"];
    let output = bench.worker(&options, &["sh", "-c", script]).run(SOON);
    assert!(output.stderr().contains("time limit"), "{}", output.stderr());
    assert!(!lives(&bench.read("pid")));
}

#[test]
fn where_ends_of_children_are_ignored_they_are_noticed_all_the_same() {
    let bench = Bench::new("ignored");
    bench.publish(&[b"0", b"65"]);
    let command = ["sh", "-c", "exit $(cat)"];
    let output = worker_after(&bench, "trap '' CHLD", &["--drain", "--json"], &command).run(SOON);
    output.assert_code(1);
    let summary: Value = serde_json::from_str(&output.stdout()).expect("a summary");
    assert_eq!((&summary["done"], &summary["dead"]), (&1.into(), &1.into()));
}

#[test]
fn a_time_limit_of_nothing_is_refused() {
    let bench = Bench::new("no-time");
    let output = bench.worker(&["--task-timeout", "0"], &["true"]).run(SOON);
    output.assert_code(2);
    assert!(output.stderr().contains("--task-timeout: 0 would"), "{}", output.stderr());
}

/// The task is somebody else's by then: nothing is known to be done.
#[test]
fn a_session_that_is_lost_during_the_last_task_lets_it_finish_and_is_reported_in_the_status() {
    let bench = Bench::new("last");
    bench.publish(&[b"x"]);
    let proxy = Proxy::start(bench.broker.address());
    let url = proxy.url();
    let options = ["--url", &url, "--queue", &bench.queue, "--max-tasks", "1", "--grace", "0s"];
    let command = ["--", "sh", "-c", "echo up; sleep 2; echo through"];
    let worker = Command::worker(&[&options[..], &command].concat()).start();
    worker.wait_for_stdout_line(|line| line == "up", SOON);
    proxy.cut();
    worker.wait_for_stdout_line(|line| line == "through", SOON);
    worker.wait(SOON).assert_code(1);
    assert_eq!(bench.left().len(), 1);
}

#[test]
fn a_time_limit_of_any_length_is_taken() {
    let bench = Bench::new("longest");
    let options = ["--drain", "--health-file", "health", "--task-timeout", LONGEST];
    bench.worker(&options, &["true"]).run(SOON).assert_code(0);
}

const LONGEST: &str = "18446744073709551615s";
