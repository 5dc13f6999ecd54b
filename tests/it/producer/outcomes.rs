//! Tasks that are confirmed, refused, returned or unconfirmed, and how a producer reports them.

use std::fs;
use std::time::{Duration, Instant};

use rabbit_work::{Outcome, Producer, Queue, Task};

use super::{SOON, errors, json, producer};
use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::scripted::ScriptedBroker;
use crate::support::wire::{Arguments, Frame, Properties, content};

#[test]
fn row_44_refused_tasks_are_nacked_exit_1_and_written_to_failed_exactly() {
    let queue = unique_queue("full");
    shared_broker().client().declare_bounded(&queue, 1);
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let failed_at = failed.to_string_lossy();

    let arguments =
        ["--no-declare", "--lines", "--json", "--timeout", "2s", "--failed", &failed_at];
    let input: String = (0..200).map(|number| format!("task {number}\n")).collect();
    let output = producer(&queue, &arguments).stdin(input.clone()).run(SOON);

    output.assert_code(1);
    let kept: Vec<String> =
        shared_broker().client().get_all(&queue).iter().map(|message| message.text()).collect();
    let refused: String = input
        .lines()
        .filter(|line| !kept.iter().any(|kept| kept == line))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(!kept.is_empty() && kept.len() < 200, "{} kept", kept.len());
    let mut written: Vec<String> =
        fs::read_to_string(&failed).expect("--failed").lines().map(str::to_owned).collect();
    let mut wanted: Vec<String> = refused.lines().map(str::to_owned).collect();
    written.sort();
    wanted.sort();
    assert_eq!(written, wanted);
    assert_eq!(json(&output)["nacked"], wanted.len());
    assert_eq!(json(&output)["confirmed"], kept.len());
}

#[test]
fn a_delayed_task_for_a_queue_that_is_not_there_is_returned_as_well() {
    let queue = unique_queue("ghost");
    let mut client = shared_broker().client();

    let arguments = ["--no-declare", "--delay", "1s", "--json", "--repeat", "2", "x"];
    let missing = producer(&queue, &arguments).run(SOON);
    let is_made = client.has(&format!("{queue}.retry.1000"));
    client.declare(&queue);
    let there = producer(&queue, &arguments).run(SOON);

    missing.assert_code(1);
    assert_eq!(json(&missing)["returned"], 2);
    assert!(
        errors(&missing)[0].contains(&format!("queue '{queue}' does not exist")),
        "{missing:?}"
    );
    assert!(!is_made, "nor is a delay queue made for it");
    there.assert_code(0);
    client.wait_for_count(&queue, 2, SOON);
}

#[test]
fn row_57_a_task_without_a_queue_is_returned() {
    let queue = unique_queue("nowhere");

    let output = producer(&queue, &["--no-declare", "--json", "x"]).run(SOON);

    output.assert_code(1);
    assert_eq!((&json(&output)["returned"], &json(&output)["confirmed"]), (&1.into(), &0.into()));
    assert!(output.stderr().contains("312 NO_ROUTE"), "{}", output.stderr());
}

#[test]
fn row_37_a_queue_deleted_while_publishing_shows_in_returns() {
    let queue = unique_queue("deleted");
    let client = shared_broker().client();
    client.declare(&queue);
    let mut running =
        producer(&queue, &["--lines", "--json", "--window", "1"]).open_stdin().start();
    running.write(b"one\n");
    client.wait_for_count(&queue, 1, SOON);

    client.delete(&queue);
    running.write(b"two\nthree\n");
    running.end_input();
    let output = running.wait(SOON);

    output.assert_code(1);
    let summary = json(&output);
    assert_eq!((&summary["confirmed"], &summary["returned"]), (&1.into(), &2.into()));
}

#[test]
fn row_46_a_confirm_that_never_comes_is_unconfirmed_after_the_timeout() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        session.read_publish();
        let _ = session.answer_rpcs();
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");

    let begun = Instant::now();
    let output = Command::producer(&["--url", &broker.url(), "--timeout", "1s", "--json", "kept"])
        .arg("--failed")
        .arg(&failed)
        .run(SOON);

    output.assert_code(1);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(json(&output)["unconfirmed"], 1);
    assert_eq!(fs::read(&failed).expect("--failed"), b"kept\n");
}

