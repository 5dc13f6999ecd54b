//! `Producer` as a program uses it: a receipt for each task, and returns that come late.

use std::collections::BTreeSet;
use std::time::Duration;

use rabbit_work::{Broker, Error, Outcome, Producer, Queue, Receipt, Task};

use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::scripted::{ScriptedBroker, Session};

const SOON: Duration = Duration::from_secs(30);

fn broker() -> Broker {
    shared_broker().url().parse().expect("the broker's URL is one")
}

#[test]
fn row_55_a_body_beyond_the_broker_s_limit_is_refused_here_and_the_next_one_goes_through() {
    let queue = unique_queue("giant");
    let mut producer = Producer::new(&broker(), &Queue::new(&queue));

    let refused = producer.publish(Task::new(vec![0; (128 << 20) + 1]));
    let next = producer.publish(Task::new("small"));

    let Err(Error::InvalidSetting { reason, .. }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("134217728"), "{reason}");
    next.expect("confirmed");
    assert_eq!(shared_broker().client().get_all(&queue).len(), 1);
}

#[test]
fn a_producer_publishes_ten_thousand_tasks_with_one_receipt_each() {
    let queue = unique_queue("receipts");
    let mut producer = Producer::new(&broker(), &Queue::new(&queue)).window(100);

    let mut receipts = Vec::new();
    for number in 0..10_000 {
        receipts.extend(producer.send(Task::new("x").with_id(number.to_string())));
    }
    receipts.extend(producer.flush());

    assert!(receipts.iter().all(|receipt| receipt.outcome == Outcome::Confirmed));
    let ids: BTreeSet<&str> = receipts.iter().filter_map(|receipt| receipt.task.id()).collect();
    assert_eq!((receipts.len(), ids.len()), (10_000, 10_000));
    let client = shared_broker().client();
    assert_eq!(client.count(&queue), 10_000);
    client.delete(&queue);
}

#[test]
fn tasks_of_one_id_to_a_missing_queue_are_each_returned() {
    let missing = Queue::new(unique_queue("missing")).passive();
    let mut producer = Producer::new(&broker(), &missing);

    let mut receipts = Vec::new();
    for _ in 0..200 {
        receipts.extend(producer.send(Task::new("x").with_id("same")));
    }
    receipts.extend(producer.flush());

    assert_eq!(receipts.len(), 200);
    let returned = |outcome: &Outcome| matches!(outcome, Outcome::Returned { .. });
    assert!(receipts.iter().all(|receipt| returned(&receipt.outcome)), "{receipts:?}");
}

#[test]
fn a_producer_that_was_refused_works_once_the_reason_is_gone() {
    let queue = unique_queue("mended");
    let client = shared_broker().client();
    let mut asked = Producer::new(&broker(), &Queue::new(&queue).transient());
    let mut unasked = Producer::new(&broker(), &Queue::new(&queue).transient());
    client.declare(&queue);
    let refused = asked.connect();
    assert!(matches!(refused, Err(Error::QueueMismatch { .. })), "{refused:?}");
    let receipts = [unasked.send(Task::new("x")), unasked.flush()].concat();
    let Outcome::Unsent { reason, .. } = &receipts[0].outcome else { panic!("{receipts:?}") };
    assert!(reason.contains("other arguments"), "{reason}");
    client.delete(&queue);

    asked.connect().expect("nothing is in the way");
    asked.publish(Task::new("x")).expect("confirmed");
    // The refusal stands until the first pause is over.
    poll("a task is confirmed again", SOON, || {
        let receipts = [unasked.send(Task::new("x")), unasked.flush()].concat();
        (receipts[0].outcome == Outcome::Confirmed).then_some(())
    });

    assert_eq!(client.count(&queue), 2);
    client.delete(&queue);
}

#[test]
fn a_producer_without_a_time_limit_publishes() {
    let queue = unique_queue("patient");
    let broker = broker()
        .connect_timeout(Duration::MAX)
        .handshake_timeout(Duration::MAX)
        .call_timeout(Duration::MAX)
        .close_timeout(Duration::MAX);
    let mut producer = Producer::new(&broker, &Queue::new(&queue)).timeout(Duration::MAX);

    producer.publish(Task::new("x")).expect("confirmed");

    drop(producer);
    shared_broker().client().delete(&queue);
}

