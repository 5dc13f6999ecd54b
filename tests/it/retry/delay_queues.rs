//! Delay queues: which are declared, with which arguments, and those that do not respond.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use rabbit_work::{Broker, Delivery, Error, Failure, Producer, Queue, Task};

use super::{LONG, MOMENT, SOON, policy, publish, worker};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::scripted::{Event, ScriptedBroker, Session, Tuning};
use crate::support::wire::{Call, Delivery as WireDelivery, Field, Properties, Table};
use crate::support::working::Working;

#[test]
fn a_delay_queue_that_somebody_else_has_just_made_is_not_trusted_yet() {
    let queue = unique_queue("foreign");
    let run = || {
        let (tell, seen) = unbounded();
        let handler = move |delivery: &Delivery| {
            let _ = tell.send(Instant::now());
            if delivery.attempt() < 2 { Err(Failure::retry("not yet")) } else { Ok(()) }
        };
        publish(&queue, Task::new("1"));
        let working = Working::start(&worker(&queue).retry(policy(2)).drain(), handler);
        working.wait(SOON).expect("it ends well");
        let seen: Vec<Instant> = seen.try_iter().collect();
        seen[1] - seen[0]
    };
    run();

    // The queue is empty, so another connection may have made it a moment ago.
    let waited = run();

    assert!(waited >= Duration::from_millis(1500), "{waited:?}");
}

#[test]
fn the_queue_of_the_next_delay_is_made_with_the_first_and_no_other() {
    let delays = |failures: u32, after: Option<Duration>| -> Vec<u32> {
        let queue = unique_queue("ahead");
        let handler = move |delivery: &Delivery| match after {
            _ if delivery.attempt() > failures => Ok(()),
            Some(delay) => Err(Failure::retry_after("not yet", delay)),
            None => Err(Failure::retry("not yet")),
        };
        publish(&queue, Task::new(""));
        let working = Working::start(&worker(&queue).retry(policy(4)).drain(), handler);
        assert_eq!(working.wait(SOON).expect("it ends well").done, 1);
        let mut client = shared_broker().client();
        let there = |millis: &u32| client.has(&format!("{queue}.retry.{millis}"));
        [100, 200, 500, 1000, 2000].into_iter().filter(there).collect()
    };

    assert_eq!(delays(1, None), [100, 200], "the first, and the next");
    assert_eq!(delays(3, None), [100, 200, 500], "the last has no next");
    assert_eq!(delays(1, Some(Duration::from_millis(900))), [1000], "not of the series");
}

#[test]
fn a_broker_without_safe_delay_queues_gets_simple_ones_and_the_worker_says_so_once() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        match number {
            0 => two_tasks(session),
            _ => refuse_safe_delays(session),
        }
    });
    let to = ["--url", &broker.url(), "--queue", "q", "--threads", "1", "--prefetch", "2"];
    let policy = ["--retry-delay", "100ms", "--max-attempts", "3", "--", "false"];
    let running = Command::worker(&[&to[..], &policy].concat()).start();

    for delay in [100, 200] {
        for kind in ["safe", "simple"] {
            broker.wait(&format!("q.retry.{delay} declared {kind}"), SOON);
        }
    }
    broker.wait("acked", SOON);
    broker.wait("acked", SOON);
    running.signal("INT");
    let output = running.wait(SOON);

    output.assert_code(0);
    let text = output.stderr();
    let said: Vec<&str> = text.lines().filter(|it| it.contains("classic queues")).collect();
    assert_eq!(said.len(), 1, "{text}");
    assert!(said[0].contains("WARN") && said[0].contains("can lose a task"), "{}", said[0]);
    assert!(said[0].contains("x-message-ttl"), "with the broker's own words: {}", said[0]);
}

