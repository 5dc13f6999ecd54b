//! Where a producer takes its tasks from: words, lines, pipes, and input of any size.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::{SOON, errors, json, producer};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::scripted::ScriptedBroker;

#[test]
fn words_are_joined_and_repeated() {
    let queue = unique_queue("words");

    let output = producer(&queue, &["--repeat", "3", "a", "task", "..."]).run(SOON);

    assert_eq!(output.success(), " [x] Sent 'a task ...'\n".repeat(3));
    let messages = shared_broker().client().get_all(&queue);
    assert_eq!(messages.len(), 3);
    assert!(messages.iter().all(|message| message.text() == "a task ..."));
}

#[test]
fn words_may_be_any_bytes() {
    let queue = unique_queue("bytes");

    let word = OsStr::from_bytes(b"\xff\xfe");
    let output = producer(&queue, &["a"]).arg(word).run(SOON);

    assert_eq!(output.success(), " [x] Sent 'a \u{fffd}\u{fffd}'\n");
    assert_eq!(shared_broker().client().get_all(&queue)[0].body, b"a \xff\xfe");
}

#[test]
fn row_61_empty_input_and_a_last_line_without_newline_are_defined() {
    let queue = unique_queue("input");

    let empty = producer(&queue, &["--lines", "--json"]).run(SOON);
    let torn = producer(&queue, &["--lines", "--json"]).stdin("one\n\nthree").run(SOON);

    empty.assert_code(0);
    assert_eq!(json(&empty)["published"], 0);
    torn.assert_code(0);
    let got: Vec<String> =
        shared_broker().client().get_all(&queue).iter().map(|message| message.text()).collect();
    assert_eq!(got, ["one", "", "three"]);
}

#[test]
fn a_task_that_is_too_large_fails_alone_and_the_rest_is_sent() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let publish = session.read_publish();
        session.ack(publish.channel, 1);
        let second = session.read_publish();
        if number == 0 {
            let text = "PRECONDITION_FAILED - message size 5 is larger than configured max size 4";
            session.close_channel(second.channel, 406, text);
            session.read_until_closed();
        } else {
            session.ack(second.channel, 2);
            assert_eq!(session.answer_rpcs(), None);
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");

    let output = Command::producer(&["--url", &broker.url(), "--lines", "--json"])
        .args(&["--window", "1", "--failed", &failed.to_string_lossy()])
        .stdin("1\n22222\n3\n4\n")
        .run(SOON);

    output.assert_code(1);
    assert_eq!(
        (&json(&output)["unconfirmed"], &json(&output)["confirmed"]),
        (&1.into(), &3.into())
    );
    assert_eq!(fs::read_to_string(&failed).expect("--failed"), "22222\n");
    broker.finish(SOON);
}

#[test]
fn an_input_that_is_not_read_is_not_taken_for_none() {
    let queue = unique_queue("unread");
    let producer = env!("CARGO_BIN_EXE_producer");
    let to = format!("'{producer}' --url {} --queue {queue}", shared_broker().url());
    let run = |script: &str| Command::program("sh", &["-c", script]).run(SOON);

    for input in ["</etc/passwd", "--", "</dev/null", "<&-", "--repeat 2 </dev/null"] {
        let script = format!("exec {to} {input}");
        let output = run(&script);
        output.assert_code(2);
        assert!(errors(&output)[0].contains("MESSAGE: there is none"), "{}", output.stderr());
    }
}

#[test]
fn long_tasks_that_the_broker_does_not_take_are_not_read_into_memory() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        session.read_publish();
        session.stay_silent();
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let line = [vec![b'x'; 1 << 20], vec![b'\n']].concat();
    let mut running = Command::producer(&["--url", &broker.url(), "--lines"])
        .args(&["--timeout", "4s", "--failed", &failed.to_string_lossy()])
        .open_stdin()
        .start();

    // It reads on when it has given up.
    for _ in 0..200 {
        running.write(&line);
    }
    let peak = running.peak_memory();
    running.end_input();
    let output = running.wait(SOON);

    output.assert_code(1);
    assert!(peak < 80 << 20, "{peak} bytes");
    assert_eq!(fs::metadata(&failed).expect("--failed").len(), 200 * line.len() as u64);
}

#[test]
fn stopped_it_does_not_say_that_it_reads_the_rest() {
    let (sent, published) = bounded(1);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        session.read_publish();
        let _ = sent.send(());
        let _ = session.answer_rpcs();
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let mut running = Command::producer(&["--url", &broker.url(), "--lines", "--json"])
        .args(&["--window", "1", "--timeout", "5s", "--failed", &failed.to_string_lossy()])
        .open_stdin()
        .start();
    running.write(b"1\n2\n3\n");
    published.recv_timeout(SOON).expect("the first is published");

    running.signal("TERM");
    let output = running.wait(SOON);

    output.assert_code(1);
    assert!(!output.stderr().contains("the rest of the input"), "{}", output.stderr());
    let summary = json(&output);
    let sum = |fields: [&str; 2]| fields.map(|it| summary[it].as_u64().expect("a count"));
    let [published, unconfirmed] = sum(["published", "unconfirmed"]);
    assert!(published < unconfirmed && unconfirmed == 3, "{summary}");
    assert_eq!(fs::read(&failed).expect("--failed"), b"1\n2\n3\n");
}

#[test]
fn a_signal_stops_the_reading_of_an_endless_input() {
    for signal in ["INT", "TERM", "HUP"] {
        let queue = unique_queue("endless");
        let mut running = producer(&queue, &["--lines", "--json"]).open_stdin().start();
        running.write(b"one\n");
        shared_broker_has(&queue, 1);

        let begun = Instant::now();
        running.signal(signal);
        let output = running.wait(SOON);

        assert!(begun.elapsed() < Duration::from_secs(3), "{signal}: {:?}", begun.elapsed());
        output.assert_code(1);
        assert_eq!(json(&output)["confirmed"], 1, "{signal}");
    }
}

fn shared_broker_has(queue: &str, count: u32) {
    let client = shared_broker().client();
    client.declare(queue);
    client.wait_for_count(queue, count, SOON);
}
