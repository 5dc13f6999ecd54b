//! Several queues in one worker, and several queues watched at a time.

mod drain;
mod limits;
mod progress;
mod queues;
mod refused;
mod watch;

use std::time::Duration;

use serde_json::Value;

use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output};

const SOON: Duration = Duration::from_secs(60);

/// Names of queues that exist.
fn queues<const COUNT: usize>(test: &str) -> [String; COUNT] {
    let client = shared_broker().client();
    [(); COUNT].map(|()| {
        let name = unique_queue(test);
        client.declare(&name);
        name
    })
}

/// A worker of these queues.
fn worker(queues: &[&str], arguments: &[&str]) -> Command {
    let named = queues.iter().flat_map(|name| ["--queue", *name]);
    let command = Command::worker(&["--url", shared_broker().url()]);
    named.fold(command, Command::arg).args(arguments)
}

fn publish(queue: &str, bodies: &[&str]) {
    let mut client = shared_broker().client();
    bodies.iter().for_each(|body| client.publish_id(queue, body));
}

/// The last line of standard output.
fn summary(output: &Output) -> Value {
    let stdout = output.stdout();
    let line = stdout.lines().last().unwrap_or_else(|| panic!("{}", output.stderr()));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}