/// One task that never failed and one that did once; then their acks.
fn two_tasks(session: &mut Session) {
    let consumer = session.accept_consumer();
    let failures = Table::from([(b"x-rabbit-work-attempts".to_vec(), Field::I64(1))]);
    for (tag, headers) in [(1, None), (2, Some(failures))] {
        let properties = Properties { headers, ..Properties::default() };
        let delivery = WireDelivery::new(consumer.channel, &consumer.tag, tag);
        session.deliver(&delivery.properties(properties).body("x"));
    }
    while let Some(method) = session.answer_rpcs() {
        let Call::Ack { delivery_tag, multiple } = method.call else {
            panic!("instead of an ack there came {method:?}")
        };
        let acked = if multiple { delivery_tag } else { 1 };
        (0..acked).for_each(|_| session.report("acked"));
    }
}

/// As RabbitMQ 3.9, whose quorum queues know no time to live. What is published is acked.
fn refuse_safe_delays(session: &mut Session) {
    let mut published: BTreeMap<u16, u64> = BTreeMap::new();
    while let Some(method) = session.next_method() {
        match &method.call {
            Call::QueueDeclare { passive: true, .. } => {
                session.close_channel(method.channel, 404, "NOT_FOUND - no queue");
            }
            Call::QueueDeclare { queue, arguments, durable: true, exclusive: false, .. }
                if queue.starts_with("q.retry.") =>
            {
                let delay: i64 = queue["q.retry.".len()..].parse().expect("a delay");
                if *arguments == safe_delay(delay) {
                    session.report(format!("{queue} declared safe"));
                    let text = "PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue";
                    session.close_channel(method.channel, 406, text);
                    continue;
                }
                assert_eq!(*arguments, simple_delay(delay));
                session.report(format!("{queue} declared simple"));
                session.answer(&method);
            }
            Call::ChannelOpen => {
                published.insert(method.channel, 0);
                session.answer(&method);
            }
            Call::Publish(_) => {
                let tag = published.entry(method.channel).or_default();
                *tag += 1;
                session.ack(method.channel, *tag);
            }
            Call::ConnectionCloseOk => return,
            _ => drop(session.answer(&method)),
        }
    }
}

/// As a RabbitMQ 3.10.8 may be that was killed just after it had made `q.retry.100`, and as one that
/// could not start the queue again.
#[test]
fn a_delay_queue_that_gives_no_answer_is_gone_around() {
    let fail = |session: &mut Session| session.close_connection(541, "INTERNAL_ERROR");
    let poison = |session: &mut Session| session.raw(b"no frame at all, not even the first byte");
    for instead in [Session::heartbeat, fail, poison] {
        let broker = ScriptedBroker::start(move |session, number| {
            session.handshake();
            match number {
                0 => two_tasks(session),
                _ => serve_but_for(session, "q.retry.100", instead),
            }
        });
        let to = ["--url", &broker.url(), "--queue", "q", "--threads", "1", "--prefetch", "2"];
        let delays = ["--retry-delay", "100ms", "--max-retry-delay", "100ms"];
        let fails = ["--max-attempts", "3", "--", "false"];
        let running = Command::worker(&[&to[..], &delays, &fails].concat()).start();

        // The first task may be acked before the second is published.
        let steps = ["published to q.retry.200", "acked"];
        let mut counts = [0; 2];
        while counts.iter().any(|count| *count < 2) {
            let place = |event: &Event| {
                let Event::Reported(step) = event else { return None };
                steps.iter().position(|it| it == step)
            };
            let event = broker.wait_for(LONG, |event| place(event).is_some());
            counts[place(&event).expect("one of the steps")] += 1;
        }
        running.signal("INT");
        let output = running.wait(SOON);

        output.assert_code(0);
        let log = output.stderr();
        let told: Vec<&str> = log.lines().filter(|it| it.contains("does not respond")).collect();
        assert_eq!(told.len(), 1, "{log}");
        assert!(told[0].contains("'q.retry.100'"), "{log}");
    }
}

