//! Batches of which not all tasks are published: the others are waited for.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde_json::Value;

use super::{SOON, assert_all_done, noting, outcomes, runs, scripted_worker, text, waiting};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output};

/// More than a broker takes.
const TOO_LONG: u64 = 130 << 20;

/// These keys of the summary of --json.
fn counts<const COUNT: usize>(output: &Output, keys: [&str; COUNT]) -> [Option<u64>; COUNT] {
    let summary: Value = serde_json::from_str(&output.stdout()).expect("JSON");
    keys.map(|key| summary[key].as_u64())
}

#[test]
fn a_producer_that_gives_up_waits_for_what_it_has_published() {
    let (url, queue) = (shared_broker().url(), unique_queue("gave-up"));
    let dir = tempfile::tempdir().expect("a directory");
    let (file, ledger) = (dir.path().join("file"), dir.path().join("ledger"));
    shared_broker().client().declare_bounded(&queue, 3);
    let wait = |timeout| {
        let options = ["--no-declare", "--window", "2", "--outcomes", text(&file), "--json"];
        waiting(url, &queue, 10, &[&options[..], &["--timeout", timeout]].concat())
    };
    let running = wait("1s").start();
    let how = format!("; to go on, run the same command again, with --outcomes {}", file.display());
    let gave_up = |line: &str| line.contains("gave up after ") && line.ends_with(&how);
    running.wait_for_stderr_line(gave_up, SOON);

    let script = noting(&ledger, "true");
    let worker = scripted_worker(url, &queue, &["--no-declare", "--threads", "1"], &script);
    let output = running.wait(SOON);

    output.assert_code(1);
    assert!(!output.stderr().contains("continue with line"), "{}", output.stderr());
    let [confirmed, done, left, read] = counts(&output, ["confirmed", "done", "left", "read"]);
    assert_eq!((confirmed, left), (done, Some(0)));
    assert!(done >= Some(1) && read.is_some(), "{}", output.stdout());

    let again = wait("60s").run(SOON);
    again.assert_code(0);
    assert_all_done(&file, 10);
    assert_eq!(runs(&ledger).values().sum::<usize>(), 10, "none ran twice");
    drop(worker);
    shared_broker().client().delete(&queue);
}

#[test]
fn a_task_that_is_too_long_is_not_waited_for_and_the_exit_status_reports_it() {
    let (url, queue) = (shared_broker().url(), unique_queue("too-long"));
    let dir = tempfile::tempdir().expect("a directory");
    let (file, input) = (dir.path().join("file"), dir.path().join("input"));
    // Its NULs take no room.
    let lines = File::create(&input).expect("a file");
    lines.write_all_at(b"1\n", 0).expect("written");
    lines.write_all_at(b"\n3\n", TOO_LONG).expect("written");
    let worker = scripted_worker(url, &queue, &["--threads", "1"], "true");

    let to = ["--url", url, "--queue", &queue, "--wait", "--outcomes", text(&file), "--json"];
    let output = Command::producer(&to).args(&["--lines", text(&input)]).run(SOON);

    output.assert_code(1);
    let found = counts(&output, ["confirmed", "unconfirmed", "done", "dead", "left"]);
    assert_eq!(found, [2, 1, 2, 0, 0].map(Some));
    assert_eq!(outcomes(&file).into_keys().collect::<Vec<_>>(), [1, 3]);
    drop(worker);
}
