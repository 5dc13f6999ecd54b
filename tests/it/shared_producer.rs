//! `SharedProducer`: one producer for many threads.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use rabbit_work::{
    Broker, Error, Outcome, Pending, Producer, ProducerState, Publish, Queue, SharedProducer, Task,
    shutdown,
};

use crate::support::broker::{breakable_broker, poll, shared_broker};
use crate::support::client::unique_queue;
use crate::support::ledger::Ledger;
use crate::support::proxy::{Direction, Proxy, Toxic};
use crate::support::scripted::ScriptedBroker;

const SOON: Duration = Duration::from_secs(90);

fn producer(url: &str, queue: &str) -> Producer {
    Producer::new(&url.parse::<Broker>().expect("a URL"), &Queue::new(queue))
}

/// The URL of an address where nobody listens.
fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("amqp://{}", listener.local_addr().expect("its address"))
}

/// A broker that takes everything and confirms nothing.
fn silent() -> ScriptedBroker {
    ScriptedBroker::start(|session, _| {
        session.handshake();
        session.read_publish();
        session.report("published");
        session.stay_silent();
    })
}

/// A broker that answers so many methods on each connection, and no more.
fn silent_after(methods: usize) -> ScriptedBroker {
    ScriptedBroker::start(move |session, _| {
        let mut answered = 0;
        session.serve_but(|session, _| {
            if answered == methods {
                session.stay_silent();
            }
            answered += 1;
        });
    })
}

fn is_unsent(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Unsent { .. })
}

fn wait_for_state(producer: &SharedProducer, wanted: impl Fn(&ProducerState) -> bool) {
    poll("the state of the producer", SOON, || wanted(&producer.state()).then_some(()));
}

#[test]
fn many_threads_publish_over_one_connection() {
    let queue = unique_queue("shared");
    let proxy = Proxy::start(shared_broker().address());
    let shared = producer(&proxy.url(), &queue).shared();

    thread::scope(|scope| {
        for number in 0..32 {
            let producer = shared.clone();
            scope.spawn(move || {
                for task in 0..10 {
                    let id = format!("{number}-{task}");
                    let published = producer.publish(Task::new("x").with_id(&id));
                    assert_eq!(published.expect("confirmed"), id);
                }
            });
        }
    });

    let client = shared_broker().client();
    assert_eq!((client.count(&queue), proxy.connections()), (320, 1));
    client.delete(&queue);
}

#[test]
fn a_producer_that_is_connected_is_shared_with_its_connection_and_its_tasks() {
    let queue = unique_queue("handed-over");
    let proxy = Proxy::start(shared_broker().address());
    let mut before = producer(&proxy.url(), &queue);
    before.connect().expect("a broker");
    let _ = before.send(Task::new("sent before"));

    let mut shared = before.shared();

    assert_eq!(shared.state(), ProducerState::Up);
    let receipts = shared.publish_all(vec![Task::new("x"); 100]);
    assert!(receipts.len() == 100 && receipts.iter().all(|it| it.outcome == Outcome::Confirmed));
    assert_eq!(proxy.connections(), 1);
    shared.close();
    let client = shared_broker().client();
    assert_eq!(client.count(&queue), 101);
    client.delete(&queue);
}

#[test]
fn the_last_clone_dropped_publishes_what_was_submitted() {
    let queue = unique_queue("last-clone");
    let shared = producer(shared_broker().url(), &queue).shared();
    let other = shared.clone();
    for _ in 0..1000 {
        drop(shared.submit(Task::new("x")));
    }
    drop(shared);
    let last = other.submit(Task::new("x"));
    drop(other);

    assert_eq!(last.wait(Duration::ZERO).outcome, Outcome::Confirmed);
    let client = shared_broker().client();
    assert_eq!(client.count(&queue), 1001);
    client.delete(&queue);
}

#[test]
fn dropping_the_last_clone_does_not_wait_long_for_a_silent_broker() {
    let silent = silent();
    let shared = producer(&silent.url(), "q").timeout(Duration::from_secs(300)).shared();
    let pending = shared.submit(Task::new("x"));
    silent.wait("published", SOON);

    let begun = Instant::now();
    drop(shared);

    assert!(begun.elapsed() < Duration::from_secs(100), "{:?}", begun.elapsed());
    assert!(matches!(pending.wait(Duration::ZERO).outcome, Outcome::Unconfirmed { .. }));
}

