//! How often and when a failed task runs again, and when it becomes a dead letter.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use crossbeam_channel::unbounded;
use rabbit_work::{Delivery, EventKind, Failure, Queue, RetryPolicy, StopReason, Task, Worker};

use super::{MOMENT, SOON, dead, failing, policy, publish, worker};
use crate::support::broker::{PrivateBroker, poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::working::Working;

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
