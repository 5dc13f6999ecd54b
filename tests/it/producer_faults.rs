//! `Producer` in trouble: dropped, without a connection, stopped.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use rabbit_work::{Broker, Error, Outcome, Producer, Queue, Receipt, Task, shutdown};

use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::scripted::ScriptedBroker;

fn broker() -> Broker {
    shared_broker().url().parse().expect("the broker's URL is one")
}

/// An address where nobody listens.
fn nowhere() -> Broker {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    format!("amqp://{address}").parse().expect("a URL")
}

fn are_unsent(receipts: &[Receipt]) -> bool {
    receipts.iter().all(|it| matches!(it.outcome, Outcome::Unsent { .. }))
}

#[test]
fn a_dropped_producer_publishes_what_it_was_sent() {
    let queue = unique_queue("dropped");
    for _ in 0..3 {
        let mut producer = Producer::new(&broker(), &Queue::new(&queue));
        for _ in 0..1000 {
            let _ = producer.send(Task::new("x"));
        }
    }

    let client = shared_broker().client();
    assert_eq!(client.count(&queue), 3000);
    client.delete(&queue);
}

#[test]
fn a_producer_that_is_closed_returns_its_last_receipts() {
    let queue = unique_queue("closed");
    let mut producer = Producer::new(&broker(), &Queue::new(&queue));
    let mut receipts = Vec::new();
    for _ in 0..100 {
        receipts.extend(producer.send(Task::new("x")));
    }

    receipts.extend(producer.close());

    assert_eq!(receipts.len(), 100);
    assert!(receipts.iter().all(|it| it.outcome == Outcome::Confirmed), "{receipts:?}");
    shared_broker().client().delete(&queue);
}

#[test]
fn a_producer_that_is_dropped_does_not_wait_long_for_a_silent_broker() {
    let silent = ScriptedBroker::start(|session, _| {
        session.handshake();
        session.read_publish();
        session.stay_silent();
    });
    let url: Broker = silent.url().parse().expect("a URL");
    let mut producer = Producer::new(&url, &Queue::new("q")).timeout(Duration::from_secs(300));
    let _ = producer.send(Task::new("x"));

    let begun = Instant::now();
    drop(producer);

    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn the_time_to_connect_counts_for_the_task() {
    let (let_in, is_let_in) = bounded::<()>(0);
    let slow = ScriptedBroker::start(move |session, _| {
        let _ = is_let_in.recv();
        session.handshake();
        session.read_publish();
        session.stay_silent();
    });
    let broker: Broker = slow.url().parse().expect("a URL");
    let limit = Duration::from_secs(6);
    let mut producer = Producer::new(&broker, &Queue::new("q")).timeout(limit);
    let begun = Instant::now();
    let (end, has_ended) = bounded::<()>(0);
    let call = thread::spawn(move || {
        let published = producer.publish(Task::new("x"));
        drop(end);
        (published, begun.elapsed())
    });

    assert_eq!(has_ended.recv_timeout(limit / 2), Err(RecvTimeoutError::Timeout));
    drop(let_in);
    let (published, took) = call.join().expect("no panic");
    assert!(published.is_err(), "{published:?}");
    assert!(took <= limit + limit / 10, "{took:?}");
}

#[test]
fn tasks_without_a_connection_wait_together_up_to_the_window() {
    let limit = Duration::from_secs(40);
    let mut producer = Producer::new(&nowhere(), &Queue::new("q")).window(10).timeout(limit);
    let begun = Instant::now();

    for _ in 0..10 {
        assert!(producer.send(Task::new("x")).is_empty());
    }

    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    let mut producer = Producer::new(&nowhere(), &Queue::new("q")).timeout(Duration::from_secs(2));
    let mut receipts = Vec::new();
    for _ in 0..10 {
        receipts.extend(producer.send(Task::new("x")));
    }
    receipts.extend(producer.flush());
    assert!(receipts.len() == 10 && are_unsent(&receipts), "{receipts:?}");
}

#[test]
fn what_may_pass_is_transient() {
    let timeout = Duration::from_secs(3);
    let unreachable = Producer::new(&nowhere(), &Queue::new("q")).timeout(timeout);
    let full = unique_queue("full");
    shared_broker().client().declare_bounded(&full, 1);
    let mut full_queue = Producer::new(&broker(), &Queue::new(&full).passive()).timeout(timeout);
    full_queue.publish(Task::new("fills it")).expect("confirmed");
    let missing = Queue::new(unique_queue("missing")).passive();
    let missing_queue = Producer::new(&broker(), &missing).timeout(timeout);

    for (mut producer, is_transient) in
        [(unreachable, true), (full_queue, true), (missing_queue, false)]
    {
        let error = producer.publish(Task::new("x")).expect_err("not confirmed");
        assert_eq!(error.is_transient(), is_transient, "{error}");
    }
    shared_broker().client().delete(&full);
}

#[test]
fn a_broker_that_was_not_tried_again_is_named_with_its_last_failure() {
    let mut producer = Producer::new(&nowhere(), &Queue::new("q"));
    for limit in [1000, 1, 1] {
        producer = producer.timeout(Duration::from_millis(limit));
        let error = producer.publish(Task::new("x")).expect_err("nobody listens");
        let Error::Unreachable { attempts, .. } = &error else { panic!("{error}") };
        assert!(attempts[0].contains("refused"), "{attempts:?}");
    }
}

#[test]
fn after_a_stop_a_producer_without_a_connection_makes_none() {
    let (trigger, shutdown) = shutdown();
    let queue = unique_queue("stopped");
    let mut producer = Producer::new(&broker(), &Queue::new(&queue)).shutdown(&shutdown);
    trigger.stop();

    let published = producer.publish(Task::new("x"));
    let sent = [producer.send(Task::new("x")), producer.flush()].concat();

    assert!(matches!(published, Err(Error::Stopped)), "{published:?}");
    assert!(sent.len() == 1 && are_unsent(&sent), "{sent:?}");
    let reason = sent[0].outcome.to_string();
    assert!(reason.contains(&Error::Stopped.to_string()), "{reason}");
}

#[test]
fn bodies_and_properties_of_any_size_arrive_whole() {
    let queue = unique_queue("sizes");
    let mut producer = Producer::new(&broker(), &Queue::new(&queue));
    let frame = 128 * 1024;
    let sizes = [0, 1, frame - 9, frame - 8, frame - 7, 2 * (frame - 8), 3 * frame + 5, 1];
    let bodies = sizes.map(|size| (0..size).map(|byte| (byte % 251) as u8).collect::<Vec<_>>());

    let mut receipts = Vec::new();
    for body in &bodies {
        let task = Task::new(body.clone()).with_header("h", "x".repeat(60_000));
        receipts.extend(producer.send(task));
    }
    receipts.extend(producer.close());

    assert!(receipts.iter().all(|it| it.outcome == Outcome::Confirmed), "{receipts:?}");
    let client = shared_broker().client();
    let arrived: Vec<_> = client.get_all(&queue).into_iter().map(|it| it.body).collect();
    assert!(arrived == bodies, "each is whole, in order");
    client.delete(&queue);
}
