//! Batches: a producer that waits until each of its tasks has ended, and workers that report it.

mod delivery_limit;
mod faults;
mod library;
mod output;
mod refused;
mod resumed;
mod terminal;
mod unpublished;
mod waiting;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::command::{Command, Running};

const SOON: Duration = Duration::from_secs(60);

/// A line for each number.
fn lines(count: usize) -> String {
    (1..=count).map(|n| format!("{n}\n")).collect()
}

/// A producer that waits for these lines.
fn waiting(url: &str, queue: &str, count: usize, options: &[&str]) -> Command {
    let arguments = ["--url", url, "--queue", queue, "--lines", "-", "--wait"];
    Command::producer(&[&arguments[..], options].concat()).stdin(lines(count))
}

/// A worker that runs this script for each task.
fn scripted_worker(url: &str, queue: &str, options: &[&str], script: &str) -> Running {
    let arguments = ["--url", url, "--queue", queue];
    let command = ["--", "sh", "-c", script];
    Command::worker(&[&arguments[..], options, &command].concat()).start()
}

/// A script that takes a task's number, notes in `ledger` that it ran, and then does this.
fn noting(ledger: &Path, then: &str) -> String {
    format!("read n; echo \"$n\" >>'{}'; {then}", ledger.display())
}

/// How often each task ran.
fn runs(ledger: &Path) -> BTreeMap<u64, usize> {
    let mut runs = BTreeMap::new();
    for line in fs::read_to_string(ledger).unwrap_or_default().lines() {
        *runs.entry(line.parse().expect("a number")).or_default() += 1;
    }
    runs
}

/// The outcomes in a file of --outcomes, which has one for each task.
fn outcomes(file: &Path) -> BTreeMap<u64, Value> {
    let mut outcomes = BTreeMap::new();
    for line in fs::read_to_string(file).expect("a file of outcomes").lines() {
        let line: Value = serde_json::from_str(line).expect("JSON in each line");
        if line["type"] == "rabbit-work.outcome" {
            let n = line["n"].as_u64().expect("a number");
            assert_eq!(outcomes.insert(n, line), None, "task {n} counts twice");
        }
    }
    outcomes
}

fn assert_all_done(file: &Path, count: u64) {
    let outcomes = outcomes(file);
    assert_eq!(outcomes.keys().copied().collect::<Vec<_>>(), (1..=count).collect::<Vec<_>>());
    assert!(outcomes.values().all(|it| it["outcome"] == "done"), "{outcomes:?}");
}

/// How many tasks the file of --outcomes says have ended.
fn ended(file: &Path) -> usize {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.contains("rabbit-work.outcome")).count()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
