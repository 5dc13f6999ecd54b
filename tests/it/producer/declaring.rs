//! The queues that a producer declares: existing, other, locked and silent ones.

use std::fs;
use std::time::{Duration, Instant};

use super::{SOON, errors, json, producer};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::scripted::{ScriptedBroker, Tuning};
use crate::support::wire::{Arguments, Call};

#[test]
fn row_38_a_queue_with_other_arguments_is_reported_in_one_line_and_exit_2() {
    let queue = unique_queue("mismatch");
    shared_broker().client().declare(&queue);

    let transient = producer(&queue, &["--transient-queue", "x"]).run(SOON);
    let quorum = producer(&queue, &["--queue-type", "quorum", "x"]).run(SOON);

    transient.assert_code(2);
    let lines = errors(&transient);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let wanted = format!("queue '{queue}'");
    assert!(lines[0].contains(&wanted) && lines[0].contains("durable is true"), "{lines:?}");
    assert!(lines[0].contains("false was asked for"), "{lines:?}");
    quorum.assert_code(2);
    // Which of the arguments of a quorum queue is named first is the broker's choice.
    let wanted = "is not set in the existing queue, and";
    assert!(errors(&quorum)[0].contains(wanted), "{}", quorum.stderr());
}

#[test]
fn row_39_an_exclusive_queue_of_another_is_refused_in_one_line_and_exit_2() {
    let queue = unique_queue("exclusive");
    let client = shared_broker().client();
    client.declare_exclusive(&queue);

    let output = producer(&queue, &["--transient-queue", "x"]).run(SOON);

    output.assert_code(2);
    assert_eq!(errors(&output).len(), 1);
    assert!(errors(&output)[0].contains("RESOURCE_LOCKED"), "{}", output.stderr());
}

#[test]
fn row_39_a_queue_that_may_not_be_declared_is_refused_in_one_line_and_exit_2() {
    let text = "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'u'";
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let look = session.expect_declare();
        session.answer(&look);
        let declare = session.expect_declare();
        session.close_channel(declare.channel, 403, text);
        assert_eq!(session.answer_rpcs(), None);
    });

    let output = Command::producer(&["--url", &broker.url(), "--queue", "q", "x"]).run(SOON);

    output.assert_code(2);
    assert_eq!(errors(&output).len(), 1);
    assert!(errors(&output)[0].contains(text), "{}", output.stderr());
}

/// Told as confirmed, it would be lost: RabbitMQ sends a return as it was published.
/// A broker whose queue has so many tasks and consumers, or is not there, and which reports what
/// it is asked about queues before the first publish or consumer.
fn found(counts: Option<(u32, u32)>) -> ScriptedBroker {
    ScriptedBroker::start(move |session, _| {
        session.handshake();
        let mut asked: Vec<String> = Vec::new();
        while let Some(method) = session.next_method() {
            match &method.call {
                Call::QueueDeclare { queue, passive: true, .. } => {
                    asked.push(format!("look for {queue}"));
                    if let Some((ready, consumers)) = counts {
                        let found = Arguments::default().short(queue).u32(ready).u32(consumers);
                        session.send(method.channel, 50, 11, found);
                    } else {
                        session.close_channel(method.channel, 404, "NOT_FOUND - no queue");
                    }
                    continue;
                }
                Call::QueueDeclare { queue, durable, exclusive, .. } => {
                    let durable = if *durable { "durable " } else { "" };
                    let exclusive = if *exclusive { "exclusive " } else { "" };
                    asked.push(format!("declare {durable}{exclusive}{queue}"));
                }
                Call::QueueDelete { queue, .. } => asked.push(format!("delete {queue}")),
                Call::Publish(_) | Call::Consume { .. } => session.report(asked.join(", ")),
                _ => {}
            }
            session.serve_method(method);
        }
    })
}

/// RabbitMQ says that a queue is there, and confirms what it takes, before it has written down all
/// that it needs to find the queue again; with the next queue it writes the rest.
#[test]
fn a_queue_that_we_make_is_written_down_before_it_is_used() {
    // The first declaration asks for the default type, and makes no queue.
    let made = "look for new, declare durable new, declare durable new, declare durable exclusive \
                new.settling, delete new.settling";
    // The second one asks for the type.
    let existing = "look for new, declare durable new, declare durable new";
    let table = [
        (None, &[][..], made),
        (Some((0, 0)), &[], existing),
        (Some((1, 1)), &[], existing),
        (None, &["--transient-queue"], "look for new, declare new"),
    ];
    for (counts, more, asked) in table {
        let used = |run: &dyn Fn(&[&str])| {
            let broker = found(counts);
            run(&[&["--url", &broker.url(), "--queue", "new"], more].concat());
            broker.wait(asked, SOON);
            broker.finish(SOON);
        };
        used(&|to| Command::producer(to).arg("x").run(SOON).assert_code(0));
        let work = ["--max-tasks", "1", "--", "true"];
        used(&|to| Command::worker(&[to, &work].concat()).run(SOON).assert_code(0));
    }
}

/// Answers up to where a producer asks for a delay queue.
fn silent_when_asked_for_a_delay_queue() -> ScriptedBroker {
    ScriptedBroker::start(|session, _| {
        session.handshake_with(Tuning { heartbeat: 0, ..Tuning::default() });
        loop {
            let Some(method) = session.next_method() else { return };
            match &method.call {
                Call::QueueDeclare { queue, .. } if queue.contains(".retry.") => {
                    session.report("asked");
                    return session.stay_silent();
                }
                _ => session.answer(&method),
            };
        }
    })
}

#[test]
fn a_delay_queue_that_is_asked_for_in_vain_is_waited_for_within_the_timeout() {
    let broker = silent_when_asked_for_a_delay_queue();

    let begun = Instant::now();
    let arguments = ["--url", &broker.url(), "--json", "--delay", "5s", "--timeout", "2s", "x"];
    let output = Command::producer(&arguments).run(SOON);

    output.assert_code(1);
    assert_eq!(json(&output)["unconfirmed"], 1);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_second_signal_while_a_delay_queue_is_asked_for_keeps_what_was_not_confirmed() {
    let broker = silent_when_asked_for_a_delay_queue();
    let dir = tempfile::tempdir().expect("a directory");
    let failed = dir.path().join("failed");
    let arguments = ["--url", &broker.url(), "--lines", "--json", "--delay", "5s", "--failed"];
    let mut running = Command::producer(&arguments).arg(&failed).open_stdin().start();
    running.write(b"a\n");
    broker.wait("asked", SOON);

    running.signal("INT");
    running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
    running.signal("INT");
    let second = Instant::now();
    let output = running.wait(SOON);

    assert!(second.elapsed() < Duration::from_secs(2), "{:?}", second.elapsed());
    output.assert_code(130);
    assert_eq!(fs::read_to_string(&failed).expect("--failed"), "a\n");
    assert_eq!(json(&output)["unconfirmed"], 1);
    assert!(!output.stderr().contains("published again"), "{}", output.stderr());
}