#[test]
fn closed_by_one_clone_it_publishes_nothing_more_for_the_others() {
    let queue = unique_queue("closed");
    let shared = producer(shared_broker().url(), &queue).shared();
    let other = shared.clone();
    let pending = shared.submit(Task::new("x"));

    shared.close();

    assert_eq!(pending.wait(Duration::ZERO).outcome, Outcome::Confirmed);
    assert_eq!(other.state(), ProducerState::Stopped);
    assert!(is_unsent(&outcome_with_its_task(other.publish(Task::new("x")))));
    assert!(is_unsent(&other.submit(Task::new("x")).wait(SOON).outcome));
    shared_broker().client().delete(&queue);
}

#[test]
fn a_caller_that_waits_for_room_when_it_is_closed_has_published_nothing() {
    let silent = silent();
    let shared = producer(&silent.url(), "q").window(1).timeout(Duration::from_secs(4)).shared();
    wait_for_state(&shared, |state| *state == ProducerState::Up);
    let first = shared.submit(Task::new("x"));
    silent.wait("published", SOON);
    let outcome = thread::scope(|scope| {
        let waiting = scope.spawn(|| outcome_with_its_task(shared.publish(Task::new("x"))));
        shared.clone().close();
        waiting.join().expect("no panic")
    });
    assert!(matches!(first.wait(SOON).outcome, Outcome::Unconfirmed { .. }));
    assert!(is_unsent(&outcome), "{outcome}");
}

#[test]
fn after_a_stop_it_makes_no_connection_and_an_abort_ends_every_wait() {
    let (trigger, shutdown) = shutdown();
    let stopped = producer(&nowhere(), "q").shutdown(&shutdown).shared();
    let silent = silent();
    let connected = producer(&silent.url(), "q").shutdown(&shutdown).shared();
    wait_for_state(&connected, |state| *state == ProducerState::Up);
    let pending = connected.submit(Task::new("x"));
    silent.wait("published", SOON);

    trigger.stop();
    assert_eq!(stopped.state(), ProducerState::Stopped);
    assert!(is_unsent(&outcome_with_its_task(stopped.publish(Task::new("x")))));
    assert_eq!(connected.state(), ProducerState::Up, "it publishes until it is closed");

    trigger.abort();
    assert!(matches!(pending.wait(SOON).outcome, Outcome::Unconfirmed { .. }));
    wait_for_state(&connected, |state| *state == ProducerState::Stopped);
}

#[test]
fn a_wait_that_ends_first_says_so_and_can_be_repeated() {
    let limit = Duration::from_secs(3);
    let shared = producer(&nowhere(), "q").timeout(limit).shared();
    let pending = shared.submit(Task::new("x").with_id("17"));

    let early = pending.wait(Duration::from_millis(10));
    assert!(!pending.is_resolved());
    assert!(early.outcome.to_string().contains("still tries"), "{}", early.outcome);

    let receipt = pending.wait(Duration::MAX);
    assert!(pending.is_resolved() && is_unsent(&receipt.outcome), "{receipt:?}");
    assert_eq!((receipt.task.id(), pending.id()), (Some("17"), "17"));
}

#[test]
fn an_error_returns_the_task_with_its_id() {
    let missing = Queue::new(unique_queue("missing"));
    let broker: Broker = shared_broker().url().parse().expect("a URL");
    let full = unique_queue("full");
    shared_broker().client().declare_bounded(&full, 1);
    let bounded = Queue::new(&full).passive();
    let timeout = Duration::from_secs(3);
    let mut own = Producer::new(&broker, &bounded).timeout(timeout);
    own.publish(Task::new("fills it")).expect("confirmed");
    let shared = Producer::new(&broker, &bounded).timeout(timeout).shared();
    let not_there = Producer::new(&broker, &missing.passive()).timeout(timeout).shared();

    for (error, kind) in [
        (own.publish(Task::new("x")), "nacked"),
        (shared.publish(Task::new("x")), "nacked"),
        (not_there.publish(Task::new("x")), "returned"),
    ] {
        let outcome = outcome_with_its_task(error);
        assert!(outcome.to_string().starts_with(kind), "{outcome}");
    }
    shared_broker().client().delete(&full);
}

/// What became of the task `x`, which the error gives back with its id.
fn outcome_with_its_task(published: Result<String, Error>) -> Outcome {
    let Err(Error::NotConfirmed { outcome, task, .. }) = published else { panic!("{published:?}") };
    assert!(task.body() == b"x" && task.id().is_some_and(|id| !id.is_empty()));
    outcome
}

