//! What becomes of failed tasks: retries, attempts, dead letters, delays, drains.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use crossbeam_channel::unbounded;
use rabbit_work::{
    Broker, Delivery, Error, EventKind, Failure, Producer, Queue, QueueType, RetryPolicy,
    StopReason, Task, Worker,
};

use crate::child::LedgerWorker;
use crate::support::broker::{PrivateBroker, poll, shared_broker};
use crate::support::client::{Message, persistent, publish_raw, unique_queue};
use crate::support::command::Command;
use crate::support::proxy::{Direction, Proxy, Toxic};
use crate::support::scripted::{ScriptedBroker, Session, Tuning};
use crate::support::wire::{Call, Delivery as WireDelivery, Field, Properties, Table};
use crate::support::working::Working;

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);
const MOMENT: Duration = Duration::from_millis(100);

fn broker() -> Broker {
    shared_broker().url().parse().expect("the broker's URL is one")
}

fn worker(queue: &str) -> Worker {
    Worker::new(&broker(), &Queue::new(queue)).threads(1)
}

fn policy(attempts: u32) -> RetryPolicy {
    RetryPolicy::new().max_attempts(attempts).first_delay(MOMENT)
}

fn dead(queue: &str) -> String {
    format!("{queue}.dead")
}

fn publish(queue: &str, task: Task) {
    Producer::new(&broker(), &Queue::new(queue)).publish(task).expect("confirmed");
}

/// A handler that fails as long as it is told, and tells each attempt.
fn failing(
    until: u32,
) -> (crossbeam_channel::Receiver<u32>, impl Fn(&Delivery) -> Result<(), Failure>) {
    let (tell, attempts) = unbounded();
    let handler = move |delivery: &Delivery| {
        let _ = tell.send(delivery.attempt());
        if delivery.attempt() <= until { Err(Failure::retry("not yet")) } else { Ok(()) }
    };
    (attempts, handler)
}

