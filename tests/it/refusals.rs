//! Tasks that the broker refuses: they are published again until their timeout, and reported.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output};
use crate::support::scripted::{ScriptedBroker, Session};
use crate::support::wire::{Call, Delivery, Method};

const SOON: Duration = Duration::from_secs(60);

const REFUSES: &str = "refuses tasks at present";

fn is_reported_once(output: &Output) -> bool {
    output.stderr().matches(REFUSES).count() == 1
}

#[test]
fn a_refused_task_is_published_again_under_its_id_until_it_is_taken() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let first = session.read_publish();
        session.nack(first.channel, 1);
        for tag in 2..5 {
            let again = session.read_publish();
            assert_eq!(again.body, first.body);
            assert_eq!(again.properties.message_id, first.properties.message_id);
            match tag {
                4 => session.ack(again.channel, tag),
                _ => session.nack(again.channel, tag),
            }
        }
        assert_eq!(session.answer_rpcs(), None);
    });

    let output = Command::producer(&["--url", &broker.url(), "--queue", "q", "x"]).run(SOON);

    assert_eq!(output.success(), " [x] Sent 'x'\n");
    assert!(is_reported_once(&output), "{}", output.stderr());
    assert!(output.stderr().contains("queue 'q' refuses tasks"), "{}", output.stderr());
    broker.finish(SOON);
}

/// Nacks each publish, and acks it then: the first word counts.
fn refusing() -> ScriptedBroker {
    ScriptedBroker::start(|session, _| {
        session.handshake();
        let mut tags = HashMap::new();
        while let Some(method) = session.answer_rpcs() {
            let tag = tags.entry(method.channel).and_modify(|tag| *tag += 1).or_insert(1);
            session.nack(method.channel, *tag);
            session.ack(method.channel, *tag);
        }
    })
}

/// RabbitMQ 3.10.8 does so where the node is down that led the queue when the channel first
/// published to it.
#[test]
fn a_queue_that_nacks_all_tasks_of_a_channel_is_tried_on_another() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let first = session.read_publish();
        session.nack(first.channel, 1);
        for tag in 2.. {
            let again = session.read_publish();
            if again.channel != first.channel {
                assert_eq!(again.properties.message_id, first.properties.message_id);
                session.ack(again.channel, 1);
                break;
            }
            session.nack(again.channel, tag);
        }
        assert_eq!(session.answer_rpcs(), None);
    });

    let producer = ["--url", &broker.url(), "--queue", "q", "--timeout", "60s", "x"];
    let output = Command::producer(&producer).run(SOON);

    assert_eq!(output.success(), " [x] Sent 'x'\n");
    assert!(is_reported_once(&output), "{}", output.stderr());
    broker.finish(SOON);
}

#[test]
fn a_task_that_is_refused_until_its_timeout_is_nacked_and_its_queue_is_named() {
    let broker = refusing();
    let producer = ["--url", &broker.url(), "--queue", "q", "--timeout", "2s", "--json", "x"];

    let output = Command::producer(&producer).run(SOON);

    output.assert_code(1);
    let json: serde_json::Value = serde_json::from_str(&output.stdout()).expect("JSON");
    assert_eq!((&json["nacked"], &json["unconfirmed"]), (&1.into(), &0.into()));
    assert!(is_reported_once(&output), "{}", output.stderr());
    let said = output.stderr();
    let line = said.lines().find(|line| line.contains("nacked: ")).expect("why it failed");
    assert!(line.contains("queue 'q' refused it") && line.contains(" times"), "{line}");
}

#[test]
fn a_second_signal_ends_a_producer_whose_tasks_are_refused() {
    let broker = refusing();

    let running = Command::producer(&["--url", &broker.url(), "--lines"]).stdin("1\n2\n").start();
    running.wait_for_stderr_line(|line| line.contains(REFUSES), SOON);
    running.signal("INT");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    running.signal("INT");

    running.wait(Duration::from_secs(10)).assert_code(130);
}