#[test]
fn the_window_bounds_all_callers_together_and_the_wait_for_room_counts() {
    let silent = silent();
    let limit = Duration::from_secs(10);
    let shared = producer(&silent.url(), "q").window(2).timeout(limit).shared();
    let first = [shared.submit(Task::new("1")), shared.submit(Task::new("2"))];
    let begun = Instant::now();

    let (taken, is_taken) = bounded::<()>(0);
    let other = shared.clone();
    let third = thread::spawn(move || {
        let pending = other.submit(Task::new("3"));
        drop(taken);
        pending.wait(SOON).outcome
    });
    let other = shared.clone();
    let fourth = thread::spawn(move || other.publish(Task::new("4")));

    let early = is_taken.recv_timeout(Duration::from_secs(1));
    assert_eq!(early, Err(RecvTimeoutError::Timeout), "there was room for a third");
    let outcome = third.join().expect("no panic");
    assert!(begun.elapsed() < limit + limit / 10, "{:?}", begun.elapsed());
    let expected = matches!(&outcome, Outcome::Unconfirmed { .. } | Outcome::Unsent { .. });
    assert!(expected, "{outcome}");
    let error = fourth.join().expect("no panic").expect_err("no confirm comes");
    assert!(matches!(&error, Error::NotConfirmed { .. }), "{error}");
    assert!(begun.elapsed() < limit + limit / 10, "{:?}", begun.elapsed());
    for pending in first {
        assert!(matches!(pending.wait(SOON).outcome, Outcome::Unconfirmed { .. }));
    }
}

#[test]
fn several_queues_are_published_to_over_one_connection() {
    let queues = [unique_queue("first"), unique_queue("second"), unique_queue("third")];
    let proxy = Proxy::start(shared_broker().address());
    let first = producer(&proxy.url(), &queues[0]).shared();
    let others = queues.clone().map(|name| first.for_queue(&Queue::new(name)));

    thread::scope(|scope| {
        for producer in &others {
            scope.spawn(move || {
                for delay in [0, 1] {
                    let task = Task::new("x").with_delay(Duration::from_millis(delay));
                    producer.publish(task).expect("confirmed");
                }
            });
        }
    });
    proxy.cut();
    others.iter().for_each(|it| drop(it.publish(Task::new("x")).expect("confirmed again")));

    let client = shared_broker().client();
    for queue in &queues {
        client.wait_for_count(queue, 3, SOON);
        client.delete(queue);
        client.delete(&format!("{queue}.retry.100"));
    }
    assert!(proxy.connections() <= 2, "{}", proxy.connections());
}

#[test]
fn a_queue_that_cannot_be_used_fails_its_own_tasks_only() {
    let (queue, other) = (unique_queue("healthy"), unique_queue("differs"));
    shared_broker().client().declare_bounded(&other, 5);
    let shared = producer(shared_broker().url(), &queue).timeout(SOON).shared();
    let differs = shared.for_queue(&Queue::new(&other));
    let missing = shared.for_queue(&Queue::new(unique_queue("missing")).passive());
    let invalid = shared.for_queue(&Queue::new(""));

    for round in 0..2 {
        shared.publish(Task::new("x")).expect("confirmed");
        let error = differs.publish(Task::new("x")).expect_err("not declared so").to_string();
        assert!(error.contains(&other), "{round}: {error}");
        let error = missing.publish(Task::new("x")).expect_err("no such queue").to_string();
        assert!(error.contains("returned: 312"), "{round}: {error}");
        let outcome = outcome_with_its_task(invalid.publish(Task::new("x")));
        assert!(matches!(outcome, Outcome::Refused { .. }), "{outcome}");
    }

    let client = shared_broker().client();
    assert_eq!(client.count(&queue), 2);
    [queue, other].iter().for_each(|it| client.delete(it));
}

#[test]
fn a_caller_that_does_not_wait_for_its_tasks_holds_up_nobody() {
    let queue = unique_queue("slow-caller");
    let shared = producer(shared_broker().url(), &queue).window(1).shared();
    let forgotten: Vec<Pending> = (0..10).map(|_| shared.submit(Task::new("x"))).collect();

    shared.publish(Task::new("of another")).expect("confirmed");

    assert!(forgotten.iter().all(|it| it.wait(SOON).outcome == Outcome::Confirmed));
    shared_broker().client().delete(&queue);
}

#[test]
fn it_says_whether_it_can_publish() {
    let unconnected = producer(&nowhere(), "q").shared();
    wait_for_state(&unconnected, |it| {
        matches!(it, ProducerState::Connecting { next_try: Some(_), .. })
    });
    let (end_of_alarm, alarm) = bounded::<()>(1);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        session.read_publish();
        session.blocked("low on memory");
        let _ = alarm.recv_timeout(SOON);
        session.unblocked();
        session.stay_silent();
    });

    let shared = producer(&broker.url(), "q").shared();
    wait_for_state(&shared, |it| *it == ProducerState::Up);
    let _first = shared.submit(Task::new("x"));
    let blocked = |it: &ProducerState| matches!(it, ProducerState::Blocked { reason, .. } if reason == "low on memory");
    wait_for_state(&shared, blocked);
    end_of_alarm.send(()).expect("the script waits");
    wait_for_state(&shared, |it| *it == ProducerState::Up);
}

