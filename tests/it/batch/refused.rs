//! Options of `producer --wait` that cannot work: refused before anything is published.

use std::fs;

use super::{SOON, scripted_worker, text, waiting};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;

/// Nobody listens there.
const NOWHERE: &str = "amqp://127.0.0.1:1";

fn refused(arguments: &[&str], named: &str) {
    let base = ["--url", NOWHERE, "--queue", "q", "--timeout", "1s"];
    let output = Command::producer(&[&base[..], arguments, &["task"]].concat()).run(SOON);
    output.assert_code(2);
    assert!(output.stderr().contains(named), "{arguments:?}: {}", output.stderr());
}

#[test]
fn a_wait_that_could_not_end_is_refused() {
    refused(&["--wait", "--transient"], "--transient");
    refused(&["--wait", "--transient-queue"], "transient queue");
    refused(&["--wait", "--expiration", "1m"], "add --wait-timeout");
    refused(&["--wait", "--wait-timeout", "0"], "--wait-timeout: 0 would not wait");
    refused(&["--wait", "--wait-timeout", "0s"], "--wait-timeout: 0 would not wait");
}

#[test]
fn options_of_a_wait_need_it() {
    for options in [
        &["--outcomes", "f"][..],
        &["--output"],
        &["--wait-timeout", "1s"],
        &["--wait", "--keep-order"],
        &["--wait", "--output", "--json"],
        &["--wait", "--reply-to", "answers"],
        &["--wait", "--correlation-id", "1"],
        &["--outcomes", "f", "--reply-to", "answers"],
        &["--wait-timeout", "1s", "--correlation-id", "1"],
        &["--output", "--reply-to", "answers"],
        &["--keep-order", "--reply-to", "answers"],
        &["--wait", "--keep-order", "--json"],
    ] {
        refused(options, "error: ");
    }
}

#[test]
fn a_file_of_something_else_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    refused(
        &["--wait", "--outcomes", "-"],
        "--outcomes: it cannot be standard output; name a file",
    );
    refused(&["--wait", "--outcomes", text(dir.path())], "--outcomes: ");
    let of_other = r#"{"type":"rabbit-work.batch","batch":"00","queue":"other"}"#;
    let no_id = r#"{"type":"rabbit-work.batch","batch":"00","queue":"q"}"#;
    let headless = r#"{"type":"rabbit-work.outcome","n":1,"outcome":"done","attempts":1}"#;
    for (content, reason) in [
        ("a note\n".to_string(), "line 1: it is not a line of an --outcomes file"),
        ("a note without an end".to_string(), "line 1: it is not a line of an --outcomes file"),
        (format!("{of_other}\n"), "line 1: its batch is of queue 'other'"),
        (format!("{no_id}\n"), "32 hexadecimal digits"),
        (format!("{headless}\n"), "the line that names the batch is missing"),
    ] {
        fs::write(&file, &content).expect("written");
        refused(&["--wait", "--outcomes", text(&file)], reason);
        assert_eq!(fs::read_to_string(&file).expect("read"), content);
    }
}

#[test]
fn the_file_of_another_batch_is_refused_before_anything_is_published() {
    let (url, queue) = (shared_broker().url(), unique_queue("other-batch"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    let worker = scripted_worker(url, &queue, &["--threads", "2"], "true");
    waiting(url, &queue, 20, &["--outcomes", text(&file)]).run(SOON).success();
    worker.signal("INT");
    worker.wait(SOON).assert_code(0);
    let before = fs::read(&file).expect("read");

    let again = || waiting(url, &queue, 0, &["--outcomes", text(&file)]);
    for (input, reason) in [
        ((1..=21).map(|n| format!("x{n}\n")).collect::<String>(), "the input differs"),
        ((1..=19).map(|n| format!("{n}\n")).collect(), "the input was longer"),
        (String::new(), "the input was longer"),
    ] {
        let output = again().stdin(input).run(SOON);
        output.assert_code(2);
        assert!(output.stderr().contains(reason), "{}", output.stderr());
    }

    assert_eq!(shared_broker().client().count(&queue), 0, "nothing is published");
    assert_eq!(fs::read(&file).expect("read"), before);
}
