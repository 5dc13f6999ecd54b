//! Drains whose connection is lost, or that cannot see whether their queue is empty.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{SOON, TIMED_OUT, deliver};
use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::{Command, Running};
use crate::support::proxy::Proxy;
use crate::support::scripted::ScriptedBroker;
use crate::support::wire::{Arguments, Call, Delivery as WireDelivery};

/// A line that stands still holds up what was delivered, and not what another line tells.
#[test]
fn what_was_on_its_way_when_the_queue_was_empty_is_worked_before_a_drain_ends() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        // The looks find nothing in any queue.
        let consumer = session.accept_consumer();
        let delivery = WireDelivery::new(consumer.channel, &consumer.tag, 1);
        if number == 0 {
            let cancel = session.expect_cancel(&consumer);
            session.deliver(&delivery);
            session.answer(&cancel);
            let back = session.answer_rpcs().expect("it goes back");
            assert!(matches!(back.call, Call::Nack { requeue: true, .. }), "{back:?}");
        } else {
            session.deliver(&delivery);
            let acked = session.answer_rpcs().expect("it is acked");
            assert!(matches!(acked.call, Call::Ack { .. }), "{acked:?}");
        }
        let _ = session.answer_rpcs();
    });

    let arguments = ["--url", &broker.url(), "--threads", "1", "--drain"];
    let output = Command::worker(&arguments).run(SOON);

    output.assert_code(0);
    let told = output.stderr();
    assert!(told.contains("tasks arrived during the drain"), "{told}");
    assert!(told.contains(" 1 tasks done,"), "{told}");
    broker.finish(SOON);
}

/// The broker may take a lost connection for a living one, and tells of no task that it keeps for
/// it.
#[test]
fn a_drain_waits_until_the_broker_must_have_noticed_that_a_connection_was_lost() {
    let (running, proxy) = draining_a_task(&["--grace", "30s"], "heartbeat=3", "sleep 1");

    proxy.cut();
    let begun = Instant::now();
    running.wait(SOON).assert_code(0);

    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// The broker ends a channel, and then says nothing any more, to the close of the connection
/// neither.
#[test]
fn a_drain_waits_as_long_where_the_connection_is_lost_behind_a_channel() {
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        if number == 0 {
            let consumer = session.accept_consumer();
            deliver(session, &consumer, 1);
            session.close_channel(consumer.channel, 406, TIMED_OUT);
            session.stay_silent();
        }
        while let Some(method) = session.next_method() {
            session.answer(&method);
        }
    });

    let url = format!("amqp://{}?heartbeat=3", broker.address());
    let arguments = ["--url", &url, "--threads", "1", "--drain", "--", "true"];
    let running = Command::worker(&arguments).start();

    let wanted = "may hold tasks for the lost connection";
    running.wait_for_stderr_line(|line| line.contains(wanted), SOON);
}

#[test]
fn a_drain_lets_a_task_of_a_lost_session_end_that_another_thread_has_done_since() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = dir.path().join("first");
    let once = format!("if mkdir {}; then sleep 12; fi", first.display());
    let (running, proxy) =
        draining_a_task(&["--grace", "1s", "--threads", "2"], "heartbeat=1", &once);
    poll("the task has begun", SOON, || first.exists().then_some(()));

    proxy.cut();
    let output = running.wait(SOON);

    output.assert_code(0);
    let summary: Value = serde_json::from_str(&output.stdout()).expect("a summary");
    assert_eq!((&summary["done"], &summary["returned"]), (&1.into(), &0.into()), "{summary}");
}

/// Its thread takes nothing from the queue before the task has ended.
#[test]
fn a_drain_whose_only_thread_is_late_ends_when_another_worker_has_done_its_task() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = dir.path().join("first");
    let once = format!("if mkdir {}; then sleep 12; fi", first.display());
    let (queue, options) = (unique_queue("late"), ["--grace", "1s", "--threads", "1"]);
    let (running, proxy) = draining_a_task_of(&queue, &options, "heartbeat=1", &once);
    poll("the task has begun", SOON, || first.exists().then_some(()));

    proxy.cut();
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--drain", "--", "true"];
    Command::worker(&to).run(SOON).assert_code(0);
    let output = running.wait(SOON);

    let told = output.stderr();
    assert!(told.contains("its delay queues are empty"), "{told}");
    assert!(!told.contains("does not report this worker"), "{told}");
}