/// With long heartbeats, or none, the silence of a queue is that of its broker as well.
#[test]
fn a_delay_queue_that_gives_no_answer_between_two_heartbeats_is_gone_around() {
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake_with(Tuning { heartbeat: 60, ..Tuning::default() });
        match number {
            0 => two_tasks(session),
            _ => serve_but_for(session, "q.retry.100", |_| {}),
        }
    });
    let url = format!("amqp://guest:guest@{}?heartbeat=60", broker.address());
    let to = ["--url", &url, "--queue", "q"];
    let delays = ["--threads", "1", "--prefetch", "2", "--retry-delay", "100ms"];
    let fails = ["--max-retry-delay", "100ms", "--max-attempts", "3", "--", "false"];
    let running = Command::worker(&[&to[..], &delays, &fails].concat()).start();

    broker.wait("published to q.retry.200", LONG);
    broker.wait("acked", LONG);
    running.signal("INT");

    running.wait(SOON).assert_code(0);
}

/// What is in a delay queue says nothing of whether it still answers.
#[test]
fn a_delay_queue_of_which_a_task_was_not_confirmed_is_asked_again() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        while let Some(method) = session.next_method() {
            match &method.call {
                Call::Get { queue, .. } => session.report(format!("asked {queue}")),
                Call::Publish(publish) if publish.routing_key.ends_with(b".5000") => continue,
                _ => {}
            }
            session.serve_method(method);
        }
    });
    let url: Broker = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new("q")).timeout(Duration::from_secs(3));

    for _ in 0..2 {
        let published = producer.publish(Task::new("x").with_delay(Duration::from_secs(5)));
        assert!(matches!(published, Err(Error::NotConfirmed { .. })), "{published:?}");
        broker.wait("asked q.retry.5000", SOON);
    }
}

/// A connection to a broker that has every queue, and does this instead of giving of one. What is
/// published is acked.
fn serve_but_for(session: &mut Session, name: &str, instead: impl Fn(&mut Session)) {
    while let Some(method) = session.next_method() {
        match &method.call {
            Call::Get { queue, .. } if queue == name => {
                instead(session);
                continue;
            }
            Call::Publish(publish) => {
                let queue = String::from_utf8_lossy(&publish.routing_key);
                session.report(format!("published to {queue}"));
            }
            _ => {}
        }
        session.serve_method(method);
    }
}

fn entry(name: &str, value: Field) -> (Vec<u8>, Field) {
    (name.into(), value)
}

fn safe_delay(delay: i64) -> Table {
    sorted([
        any_delay(delay),
        Table::from([
            entry("x-queue-type", Field::text("quorum")),
            entry("x-dead-letter-strategy", Field::text("at-least-once")),
            entry("x-overflow", Field::text("reject-publish")),
            entry("x-delivery-limit", Field::I64(i32::MAX.into())),
        ]),
    ])
}

fn simple_delay(delay: i64) -> Table {
    let kind = Table::from([entry("x-queue-type", Field::text("classic"))]);
    sorted([any_delay(delay), kind])
}

fn any_delay(delay: i64) -> Table {
    let week = 7 * 24 * 3600 * 1000;
    Table::from([
        entry("x-dead-letter-exchange", Field::text("")),
        entry("x-dead-letter-routing-key", Field::text("q")),
        entry("x-message-ttl", Field::I64(delay)),
        entry("x-expires", Field::I64(delay + week)),
    ])
}

/// As the client writes a table: by name.
fn sorted<const N: usize>(parts: [Table; N]) -> Table {
    let mut table = parts.concat();
    table.sort_by(|one, other| one.0.cmp(&other.0));
    table
}

#[test]
fn a_long_delay_does_not_hold_up_a_short_one() {
    let queue = unique_queue("delays");
    publish(&queue, Task::new("long").with_delay(Duration::from_secs(5)));
    publish(&queue, Task::new("short").with_delay(MOMENT));
    let begun = Instant::now();
    let (tell, bodies) = unbounded();
    let handler = move |delivery: &Delivery| {
        let _ = tell.send(delivery.task().body().to_vec());
        Ok(())
    };
    let working = Working::start(&worker(&queue).drain(), handler);
    assert_eq!(bodies.recv_timeout(SOON).expect("a task"), b"short");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(bodies.recv_timeout(SOON).expect("a task"), b"long");
    assert_eq!(working.wait(SOON).expect("it ends well").done, 2);
}