/// A program does something else meanwhile, or waits for whoever reads its output.
#[test]
fn what_was_confirmed_in_time_is_confirmed_however_late_anybody_asks() {
    let queue = unique_queue("late");
    let broker = shared_broker().url().parse().expect("a URL");
    let limit = Duration::from_secs(2);
    let mut producer = Producer::new(&broker, &Queue::new(&queue)).timeout(limit);
    producer.connect().expect("connected");

    let sent = Instant::now();
    let receipts = producer.send(Task::new("x"));
    poll("its time is up", SOON, || (sent.elapsed() > 2 * limit).then_some(()));
    let receipts: Vec<_> = receipts.into_iter().chain(producer.flush()).collect();

    assert_eq!(receipts.len(), 1);
    assert_eq!(receipts[0].outcome, Outcome::Confirmed);
}

#[test]
fn row_45_a_nack_before_an_ack_of_many_refuses_exactly_its_own() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let publishes: Vec<_> = (0..5).map(|_| session.read_publish()).collect();
        let channel = publishes[0].channel;
        session.nack(channel, 3);
        session.ack_up_to(channel, 5);
        for tag in 6.. {
            let Some(again) = session.try_read_publish() else { return };
            assert_eq!(again.body, b"3");
            session.nack(channel, tag);
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");

    let output = Command::producer(&["--url", &broker.url(), "--lines", "--json"])
        .args(&["--timeout", "2s"])
        .arg("--failed")
        .arg(&failed)
        .stdin("1\n2\n3\n4\n5\n")
        .run(SOON);

    output.assert_code(1);
    assert_eq!((&json(&output)["nacked"], &json(&output)["confirmed"]), (&1.into(), &4.into()));
    assert_eq!(fs::read_to_string(&failed).expect("--failed"), "3\n");
    broker.finish(SOON);
}

#[test]
fn a_return_of_something_else_ends_the_connection_and_what_is_in_flight_is_published_again() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let mut publish = session.read_publish();
        if number == 0 {
            publish.routing_key = b"elsewhere".to_vec();
            session.return_message(&publish, 312, "NO_ROUTE");
        }
        session.ack(publish.channel, 1);
        assert_eq!(session.answer_rpcs(), None);
        session.report(format!("published to {number}"));
    });

    let output = Command::producer(&["--url", &broker.url(), "x"]).run(SOON);

    output.assert_code(0);
    assert!(output.stderr().contains("returned what was not published"), "{}", output.stderr());
    broker.wait("published to 1", SOON);
}

/// All at once: when the return is seen, the confirms behind it are here.
#[test]
fn no_confirm_behind_a_return_of_something_else_counts() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let publishes = [(); 3].map(|()| session.read_publish());
        let ids = publishes.each_ref().map(|it| it.message_id().expect("an id"));
        session.report(format!("{number}: {}", ids.join(" ")));
        let channel = publishes[0].channel;
        let ack = |tag: u64| Frame::method(channel, 60, 80, Arguments::default().u64(tag).u8(0));
        let acks = [1, 2, 3].map(|tag| ack(tag).to_bytes()).concat();
        if number == 0 {
            let without_id = Properties::default().to_bytes();
            let arguments = Arguments::default().u16(312).short("NO_ROUTE").short("").short("q");
            let method = Frame::method(channel, 60, 50, arguments);
            let returned = content(&method, &without_id, b"b", 4096);
            session.raw(&[returned, acks].concat());
        } else {
            session.raw(&acks);
        }
        let _ = session.answer_rpcs();
    });
    let url = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new("q"));

    let mut receipts = Vec::new();
    for id in ["a", "b", "c"] {
        receipts.extend(producer.send(Task::new(id).with_id(id)));
    }
    broker.wait("0: a b c", SOON);
    assert!(receipts.is_empty(), "{receipts:?}");
    let receipts = producer.flush();

    broker.wait("1: a b c", SOON);
    assert_eq!(receipts.len(), 3);
    assert!(receipts.iter().all(|it| it.outcome == Outcome::Confirmed), "{receipts:?}");
}

#[test]
fn the_pauses_grow_while_the_broker_confirms_nothing() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let _ = session.try_read_publish();
        session.hang_up();
    });
    let pause = |line: &str| {
        let after = line.split("published again in ").nth(1)?;
        after.strip_suffix(" s")?.parse::<f64>().ok()
    };

    let running = Command::producer(&["--url", &broker.url(), "--timeout", "1h", "x"]).start();

    // The first is no longer than one second.
    running.wait_for_stderr_line(|line| pause(line).is_some_and(|seconds| seconds > 1.1), SOON);
}