#[test]
fn a_task_comes_back_after_each_delay_with_its_attempts_counted_and_all_it_had() {
    let queue = unique_queue("retried");
    let (tell, seen) = unbounded();
    let handler = move |delivery: &Delivery| {
        let task = delivery.task();
        let _ = tell.send((delivery.attempt(), task.header_text("user"), Instant::now()));
        assert_eq!((task.id(), task.body()), (Some("1"), &b"body"[..]));
        if delivery.attempt() < 3 { Err(Failure::retry("not yet")) } else { Ok(()) }
    };
    publish(&queue, Task::new("body").with_id("1").with_header("user", "ann"));

    let working = Working::start(&worker(&queue).retry(policy(5)).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");

    let seen: Vec<_> = seen.try_iter().collect();
    let attempts: Vec<u32> = seen.iter().map(|it| it.0).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert!(seen.iter().all(|it| it.1.as_deref() == Some("ann")));
    assert!(seen[1].2 - seen[0].2 >= MOMENT, "the first delay");
    assert!(seen[2].2 - seen[1].2 >= 2 * MOMENT, "the second is twice as long");
    assert_eq!((summary.done, summary.retried, summary.dead), (1, 2, 0));
    assert_eq!(summary.ended, StopReason::Drained);
}

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
fn a_dead_letter_explains_itself_and_is_otherwise_as_it_was_sent() {
    let queue = unique_queue("dead");
    let mut client = shared_broker().client();
    client.declare(&queue);
    let mut headers = FieldTable::new();
    headers.insert("h".into(), AmqpValue::LongString("v".into()));
    let sent = AmqpProperties::default()
        .with_message_id("1".into())
        .with_content_type("text/x".into())
        .with_type_("kind".into())
        .with_app_id("app".into())
        .with_correlation_id("c".into())
        .with_priority(3)
        .with_timestamp(7)
        .with_delivery_mode(2)
        .with_headers(headers);
    client.publish(&queue, b"\0body\xff", sent.clone());

    let handler = |_: &Delivery| -> Result<(), Failure> { Err(Failure::retry("é no\n")) };
    let working = Working::start(&worker(&queue).retry(policy(3)).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");

    assert_eq!((summary.done, summary.retried, summary.dead), (0, 2, 1));
    let letters = client.get_all(&dead(&queue));
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].body, b"\0body\xff");
    let (ours, mut theirs): (BTreeMap<_, _>, BTreeMap<_, _>) = letters[0]
        .headers
        .clone()
        .into_iter()
        .partition(|(name, _)| name.starts_with("x-rabbit-work-"));
    // Of the broker, where the queue of dead letters is a quorum queue.
    theirs.remove("x-delivery-count");
    assert_eq!(letters[0].properties.clone().with_headers(theirs), sent);
    let text = |name: &str| match ours.get(&format!("x-rabbit-work-{name}")) {
        Some(AmqpValue::LongString(text)) => text.clone(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(text("reason"), "é no\n");
    assert_eq!(text("queue"), queue);
    assert_eq!(text("version"), env!("CARGO_PKG_VERSION"));
    assert!(!text("host").is_empty());
    assert_eq!(ours["x-rabbit-work-attempts"], AmqpValue::LongLongInt(3));
    for name in ["x-rabbit-work-first-failure", "x-rabbit-work-last-failure"] {
        assert!(matches!(ours[name], AmqpValue::Timestamp(seconds) if seconds > 1_600_000_000));
    }
}

#[test]
fn a_rejected_task_is_dead_at_once_and_an_own_delay_is_kept() {
    let queue = unique_queue("rejected");
    publish(&queue, Task::new("reject"));
    publish(&queue, Task::new("later"));
    let handler = |delivery: &Delivery| match (delivery.body(), delivery.attempt()) {
        (b"reject", _) => Err(Failure::reject("bad")),
        (_, 1) => Err(Failure::retry_after("busy", Duration::from_millis(123))),
        _ => Ok(()),
    };

    let working = Working::start(&worker(&queue).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");

    assert_eq!((summary.done, summary.retried, summary.dead), (1, 1, 1));
    let client = shared_broker().client();
    assert_eq!(client.count(&format!("{queue}.retry.200")), 0);
    assert_eq!(client.get_all(&dead(&queue))[0].text(), "reject");
}

#[test]
fn a_delay_of_nothing_tries_again_at_once_and_needs_no_delay_queue() {
    let queue = unique_queue("at-once");
    publish(&queue, Task::new(""));
    let (attempts, handler) = failing(3);
    let policy = RetryPolicy::new().first_delay(Duration::ZERO);
    let working = Working::start(&worker(&queue).retry(policy).drain(), handler);
    working.wait(SOON).expect("it ends well");
    assert_eq!(attempts.try_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn a_damaged_counter_is_the_last_attempt() {
    let queue = unique_queue("damaged");
    publish(&queue, Task::new("").with_header("x-rabbit-work-attempts", "many"));
    let (attempts, handler) = failing(u32::MAX);
    let working = Working::start(&worker(&queue).retry(policy(4)).drain(), handler);
    assert_eq!(working.wait(SOON).expect("it ends well").dead, 1);
    assert_eq!(attempts.try_iter().collect::<Vec<_>>(), [4]);
}

#[test]
fn row_48_a_task_that_always_fails_runs_as_often_as_the_policy_allows_and_never_sooner() {
    let queue = unique_queue("spins");
    let (tell, runs) = unbounded();
    let handler = move |delivery: &Delivery| -> Result<(), Failure> {
        let _ = tell.send((delivery.attempt(), Instant::now()));
        Err(Failure::retry("always"))
    };
    publish(&queue, Task::new(""));

    let policy = policy(8).factor(1.0);
    let working =
        Working::start(&worker(&queue).threads(4).prefetch(50).retry(policy).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");

    let (attempts, at): (Vec<u32>, Vec<Instant>) = runs.try_iter().unzip();
    assert_eq!(attempts, [1, 2, 3, 4, 5, 6, 7, 8]);
    let pauses: Vec<Duration> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|pause| *pause >= MOMENT), "{pauses:?}");
    assert_eq!((summary.done, summary.retried, summary.dead), (0, 7, 1));
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
    assert!(said[0].contains("WARN") && said[0].contains("can lose that task"), "{}", said[0]);
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

        for step in ["published to q.retry.200", "acked"] {
            broker.wait(step, LONG);
            broker.wait(step, LONG);
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

#[test]
fn what_cannot_be_handed_over_goes_back_after_a_pause_uncounted() {
    let queue = unique_queue("refused");
    let client = shared_broker().client();
    // Not declared as either kind of delay queue: tasks would stay in it for ever.
    client.declare(&format!("{queue}.retry.100"));
    publish(&queue, Task::new("kept"));
    let (attempts, handler) = failing(u32::MAX);
    let working = Working::start(&worker(&queue).retry(policy(5)), handler);
    working.wait_for(EventKind::Failed, SOON);
    working.wait_for(EventKind::Failed, SOON);
    let summary = working.stop(SOON);
    assert!(attempts.try_iter().all(|attempt| attempt == 1));
    assert_eq!((summary.retried, summary.dead), (0, 0));
    assert_eq!(client.count(&format!("{queue}.retry.100")), 0);
    client.wait_for_count(&queue, 1, SOON);
}

#[test]
fn a_task_whose_headers_fill_a_frame_still_ends_as_a_dead_letter() {
    let queue = unique_queue("crowded");
    let mut client = shared_broker().client();
    client.declare(&queue);
    // The last fills a frame of 128 KiB to its last byte.
    let sizes = [60_000, 100_000, 127_000, 130_300, 131_036];
    for size in sizes {
        let mut headers = FieldTable::new();
        headers.insert("h".into(), AmqpValue::LongString("x".repeat(size)));
        let properties =
            AmqpProperties::default().with_message_id("1".into()).with_delivery_mode(2);
        client.publish(&queue, size.to_string().as_bytes(), properties.with_headers(headers));
    }
    let said = format!("first {} last", "…".repeat(2000));
    let handler = move |_: &Delivery| -> Result<(), Failure> { Err(Failure::retry(said.clone())) };

    let working = Working::start(&worker(&queue).retry(policy(2)).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");

    assert_eq!((summary.failed, summary.retried, summary.dead), (0, 4, 5));
    let letters = client.get_all(&dead(&queue));
    let told = sizes.map(|size| {
        let letter = letters.iter().find(|it| it.text() == size.to_string()).expect("it is dead");
        assert!(letter.headers["h"] == AmqpValue::LongString("x".repeat(size)));
        let reason = match letter.headers.get("x-rabbit-work-reason") {
            Some(AmqpValue::LongString(reason)) => reason.len(),
            _ => 0,
        };
        (letter.headers.contains_key("x-rabbit-work-attempts"), reason / 100)
    });
    assert_eq!(told, [(true, 44), (true, 44), (true, 1), (true, 1), (false, 0)]);
}

#[test]
fn a_task_whose_headers_are_nested_as_deep_as_is_taken_fails_like_any_other() {
    let queue = unique_queue("deep");
    let mut client = shared_broker().client();
    client.declare(&queue);
    // The table of the headers is the hundredth.
    let deep = (1..100).fold(AmqpValue::Void, |inside, _| AmqpValue::FieldArray(vec![inside]));
    let mut headers = FieldTable::new();
    headers.insert("h".into(), deep.clone());
    client.publish(&queue, b"x", persistent("1").with_headers(headers));
    let (attempts, handler) = failing(u32::MAX);

    let working = Working::start(&worker(&queue).retry(policy(2)).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");

    assert_eq!((summary.retried, summary.dead, attempts.try_iter().count()), (1, 1, 2));
    assert!(client.get_all(&dead(&queue))[0].headers["h"] == deep);
}

/// As long as they come as text, the client library drops them and all behind them.
#[test]
fn headers_that_are_not_utf_8_keep_their_bytes_and_what_is_behind_them() {
    let queue = unique_queue("latin");
    let client = shared_broker().client();
    client.declare(&queue);
    let latin = || Field::text(b"caf\xe9");
    let table = vec![(b"in".to_vec(), latin()), (b"out".to_vec(), Field::Bool(true))];
    for id in ["letter", "replayed"] {
        let properties = Properties::with_message_id(id)
            .header("a", Field::text("one"))
            .header("b", latin())
            .header("c", Field::text("three"))
            .header("d", Field::Array(vec![latin(), Field::Table(table.clone()), latin()]))
            .header("e", Field::text("caf\u{e9}"));
        publish_raw(shared_broker().url(), &queue, b"x", &properties);
    }
    let (_, handler) = failing(u32::MAX);

    let working = Working::start(&worker(&queue).retry(policy(2)).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");
    let replay = ["dead", "replay", "--id", "replayed"];
    let place = ["--url", shared_broker().url(), "--queue", &queue];
    Command::queuectl(&[&place[..], &replay].concat()).run(SOON).assert_code(0);

    assert_eq!((summary.retried, summary.dead), (2, 2));
    let text = |text: &str| AmqpValue::LongString(text.into());
    let bytes = || AmqpValue::ByteArray(b"caf\xe9".to_vec());
    let mut table = FieldTable::new();
    table.insert("in".into(), bytes());
    table.insert("out".into(), AmqpValue::Boolean(true));
    let list = AmqpValue::FieldArray(vec![bytes(), AmqpValue::FieldTable(table), bytes()]);
    let sent = [
        ("a", text("one")),
        ("b", bytes()),
        ("c", text("three")),
        ("d", list),
        ("e", text("caf\u{e9}")),
    ];
    for (queue, id) in [(dead(&queue), "letter"), (queue, "replayed")] {
        let messages = client.get_all(&queue);
        assert_eq!(messages.len(), 1, "{queue}");
        assert_eq!(messages[0].message_id.as_deref(), Some(id));
        for (name, value) in &sent {
            assert_eq!(messages[0].headers.get(*name), Some(value), "{name} of {id}");
        }
    }
}

#[test]
fn properties_that_are_not_utf_8_become_ascii_and_take_no_others_with_them() {
    let queue = unique_queue("latin-1");
    let client = shared_broker().client();
    client.declare(&queue);
    let latin = || Some(b"caf\xe9".to_vec());
    let properties = Properties {
        content_type: latin(),
        correlation_id: latin(),
        reply_to: Some(b"answers".to_vec()),
        app_id: latin(),
        ..Properties::with_message_id("id").header("a", Field::text("one"))
    };
    publish_raw(shared_broker().url(), &queue, b"x", &properties);
    let (_, handler) = failing(u32::MAX);

    let working = Working::start(&worker(&queue).retry(policy(2)).drain(), handler);
    let summary = working.wait(SOON).expect("it ends well");

    assert_eq!((summary.retried, summary.dead), (1, 1));
    let letter = client.get_all(&dead(&queue)).pop().expect("a letter");
    let Message { properties, headers, .. } = &letter;
    let mended = Some("caf?".to_string());
    assert_eq!(properties.content_type(), &mended);
    assert_eq!(properties.correlation_id(), &mended);
    assert_eq!(properties.reply_to(), &Some("answers".into()));
    assert_eq!(properties.message_id(), &Some("id".into()));
    assert_eq!(properties.app_id(), &mended);
    assert_eq!(headers.get("a"), Some(&AmqpValue::LongString("one".into())));
}

#[test]
fn a_blocked_hand_over_stops_within_the_grace_and_loses_nothing() {
    let broker = PrivateBroker::start();
    let queue = unique_queue("blocked");
    let mut client = broker.client();
    client.declare(&queue);
    client.publish_ids(&queue, ["1"]);
    broker.alarm();
    let url = broker.url().parse().expect("a URL");
    let (attempts, handler) = failing(u32::MAX);
    let worker = Worker::new(&url, &Queue::new(&queue)).grace(Duration::from_secs(2));
    let working = Working::start(&worker, handler);
    attempts.recv_timeout(SOON).expect("a task");
    let begun = Instant::now();
    let summary = working.stop(SOON);
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    assert_eq!(summary.dead, 0);
    broker.clear_alarm();
    let there = |name: &str| client.count(name) == 1;
    poll("the task is back, or waits for its retry", SOON, || {
        (there(&queue) || there(&format!("{queue}.retry.5000"))).then_some(())
    });
}

/// It is in the queue no more, and not with the worker yet.
#[test]
fn a_drain_waits_for_a_large_task_on_a_slow_line() {
    let queue = unique_queue("slow");
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.publish(&queue, &vec![b'x'; 1 << 20], AmqpProperties::default());
    let proxy = Proxy::start(shared_broker().address());
    proxy.set(Direction::ToClient, Toxic::Bandwidth(150_000));

    let arguments = ["--url", &proxy.url(), "--queue", &queue, "--drain", "--threads", "1"];
    let output = Command::worker(&[&arguments[..], &["--", "true"]].concat()).run(SOON);

    output.assert_code(0);
    assert!(output.stderr().contains("1 tasks done, 0 retried"), "{}", output.stderr());
}

#[test]
fn several_workers_that_drain_one_queue_all_end_and_tell_of_their_own_dead_letters() {
    let queue = unique_queue("drained");
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    let produce = |arguments: &[&str]| {
        Command::producer(&[&to, arguments].concat()).run(SOON).assert_code(0);
    };
    produce(&["--repeat", "50", "good"]);
    produce(&["bad"]);
    produce(&["--delay", "2s", "later"]);
    let begun = Instant::now();
    let drain = [&to[..], &["--drain", "--threads", "2", "--json"]].concat();
    let policy = ["--max-attempts", "2", "--retry-delay", "100ms"];
    let fails_if_bad = ["--", "sh", "-c", "test \"$(cat)\" != bad"];
    let worker = || Command::worker(&[&drain[..], &policy, &fails_if_bad].concat()).start();
    let workers = [worker(), worker(), worker()];

    let outputs = workers.map(|worker| worker.wait(SOON));

    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    let (mut done, mut died) = (0, 0);
    for output in &outputs {
        let summary: serde_json::Value =
            serde_json::from_str(&output.stdout()).expect("JSON and nothing else");
        let dead = summary["dead"].as_u64().expect("a number");
        output.assert_code(dead.min(1) as i32);
        done += summary["done"].as_u64().expect("a number");
        died += dead;
    }
    assert_eq!((done, died), (51, 1));
}

#[test]
fn delays_double_up_to_the_longest() {
    let queue = unique_queue("doubling");
    let url = ["--url", shared_broker().url(), "--queue", &queue];
    Command::producer(&[&url[..], &["x"]].concat()).run(SOON).assert_code(0);
    let policy =
        ["--max-attempts", "5", "--retry-delay", "100ms", "--max-retry-delay", "300ms", "--drain"];

    let output = Command::worker(&[&url[..], &policy, &["--", "false"]].concat()).run(SOON);

    output.assert_code(1);
    let mut client = shared_broker().client();
    let there = [100, 200, 500, 300, 400].map(|it| client.has(&format!("{queue}.retry.{it}")));
    assert_eq!(there, [true, true, true, false, false]);
}

#[test]
fn a_queue_that_has_priorities_gives_by_them() {
    let queue = unique_queue("priorities");
    let mut priorities = FieldTable::new();
    priorities.insert("x-max-priority".into(), AmqpValue::LongInt(5));
    // No other type has priorities, whatever the default is.
    priorities.insert("x-queue-type".into(), AmqpValue::LongString("classic".into()));
    shared_broker().client().declare_with(&queue, priorities);
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--no-declare"];
    for flags in [&["low", "--priority", "1"][..], &["none"], &["high", "--priority", "5"]] {
        Command::producer(&[&to[..], flags].concat()).run(SOON).assert_code(0);
    }

    let tell = ["--drain", "--threads", "1", "--", "sh", "-c", "cat; echo"];
    let output = Command::worker(&[&to[..], &tell].concat()).run(SOON);

    output.assert_code(0);
    assert_eq!(output.stdout(), "high\nlow\nnone\n");
}

#[test]
fn a_worker_that_waits_for_delayed_tasks_uses_no_measurable_time() {
    let queue = unique_queue("idle");
    publish(&queue, Task::new(""));
    let to = ["--url", shared_broker().url(), "--queue", &queue, "--drain", "--threads", "4"];
    // Fails at its first attempt, so that the hand-over has its connection, and has nothing to do.
    let once = ["--", "sh", "-c", "echo run; test \"$TASK_ATTEMPT\" = 2"];
    let worker = Command::worker(&[&to[..], &["--retry-delay", "5s"], &once].concat()).start();
    worker.wait_for_stdout_line(|line| line == "run", SOON);
    let (mut client, waiting) = (shared_broker().client(), format!("{queue}.retry.5000"));
    poll("it waits for its retry", SOON, || {
        (client.has(&waiting) && client.count(&waiting) == 1).then_some(())
    });
    let before = processor_ticks(worker.id());
    worker.wait_for_stdout_line(|line| line == "run", SOON);
    let used = processor_ticks(worker.id()) - before;
    // A tick is 10 ms: at most 2 % of one processor over about 5 s.
    assert!(used <= 10, "{used} ticks");
    worker.wait(SOON).assert_code(0);
}

fn processor_ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("/proc");
    let after_name = stat.rsplit_once(')').expect("a name").1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |field: usize| fields[field].parse::<u64>().expect("a number");
    ticks(11) + ticks(12)
}

#[test]
fn a_killer_on_a_quorum_queue_becomes_a_dead_letter_that_says_so() {
    let queue = unique_queue("killer");
    let quorum = Queue::new(&queue).queue_type(QueueType::Quorum).delivery_limit(2);
    Producer::new(&broker(), &quorum).publish(Task::new("").with_id("1")).expect("confirmed");
    let to = ["--url", shared_broker().url(), "--queue", &queue];
    let quorum_flags = ["--queue-type", "quorum", "--delivery-limit", "2"];
    // The worker declares the dead letters before the broker needs them.
    let worker = Command::worker(&[&to[..], &quorum_flags, &["--max-tasks", "1"]].concat());
    let running = worker.start();
    running.wait_for_stdout_line(|line| line.contains("Received"), SOON);
    running.wait(SOON).assert_code(0);
    Producer::new(&broker(), &quorum).publish(Task::new("").with_id("2")).expect("confirmed");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger");
    let killer = LedgerWorker::killer(shared_broker().url(), &queue, &path);
    for _ in 0..3 {
        let output = killer.command().env("IT_NO_DECLARE", "1").run(SOON);
        assert_eq!(output.signal, Some(9));
    }
    let client = shared_broker().client();
    client.wait_for_count(&dead(&queue), 1, SOON);
    let list = [&to[..], &quorum_flags, &["dead", "list", "--json"]].concat();
    let listed = Command::queuectl(&list).run(SOON).success();
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[0]["id"], "2");
    let reason = listed[0]["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("delivery limit"), "{reason}");
}

/// Somebody else's queue of dead letters serves as well.
#[test]
fn a_queue_of_dead_letters_with_other_arguments_is_used_as_it_is() {
    let queue = unique_queue("classic-dead");
    let client = shared_broker().client();
    client.declare(&dead(&queue));
    let flags = ["--url", shared_broker().url(), "--queue", &queue, "--queue-type", "quorum"];
    Command::producer(&[&flags[..], &["x"]].concat()).run(SOON).assert_code(0);
    let once = ["--max-attempts", "1", "--drain", "--", "false"];

    let worked = Command::worker(&[&flags[..], &once].concat()).run(LONG);

    worked.assert_code(1);
    let told = format!("'{}' cannot be declared", dead(&queue));
    let stderr = worked.stderr();
    assert!(
        stderr.lines().any(|it| it.contains(&told) && it.contains("used as it is")),
        "{stderr}"
    );
    assert_eq!(client.count(&dead(&queue)), 1);
    let checked = Command::queuectl(&[&flags[..], &["check"]].concat()).run(SOON);
    checked.assert_code(0);
    let stdout = checked.stdout();
    assert!(stdout.contains("ok    dead") && stdout.contains("used as it is"), "{stdout}");
}

#[test]
fn a_queue_of_dead_letters_that_cannot_be_used_is_named() {
    let queue = unique_queue("locked-dead");
    let client = shared_broker().client();
    client.declare_exclusive(&dead(&queue));
    let flags = ["--url", shared_broker().url(), "--queue", &queue, "--queue-type", "quorum"];

    let refused = Command::worker(&[&flags[..], &["--", "false"]].concat()).run(SOON);

    refused.assert_code(2);
    let stderr = refused.stderr();
    assert!(stderr.contains(&format!("use of queue '{}'", dead(&queue))), "{stderr}");
}
