//! The `worker` command: its output, its stops, its exit statuses, and what stays in the queue.

mod connection;
mod output;
mod signals;
mod tasks;

use std::time::Duration;

use serde_json::Value;

use crate::support::broker::shared_broker;
use crate::support::command::{Command, Output, Running};

const SOON: Duration = Duration::from_secs(30);

fn worker(queue: &str, arguments: &[&str]) -> Command {
    let to = ["--url", shared_broker().url(), "--queue", queue];
    Command::worker(&[&to, arguments].concat())
}

/// A worker that has begun to consume.
fn started(queue: &str, arguments: &[&str]) -> Running {
    let running = worker(queue, arguments).start();
    wait_until_consuming(&running);
    running
}

fn wait_until_consuming(running: &Running) {
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
}

fn wait_for_task(running: &Running, body: &str) {
    let wanted = format!(" [x] Received '{body}'");
    running.wait_for_stdout_line(|line| line == wanted, SOON);
}

fn errors(output: &Output) -> Vec<String> {
    output.errors()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
