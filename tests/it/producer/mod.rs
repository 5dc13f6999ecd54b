//! The `producer` command: its input, its output, its exit statuses, and what is queued afterwards.

mod addresses;
mod declaring;
mod failed_file;
mod input;
mod outcomes;
mod output;
mod publishing;
mod signals;

use std::time::Duration;

use serde_json::Value;

use crate::support::broker::shared_broker;
use crate::support::command::{Command, Output};

const SOON: Duration = Duration::from_secs(30);

fn producer(queue: &str, arguments: &[&str]) -> Command {
    let to = ["--url", shared_broker().url(), "--queue", queue];
    Command::producer(&[&to, arguments].concat())
}

fn errors(output: &Output) -> Vec<String> {
    output.errors()
}

fn json(output: &Output) -> Value {
    let text = output.stdout();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