#[test]
fn a_queue_that_is_full_takes_the_rest_once_there_is_room() {
    let queue = unique_queue("room");
    let client = shared_broker().client();
    client.declare_bounded(&queue, 1);
    let lines: BTreeSet<String> = (0..5).map(|number| format!("task {number}")).collect();
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();

    let producer =
        ["--url", shared_broker().url(), "--queue", &queue, "--no-declare", "--lines", "--json"];
    let running = Command::producer(&producer).stdin(input).start();
    running.wait_for_stderr_line(|line| line.contains(REFUSES), SOON);
    let mut taken = BTreeSet::new();
    poll("each is on the queue", SOON, || {
        taken.extend(client.get_all(&queue).iter().map(|message| message.text()));
        (taken == lines).then_some(())
    });

    let output = running.wait(SOON);
    output.assert_code(0);
    let json: serde_json::Value = serde_json::from_str(&output.stdout()).expect("JSON");
    assert_eq!((&json["confirmed"], &json["nacked"]), (&5.into(), &0.into()));
}

/// As RabbitMQ 3.10.8 says it of a classic queue whose node is down.
const DOWN: &str = "NOT_FOUND - home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or \
                    inaccessible";

#[test]
fn a_task_that_is_returned_because_its_queue_is_down_waits_for_the_queue() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        return_next(session, 1, DOWN);
        return_next(session, 2, DOWN);
        let publish = session.read_publish();
        session.ack(publish.channel, 3);
        assert_eq!(session.answer_rpcs(), None);
    });

    let output = Command::producer(&["--url", &broker.url(), "--queue", "q", "x"]).run(SOON);

    output.assert_code(0);
    assert!(is_reported_once(&output), "{}", output.stderr());
    assert!(output.stderr().contains("is down or inaccessible"), "{}", output.stderr());
    broker.finish(SOON);
}

#[test]
fn a_task_that_is_returned_because_its_queue_is_gone_is_returned_at_once() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        return_next(session, 1, "NOT_FOUND - no queue 'q' in vhost '/'");
        assert_eq!(session.answer_rpcs(), None);
    });

    let output = Command::producer(&["--url", &broker.url(), "--queue", "q", "x"]).run(SOON);

    output.assert_code(1);
    assert!(output.stderr().contains("returned: 312 NO_ROUTE"), "{}", output.stderr());
    assert!(!output.stderr().contains(REFUSES), "{}", output.stderr());
    broker.finish(SOON);
}

/// Returns the next task, and says what has become of its queue when asked.
fn return_next(session: &mut Session, tag: u64, found: &str) {
    let publish = session.read_publish();
    session.return_message(&publish, 312, "NO_ROUTE");
    session.ack(publish.channel, tag);
    let Method { channel, call } = session.expect_declare();
    assert!(matches!(call, Call::QueueDeclare { passive: true, .. }), "{call:?}");
    session.close_channel(channel, 404, found);
}

/// The worker tries it again itself: it has other tasks to hand over.
#[test]
fn a_hand_over_that_is_refused_is_reported_at_once() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        if number > 0 {
            let publish = session.read_publish();
            session.nack(publish.channel, 1);
            let _ = session.answer_rpcs();
            return;
        }
        let consumer = session.accept_consumer();
        session.deliver(&Delivery::new(consumer.channel, &consumer.tag, 1).body("x"));
        let began = Instant::now();
        let back = session.answer_rpcs().expect("it goes back");
        let is_requeued = matches!(back.call, Call::Nack { requeue: true, .. });
        assert!(is_requeued || matches!(back.call, Call::Reject { requeue: true, .. }), "{back:?}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        session.report("back");
        let _ = session.answer_rpcs();
    });

    let worker = ["--url", &broker.url(), "--threads", "1", "--", "false"];
    let running = Command::worker(&worker).start();
    broker.wait("back", SOON);
    running.signal("INT");
    running.signal("INT");
    let _ = running.wait(SOON);
}
