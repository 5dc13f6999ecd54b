//! Channels, consumers and queues that the broker closes, cancels or deletes.

use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use rabbit_work::{Producer, Queue, Task};

use super::{SOON, TIMED_OUT, confirmed};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::scripted::{Consumer, ScriptedBroker, Session};
use crate::support::wire::{Call, Delivery as WireDelivery};

#[test]
fn row_36_a_queue_deleted_while_consuming_is_declared_and_consumed_again() {
    let queue = unique_queue("gone");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let arguments = ["--url", shared_broker().url(), "--queue", &queue, "--threads", "2"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);

    let begun = Instant::now();
    client.delete(&queue);
    running.wait_for_stderr_line(|line| line.contains("cancelled the consumer"), SOON);
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    client.publish_id(&queue, "after");
    running.wait_for_stdout_line(|line| line == " [x] Received 'after'", SOON);

    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

/// A broker that takes the consumer's rights away during its task, once it is told to, and from
/// then on must see no ack; and how to tell it.
fn runs_out_of_patience(
    fault: impl Fn(&mut Session, &Consumer) + Send + Sync + 'static,
) -> (ScriptedBroker, Sender<()>) {
    let (tell, told) = bounded(1);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        session.deliver(&WireDelivery::new(consumer.channel, &consumer.tag, 1).body("late....."));
        let _ = told.recv_timeout(SOON);
        fault(session, &consumer);
        loop {
            let method = session.expect_method();
            if matches!(method.call, Call::Consume { .. }) {
                let _ = session.let_in(method);
                break;
            }
            assert!(!matches!(method.call, Call::Ack { .. }), "no ack");
            session.answer(&method);
        }
        session.report("consuming again");
        let left = session.answer_rpcs();
        assert_eq!(left, None, "no ack");
    });
    (broker, tell)
}

#[test]
fn row_43_a_delivery_timeout_is_named_and_the_late_ack_is_not_sent() {
    let (broker, patience_ends) = runs_out_of_patience(|session, consumer| {
        session.close_channel(consumer.channel, 406, TIMED_OUT);
    });

    let arguments = ["--url", &broker.url(), "--threads", "1", "--json"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    patience_ends.send(()).expect("the script waits");
    running.wait_for_stderr_line(|line| line.contains("consumer_timeout"), SOON);
    running.wait_for_stderr_line(|line| line.contains("may run twice"), SOON);
    broker.wait("consuming again", SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(0);
    let stderr = output.stderr();
    assert!(stderr.contains("406 PRECONDITION_FAILED - delivery acknowledgement"), "{stderr}");
    let stdout = output.stdout();
    assert!(stdout.lines().last().is_some_and(|it| it.contains("\"done\":0")), "{stdout}");
    broker.finish(SOON);
}

#[test]
fn row_43_a_consumer_cancelled_during_a_task_sends_no_late_ack_and_consumes_again() {
    let (broker, patience_ends) = runs_out_of_patience(Session::cancel_consumer);

    let arguments = ["--url", &broker.url(), "--threads", "1"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    patience_ends.send(()).expect("the script waits");
    running.wait_for_stderr_line(|line| line.contains("consumer_timeout"), SOON);
    running.wait_for_stderr_line(|line| line.contains("may run twice"), SOON);
    broker.wait("consuming again", SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(0);
    assert!(output.stderr().contains("cancelled the consumer"), "{}", output.stderr());
    broker.finish(SOON);
}

#[test]
fn row_43_a_cancel_of_the_broker_s_that_crosses_ours_sends_no_late_ack() {
    let (it_runs, it_ran) = bounded(1);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        session.deliver(&WireDelivery::new(consumer.channel, &consumer.tag, 1).body("late..."));
        let _ = it_ran.recv_timeout(SOON);
        let ours = session.expect_cancel(&consumer);
        session.cancel_consumer(&consumer);
        session.answer(&ours);
        let left = session.answer_rpcs();
        assert_eq!(left, None, "no ack");
    });

    let arguments = ["--url", &broker.url(), "--threads", "1"];
    let running = Command::worker(&arguments).start();
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    it_runs.send(()).expect("the script waits");
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(0);
    let stderr = output.stderr();
    assert!(stderr.contains(" 0 tasks done,") && stderr.contains(" 1 may run twice,"), "{stderr}");
    broker.finish(SOON);
}

#[test]
fn a_queue_of_a_kind_that_the_broker_no_longer_has_is_exit_2_with_its_words_in_one_line() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        session.expect_declare();
        session.close_connection(541, DENIED);
        session.answer_rpcs();
    });

    let arguments = ["--url", &broker.url(), "--transient-queue", "--queue", "fleeting"];
    for command in [Command::worker(&arguments), Command::producer(&arguments).arg("x")] {
        let output = command.run(SOON);

        output.assert_code(2);
        let stderr = output.stderr();
        let line = stderr.lines().find(|line| line.contains("queue 'fleeting'"));
        assert!(line.is_some_and(|line| line.contains("not permitted anymore")), "{stderr}");
    }
}

/// What RabbitMQ 4.3 says of a queue that is neither durable nor exclusive.
const DENIED: &str = "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\n\
                      By default, this feature is not permitted anymore.\n\
                      The feature will be removed from a future major RabbitMQ version";

#[test]
fn the_broker_s_own_words_are_in_the_line_that_reports_a_lost_session() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        session.accept_consumer();
        match number {
            0 => session.close_connection(320, "CONNECTION_FORCED - broker forced it"),
            1 => session.close_connection(541, "INTERNAL_ERROR - of its own"),
            2 => session.close_channel(1, 406, "PRECONDITION_FAILED - unknown delivery tag 7"),
            _ => session.report("consuming"),
        }
        let _ = session.answer_rpcs();
    });

    let running = Command::worker(&["--url", &broker.url(), "--threads", "1"]).start();

    for words in
        ["320 CONNECTION_FORCED - broker forced it", "541 INTERNAL_ERROR", "unknown delivery tag 7"]
    {
        let line = running.wait_for_stderr_line(|line| line.contains(words), SOON);
        assert!(line.contains("ERROR") && line.contains("next try in"), "{line}");
    }
    broker.wait("consuming", SOON);
    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

#[test]
fn a_producer_whose_channel_is_closed_publishes_what_was_not_confirmed_again() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let publishes: Vec<_> = (0..3).map_while(|_| session.try_read_publish()).collect();
        let ids: Vec<_> = publishes.iter().filter_map(|it| it.message_id()).collect();
        session.report(format!("{number}: {}", ids.join(" ")));
        if number == 0 {
            session.ack(publishes[1].channel, 2);
            session.close_channel(publishes[0].channel, 541, "INTERNAL_ERROR - on purpose");
        } else {
            session.ack_up_to(publishes[0].channel, 3);
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
    receipts.extend(producer.send(Task::new("d").with_id("d")));
    receipts.extend(producer.flush());

    broker.wait("1: a c d", SOON);
    let wanted = ["a", "b", "c", "d"].map(str::to_owned);
    assert_eq!((confirmed(&receipts), receipts.len()), (wanted.into(), 4));
}