#[test]
fn it_connects_again_without_a_task() {
    let queue = unique_queue("idle");
    let proxy = Proxy::start(shared_broker().address());
    let mut before = producer(&proxy.url(), &queue);
    before.connect().expect("a broker");
    let shared = before.shared();

    proxy.set_both(Toxic::Down);
    wait_for_state(&shared, |it| matches!(it, ProducerState::Connecting { .. }));
    proxy.set_both(Toxic::Pass);

    wait_for_state(&shared, |it| *it == ProducerState::Up);
    shared.publish(Task::new("x")).expect("confirmed");
    shared_broker().client().delete(&queue);
}

/// Eight threads publish with a timeout of ten seconds, each twice.
fn publishes_in_time(name: &str, url: &str) {
    let limit = Duration::from_secs(10);
    let shared = producer(url, "q").window(6).timeout(limit).shared();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2 {
                    let begun = Instant::now();
                    let published = shared.publish(Task::new("x"));
                    let took = begun.elapsed();
                    assert!(published.is_err(), "{name}: {published:?}");
                    assert!(took <= limit + limit / 10, "{name}: {took:?}");
                }
            });
        }
    });
}

#[test]
fn in_an_outage_no_call_outlives_its_timeout_by_more_than_a_tenth() {
    let brokers: Vec<_> = (0..8).map(|methods| (methods, silent_after(methods))).collect();
    thread::scope(|scope| {
        scope.spawn(|| publishes_in_time("nobody listens", &nowhere()));
        for (methods, broker) in &brokers {
            let name = format!("silent after {methods} methods");
            scope.spawn(move || publishes_in_time(&name, &broker.url()));
        }
    });
}

#[test]
fn tasks_submitted_before_a_cut_are_confirmed_after_it() {
    let queue = unique_queue("cut");
    let proxy = Proxy::start(shared_broker().address());
    let shared = producer(&proxy.url(), &queue).shared();
    shared.publish(Task::new("connects")).expect("confirmed");

    proxy.set(Direction::ToClient, Toxic::Timeout);
    let pending: Vec<Pending> = (0..100).map(|_| shared.submit(Task::new("x"))).collect();
    proxy.cut();
    proxy.set_both(Toxic::Pass);

    assert!(pending.iter().all(|it| it.wait(SOON).outcome == Outcome::Confirmed));
    shared_broker().client().delete(&queue);
}

/// Ends the threads of a test, also if it fails.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Publishes under ids of its own until `over`. What is not confirmed is published again.
fn publish_until(over: &AtomicBool, thread: usize, producer: &SharedProducer, ledger: &Ledger) {
    for number in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let id = format!("{thread}-{number}");
        ledger.attempted(&id);
        let published = producer.publish(Task::new("x").with_id(&id));
        assert_eq!(published.expect("confirmed after the outage"), id);
        ledger.confirmed(&id);
    }
}

#[test]
fn nothing_is_lost_when_the_broker_is_killed_while_eight_threads_publish() {
    let broker = breakable_broker();
    let queue = unique_queue("killed");
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = Ledger::open(&dir.path().join("ledger"));
    let shared = producer(broker.url(), &queue).timeout(Duration::from_secs(300)).shared();
    let over = AtomicBool::new(false);

    thread::scope(|scope| {
        let end = EndOnDrop(&over);
        for thread in 0..8 {
            let (over, shared, ledger) = (&over, &shared, &ledger);
            scope.spawn(move || publish_until(over, thread, shared, ledger));
        }
        let goes_on = || {
            let before = ledger.records().confirmed.len();
            let more = || (ledger.records().confirmed.len() > before + 100).then_some(());
            poll("tasks are confirmed", SOON, more);
        };
        for _ in 0..2 {
            goes_on();
            broker.kill();
            broker.restart();
        }
        goes_on();
        drop(end);
    });

    let left = broker.client().get_all(&queue);
    let left: Vec<String> = left.into_iter().filter_map(|message| message.message_id).collect();
    broker.client().delete(&queue);
    let verdict = ledger.verdict(&left);
    assert!(verdict.lost.is_empty() && verdict.confirmed.len() > 300, "{verdict}");
    assert_eq!(verdict.confirmed, verdict.attempted);
}
