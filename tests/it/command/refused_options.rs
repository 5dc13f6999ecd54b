//! Options that are most likely a mistake: they are refused before a task is touched.

use super::{Bench, SOON};
use crate::support::command::{Command, Output};

/// Whoever is reached by nobody does no harm.
const NOBODY: [&str; 4] = ["--url", "amqp://127.0.0.1:1", "--timeout", "1s"];

fn refused(output: &Output, told: &str) {
    output.assert_code(2);
    assert!(output.stderr().contains(told), "{}", output.stderr());
}

#[test]
fn a_list_that_is_not_read_is_not_sent_as_hello_world() {
    let bench = Bench::new("unread");
    let unread = "MESSAGE: there is none, and standard input is not read without --lines";
    refused(&bench.producer(&[]).stdin("task\n").run(SOON), unread);
    refused(&bench.producer(&[]).stdin("").run(SOON), unread);
    refused(&bench.producer(&[]).open_stdin().start().wait(SOON), unread);
    assert_eq!(bench.left().len(), 0);
    // A list for the tutorial's queue, and nothing for it.
    refused(&Command::producer(&NOBODY).stdin("task\n").run(SOON), unread);
    Command::producer(&NOBODY).stdin("").run(SOON).assert_code(69);
    Command::producer(&NOBODY).open_stdin().start().wait(SOON).assert_code(69);
}

#[test]
fn a_worker_without_a_command_prints_only_what_it_may() {
    let bench = Bench::new("print");
    bench.publish(&[b"precious"]);
    let to = ["--url", bench.broker.url(), "--queue", &bench.queue, "--drain"];
    let bare = Command::program(env!("CARGO_BIN_EXE_worker"), &to).run(SOON);
    refused(&bare, &format!("missing for queue '{}'", bench.queue));
    assert_eq!(bench.broker.client().count(&bench.queue), 1);

    let both = bench.worker(&["--print"], &["true"]).run(SOON);
    refused(&both, "'--print' cannot be used with");

    let printed = bench.worker(&["--drain"], &[]).run(SOON).success();
    assert_eq!(printed, " [x] Received 'precious'\n [x] Done\n");
    // The tutorial's own queue needs no word more.
    let nobody = ["--url", "amqp://127.0.0.1:1", "--no-reconnect"];
    Command::program(env!("CARGO_BIN_EXE_worker"), &nobody).run(SOON).assert_code(69);
}

#[test]
fn a_command_without_dashes_gets_a_hint_at_them() {
    let hint = "tip: put -- before the command: -- ./job";
    let worker = |arguments: &[&str]| Command::worker(arguments).run(SOON);
    refused(&worker(&["--queue", "q", "./job"]), hint);
    refused(&worker(&["./job", "--with", "options"]), hint);
    let other = worker(&["--bogus"]);
    other.assert_code(2);
    assert!(!other.stderr().contains("before the command"), "{}", other.stderr());
}

#[test]
fn a_comma_in_the_queue_s_name_is_reported() {
    let told = "--queue takes one name; 'a,b' is one queue with a comma in its name";
    let queue = ["--queue", "a,b"];
    let producer = Command::producer(&[&NOBODY[..], &queue, &["x"]].concat()).run(SOON);
    let nobody = ["--url", "amqp://127.0.0.1:1"];
    let options = ["--no-reconnect", "--", "true"];
    let worker = Command::worker(&[&nobody[..], &queue, &options].concat()).run(SOON);
    let queuectl = Command::queuectl(&[&nobody[..], &queue, &["status"]].concat()).run(SOON);
    for output in [producer, worker, queuectl] {
        output.assert_code(69);
        assert_eq!(output.stderr().matches(told).count(), 1, "{}", output.stderr());
    }
}