/// A worker that drains a queue with one task, through a proxy, and has begun with it.
fn draining_a_task(options: &[&str], parameter: &str, command: &str) -> (Running, Proxy) {
    draining_a_task_of(&unique_queue("drained"), options, parameter, command)
}

fn draining_a_task_of(
    queue: &str,
    options: &[&str],
    parameter: &str,
    command: &str,
) -> (Running, Proxy) {
    let mut client = shared_broker().client();
    client.declare(queue);
    client.publish_id(queue, "1");
    let proxy = Proxy::start(shared_broker().address());
    let url = format!("{}?{parameter}", proxy.url());
    let to = ["--url", &url, "--queue", queue, "--drain", "--json"];
    let command = ["--", "sh", "-c", command];
    let running = Command::worker(&[&to[..], options, &command].concat()).start();
    poll("the task is taken", SOON, || (client.count(queue) == 0).then_some(()));
    (running, proxy)
}

/// Nothing can be given back: it is lost, and the status says so.
#[test]
fn what_comes_at_the_end_of_a_drain_with_auto_ack_is_reported_as_lost() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        if number == 0 {
            let consumer = session.accept_consumer();
            let cancel = session.expect_cancel(&consumer);
            session.deliver(&WireDelivery::new(consumer.channel, &consumer.tag, 1));
            session.answer(&cancel);
        }
        let _ = session.answer_rpcs();
    });

    let arguments = ["--url", &broker.url(), "--threads", "1", "--drain", "--auto-ack"];
    let output = Command::worker(&arguments).run(SOON);

    output.assert_code(1);
    assert!(output.stderr().contains(" 1 lost,"), "{}", output.stderr());
}

/// So RabbitMQ counts a quorum queue whose leader does not answer.
#[test]
fn a_count_without_the_own_consumer_ends_no_drain() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        // It looks into no delay queue meanwhile, as it does before it ends.
        for _ in 0..4 {
            let count = session.expect_declare();
            let Call::QueueDeclare { queue, .. } = &count.call else { unreachable!() };
            assert_eq!(*queue, consumer.queue);
            let nothing = Arguments::default().short(queue).u32(0).u32(0);
            session.send(count.channel, 50, 11, nothing);
        }
        deliver(session, &consumer, 1);
        let acked = session.answer_rpcs().expect("it is acked");
        assert!(matches!(acked.call, Call::Ack { .. }), "{acked:?}");
        let _ = session.answer_rpcs();
    });

    let arguments = ["--url", &broker.url(), "--threads", "1", "--drain", "--", "true"];
    let output = Command::worker(&arguments).run(SOON);

    output.assert_code(0);
    let told = output.stderr();
    assert_eq!(told.matches("does not report this worker as a consumer").count(), 1, "{told}");
    assert!(told.contains(" 1 tasks done,"), "{told}");
    broker.finish(SOON);
}

#[test]
fn a_worker_that_cannot_know_whether_its_queue_is_drained_says_so_once() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let mut consumes = false;
        while let Some(method) = session.next_method() {
            match &method.call {
                Call::QueueDeclare { passive: true, .. } if consumes => {
                    session.close_channel(method.channel, 405, "RESOURCE_LOCKED - by another");
                    session.report("refused");
                    continue;
                }
                Call::Consume { .. } => consumes = true,
                _ => {}
            }
            let _ = session.answer(&method);
        }
    });

    let running = Command::worker(&["--url", &broker.url(), "--drain"]).start();
    for _ in 0..3 {
        broker.wait("refused", SOON);
    }
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(4);
    let stderr = output.stderr();
    let told: Vec<_> =
        stderr.lines().filter(|line| line.contains("cannot check whether")).collect();
    assert_eq!(told.len(), 1, "{stderr}");
    assert!(told[0].contains("RESOURCE_LOCKED"), "{stderr}");
}