#[test]
fn a_return_that_comes_late_does_not_count_for_the_same_task_published_again() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let first = session.read_publish();
        let second = session.read_publish();
        session.return_message(&first, 312, "NO_ROUTE");
        session.ack(first.channel, 1);
        session.ack(second.channel, 2);
        let third = session.read_publish();
        let fourth = session.read_publish();
        session.return_message(&fourth, 312, "NO_ROUTE");
        session.ack_up_to(third.channel, 4);
        let _ = session.answer_rpcs();
    });
    let url: Broker = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new("q")).timeout(Duration::from_secs(8));
    let mut publish = || producer.publish(Task::new("").with_id("1"));

    let outcomes = [publish(), publish(), publish(), publish()];

    let outcomes = outcomes.map(|published| match published {
        Ok(_) => "confirmed",
        Err(Error::NotConfirmed { outcome: Outcome::Unconfirmed { .. }, .. }) => "unconfirmed",
        Err(Error::NotConfirmed { outcome: Outcome::Returned { .. }, .. }) => "returned",
        Err(error) => panic!("{error}"),
    });
    // One confirm for both the third and the fourth leaves open which of them was returned.
    assert_eq!(outcomes, ["unconfirmed", "confirmed", "unconfirmed", "returned"]);
}

/// Returns the second task of two before it settles either, the first as given.
fn returning_the_second_of_two(settle_first: fn(&mut Session, u16, u64)) -> ScriptedBroker {
    ScriptedBroker::start(move |session, _| {
        session.handshake();
        let first = session.read_publish();
        let second = session.read_publish();
        session.return_message(&second, 312, "NO_ROUTE");
        settle_first(session, first.channel, 1);
        session.ack(second.channel, 2);
        let _ = session.answer_rpcs();
    })
}

#[test]
fn a_return_of_another_task_with_the_id_of_one_that_was_given_up_counts_for_that_other() {
    let broker = returning_the_second_of_two(Session::ack);
    let url: Broker = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new("q")).timeout(Duration::from_secs(3));

    let given_up = producer.publish(Task::new("one").with_id("1"));
    let returned = producer.publish(Task::new("another").with_id("1"));

    let outcome = |published: Result<String, Error>| match published {
        Err(Error::NotConfirmed { outcome, .. }) => outcome,
        other => panic!("{other:?}"),
    };
    assert!(matches!(outcome(given_up), Outcome::Unconfirmed { .. }));
    assert!(matches!(outcome(returned), Outcome::Returned { .. }));
}

/// A return tells no tag: what has the same id, or none, may be what was returned.
#[test]
fn a_return_that_may_be_of_several_counts_for_each_of_them() {
    let broker = returning_the_second_of_two(Session::nack);
    let url: Broker = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new("q"));

    let mut receipts = Vec::new();
    for body in ["a", "b"] {
        receipts.extend(producer.send(Task::new(body).with_id("same")));
    }
    receipts.extend(producer.flush());

    let is_returned = |it: &Receipt| matches!(it.outcome, Outcome::Returned { .. });
    assert!(receipts.len() == 2 && receipts.iter().all(is_returned), "{receipts:?}");
}

#[test]
fn an_alarm_between_a_publish_and_the_first_delay_is_seen_and_named() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        session.read_publish();
        session.blocked("low on memory");
        session.stay_silent();
    });
    let url: Broker = broker.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new("q")).timeout(Duration::from_secs(8));

    let mut receipts = producer.send(Task::new("at once"));
    receipts.extend(producer.send(Task::new("later").with_delay(Duration::from_secs(5))));
    receipts.extend(producer.flush());

    let outcomes: Vec<String> = receipts.iter().map(|it| it.outcome.to_string()).collect();
    assert_eq!(outcomes.len(), 2);
    assert!(outcomes.iter().all(|it| it.ends_with("publishers: low on memory")), "{outcomes:?}");
}
