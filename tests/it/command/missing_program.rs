//! A program that is missing for a moment when a task arrives.

use std::fs;

use super::{Bench, SOON, counts, executable};
use crate::support::broker::poll;
use crate::support::command::Running;

/// A worker whose second task finds its command gone, as `once` says.
fn with_a_command_that_goes(bench: &Bench, once: &str, options: &[&str]) -> Running {
    bench.publish(&[b"first", b"second", b"third"]);
    let script = format!("#!/bin/sh\n[ $(cat) != first ] || {once}\n");
    executable(bench, "job", script.as_bytes());
    let own = ["--threads", "1", "--json", "--events", "events"];
    let worker = bench.worker(&[&own[..], options].concat(), &["./job"]).start();
    poll("a task waits for its command", SOON, || {
        let events = fs::read_to_string(bench.path("events")).unwrap_or_default();
        (events.matches("started").count() == 2).then_some(())
    });
    worker
}

#[test]
fn a_program_that_is_replaced_is_waited_for_and_no_task_goes_back() {
    let bench = Bench::new("replaced");
    let worker = with_a_command_that_goes(&bench, "mv job new", &["--drain"]);
    // Not executable, then nothing the system can execute, then all of it.
    fs::write(bench.path("job"), "").expect("written");
    executable(&bench, "job", b"");
    fs::rename(bench.path("new"), bench.path("job")).expect("renamed");

    let summary = worker.wait(SOON).success();

    assert_eq!(counts(&summary), [3, 0, 0, 0]);
}

#[test]
fn a_program_that_stays_away_ends_the_worker_and_its_task_goes_back_uncounted() {
    let bench = Bench::new("away");
    let worker = with_a_command_that_goes(&bench, "rm job", &["--drain"]);

    let output = worker.wait(SOON);

    output.assert_code(2);
    assert!(output.stderr().contains("./job cannot be executed"), "{}", output.stderr());
    assert_eq!(counts(&output.stdout()), [1, 0, 0, 1]);
    assert_eq!(bench.left().len(), 2);
}

#[test]
fn a_stop_does_not_wait_for_a_program_that_is_away() {
    let bench = Bench::new("awaystop");
    let worker = with_a_command_that_goes(&bench, "rm job", &["--grace", "0s"]);

    worker.signal("TERM");

    worker.wait(SOON).assert_code(3);
    assert_eq!(bench.left().len(), 2);
}
