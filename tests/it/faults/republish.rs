//! Copies of failed tasks in retry and dead-letter queues that are not confirmed.

use std::time::Duration;

use crossbeam_channel::bounded;
use rabbit_work::{Delivery, EventKind, Failure};

use super::{SOON, deliver, worker};
use crate::support::command::Command;
use crate::support::scripted::{Event, ScriptedBroker};
use crate::support::wire::{Call, Delivery as WireDelivery};
use crate::support::working::Working;

#[test]
fn a_hand_over_that_is_not_confirmed_is_reported() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        if number == 0 {
            let consumer = session.accept_consumer();
            deliver(session, &consumer, 1);
        } else {
            session.read_publish();
        }
        let _ = session.answer_rpcs();
    });
    let arguments = ["--url", &broker.url(), "--threads", "1", "--max-attempts", "1"];

    let running = Command::worker(&[&arguments[..], &["--", "false"]].concat()).start();
    let told = "no confirm for 2s: 1 tasks are unconfirmed";
    running.wait_for_stderr_line(|line| line.contains(told), SOON);

    running.signal("INT");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    running.signal("INT");
    running.wait(SOON).assert_code(130);
}

/// Of two that are handed over the first is confirmed, and then the broker reads no more: what it
/// is asked about the second it does not answer.
#[test]
fn an_alarm_in_the_middle_of_a_hand_over_is_reported_and_what_was_confirmed_is_acked() {
    let (both_failed, both_have_failed) = bounded::<()>(1);
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        if number == 0 {
            let consumer = session.accept_consumer();
            for (tag, body) in [(1, "65"), (2, "1")] {
                let delivery = WireDelivery::new(consumer.channel, &consumer.tag, tag);
                session.deliver(&delivery.body(body));
            }
            let acked = session.answer_rpcs().expect("the first is acked");
            assert!(matches!(acked.call, Call::Ack { delivery_tag: 1, .. }), "{acked:?}");
            session.report("acked");
            let _ = session.answer_rpcs();
        } else {
            let publish = session.read_publish();
            let _ = both_have_failed.recv_timeout(SOON);
            session.ack(publish.channel, 1);
            session.blocked("low on memory");
            session.stay_silent();
        }
    });
    let arguments = ["--url", &broker.url(), "--threads", "1", "--prefetch", "2"];
    let command = ["--", "sh", "-c", "exit $0", "{}"];

    let running = Command::worker(&[&arguments[..], &command].concat()).start();
    running.wait_for_stderr_line(|line| line.contains("is tried again in"), SOON);
    both_failed.send(()).expect("the script waits");
    broker.wait("acked", Duration::from_secs(10));
    running.signal("INT");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    assert!(output.stderr().contains("blocks publishers: low on memory"), "{output:?}");
}

/// The task comes again, and may be done then: that there is a letter is told all the same.
#[test]
fn a_letter_that_is_confirmed_when_its_consumer_is_gone_counts() {
    let (close, told_to_close) = bounded::<()>(1);
    let (confirm, told_to_confirm) = bounded::<()>(1);
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        if number == 1 {
            for tag in 1..=2 {
                let publish = session.read_publish();
                let _ = told_to_confirm.recv_timeout(SOON);
                session.ack(publish.channel, tag);
                session.report("confirmed");
            }
            let _ = session.answer_rpcs();
            return;
        }
        let consumers = [session.accept_consumer(), session.accept_consumer()];
        if number == 0 {
            deliver(session, &consumers[0], 1);
            deliver(session, &consumers[1], 2);
            let _ = told_to_close.recv_timeout(SOON);
            session.close_channel(consumers[0].channel, 541, "INTERNAL_ERROR");
            let acked = session.answer_rpcs().expect("the second is acked");
            assert_eq!(acked.call, Call::Ack { delivery_tag: 2, multiple: false });
        } else {
            session.report("again");
        }
        let _ = session.answer_rpcs();
    });
    let url = broker.url().parse().expect("a URL");
    let (go_on, waiting) = bounded::<()>(1);
    let (begin, begun) = bounded::<()>(1);
    let handler = move |delivery: &Delivery| {
        if delivery.body() == b"2" {
            let _ = begin.send(());
            let _ = waiting.recv_timeout(SOON);
        }
        Err(Failure::reject("it cannot be done"))
    };
    let working = Working::start(&worker(&url, "q").threads(2), handler);
    broker.wait_for(SOON, |event| *event == Event::Connected(1));

    begun.recv_timeout(SOON).expect("a task that has not begun would be requeued");
    close.send(()).expect("the script waits");
    working.wait_for(EventKind::Orphaned, SOON);
    confirm.send(()).expect("the script waits");
    broker.wait("confirmed", SOON);
    go_on.send(()).expect("the handler waits");
    confirm.send(()).expect("the script waits");
    working.wait_for(EventKind::Dead, SOON);
    broker.wait("again", SOON);
    let summary = working.stop(SOON);

    assert_eq!((summary.dead, summary.orphaned), (2, 1));
    broker.finish(SOON);
}

/// Its session is lost while it is on its way, and its task is done when it comes again.
#[test]
fn a_drain_reports_a_letter_that_may_exist() {
    let (published, was_published) = bounded(1);
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        while let Some(method) = session.next_method() {
            if matches!(method.call, Call::Publish(_)) {
                published.send(()).expect("the other session waits");
            } else if let Some(consumer) = session.let_in(method.clone()) {
                deliver(session, &consumer, 1);
                if number == 0 {
                    let _ = was_published.recv_timeout(SOON);
                    session.close_connection(320, "CONNECTION_FORCED");
                }
            } else {
                session.answer(&method);
            }
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let fails_once = format!("! mkdir {}", dir.path().join("first").display());
    let arguments = ["--url", &broker.url(), "--threads", "1", "--max-attempts", "1", "--drain"];
    let command = ["--", "sh", "-c", &fails_once];

    let output = Command::worker(&[&arguments[..], &command].concat()).run(SOON);

    output.assert_code(1);
    let told = output.stderr();
    assert!(told.contains(" 1 tasks done, 0 retried, 0 dead, 1 maybe dead,"), "{told}");
}
