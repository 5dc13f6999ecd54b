//! Acks of several tasks together: one ack covers no task that stays.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rabbit_work::{
    Delivery, Event, EventKind, Failure, Queue, RetryPolicy, Task, Trigger, Worker, shutdown,
};

use crate::support::scripted::{Consumer, ScriptedBroker, Session};
use crate::support::wire::{Call, Delivery as WireDelivery, Properties};
use crate::support::working::Working;

const SOON: Duration = Duration::from_secs(60);

/// How many tasks the broker sends at a time.
const BATCH: u64 = 10;

/// What the broker has sent and not got back.
#[derive(Default)]
struct Held {
    tags: BTreeSet<u64>,
    last: u64,
    /// The task that is not done.
    kept: Option<u64>,
    /// How many acks covered several tasks.
    together: usize,
}

impl Held {
    fn send_batch(&mut self, session: &mut Session, to: &Consumer, kept: Option<u64>) {
        self.kept = kept.map(|place| self.last + place);
        for tag in self.last + 1..=self.last + BATCH {
            let body = if self.kept == Some(tag) { "later" } else { "done" };
            session.deliver(&WireDelivery::new(to.channel, &to.tag, tag).body(body));
            self.tags.insert(tag);
        }
        self.last += BATCH;
    }

    /// Reads acks until all that were sent are settled.
    fn read_acks(&mut self, session: &mut Session) {
        while !self.tags.is_empty() {
            let settled = session.answer_rpcs().expect("an ack or a nack").call;
            match settled {
                Call::Ack { delivery_tag, multiple: false } => self.ack(&[delivery_tag]),
                Call::Ack { delivery_tag, multiple: true } => {
                    let covered: Vec<u64> = self.tags.range(..=delivery_tag).copied().collect();
                    assert!(covered.len() > 1, "one of {delivery_tag} alone is enough");
                    self.together += 1;
                    self.ack(&covered);
                }
                Call::Nack { delivery_tag, .. } => {
                    assert_eq!(self.kept.take(), Some(delivery_tag));
                    self.tags.remove(&delivery_tag);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn ack(&mut self, tags: &[u64]) {
        for tag in tags {
            assert!(self.tags.remove(tag), "{tag} is acked twice");
            assert_ne!(self.kept, Some(*tag), "it is not done");
        }
    }
}

#[test]
fn one_ack_covers_tasks_that_are_done_and_none_that_stays() {
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let mut held = Held::default();
        for place in [1, 3, BATCH] {
            held.send_batch(session, &consumer, Some(place));
            held.read_acks(session);
        }
        // Single ones suffice if the machine is so busy that no two results wait together.
        for _ in 0..100 {
            if held.together > 0 {
                break;
            }
            held.send_batch(session, &consumer, None);
            held.read_acks(session);
        }
        assert!(held.together > 0, "no ack covered several tasks");
        session.report("acked");
        assert_eq!(session.answer_rpcs(), None);
    });
    let handler = |delivery: &Delivery| match delivery.body() {
        b"later" => Err(Failure::requeue("on purpose")),
        _ => Ok(()),
    };
    let url = broker.url().parse().expect("a URL");
    let worker = Worker::new(&url, &Queue::new("q")).threads(1).prefetch(10);
    let working = Working::start(&worker, handler);
    broker.wait("acked", SOON);
    let summary = working.stop(SOON);
    assert_eq!(summary.requeued, 3);
    broker.finish(SOON);
}

/// What an observer that waits in each requeue and each retry tells.
struct Observed {
    started: Receiver<()>,
    held: Receiver<()>,
    /// Each message lets it go on once; dropping it, always.
    open: Sender<()>,
}

fn slow_observer() -> (Observed, impl Fn(&Event) + Send + Sync + 'static) {
    let ((start, started), (hold, held)) = (unbounded(), unbounded());
    let (open, opened) = bounded::<()>(0);
    let observer = move |event: &Event| match event.kind {
        EventKind::Started => drop(start.send(())),
        EventKind::Requeued | EventKind::Retried => {
            let _ = hold.send(());
            let _ = opened.recv();
        }
        _ => {}
    };
    (Observed { started, held, open }, observer)
}

/// The second task fails while the results of the others, which are done, wait behind it.
#[test]
fn a_task_that_is_done_is_acked_before_an_observer_learns_of_one_that_failed() {
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let bodies = ["fails", "waits and fails"].into_iter().chain(["done"; 8]);
        for (tag, body) in (1..).zip(bodies) {
            session.deliver(&WireDelivery::new(consumer.channel, &consumer.tag, tag).body(body));
        }
        // The last may still run.
        let mut unacked = BTreeSet::from_iter(3..BATCH);
        while !unacked.is_empty() {
            let settled = session.answer_rpcs().expect("an ack").call;
            let Call::Ack { delivery_tag, multiple: false } = settled else {
                panic!("{settled:?}");
            };
            unacked.remove(&delivery_tag);
        }
        session.report("acked");
        while session.answer_rpcs().is_some() {}
    });
    let (go_on, waits) = bounded::<()>(1);
    let handler = move |delivery: &Delivery| {
        if delivery.body().starts_with(b"waits") {
            let _ = waits.recv();
        }
        if delivery.body().ends_with(b"fails") { Err(Failure::requeue("no")) } else { Ok(()) }
    };
    let (observed, observer) = slow_observer();
    let url = broker.url().parse().expect("a URL");
    let worker = Worker::new(&url, &Queue::new("q")).threads(1).prefetch(10).observer(observer);
    let (trigger, shutdown) = shutdown();
    let running = thread::spawn(move || worker.run(handler, &shutdown));
    observed.held.recv_timeout(SOON).expect("the first task fails");
    go_on.send(()).expect("the handler waits");
    for _ in 0..BATCH {
        observed.started.recv_timeout(SOON).expect("each task starts");
    }
    observed.open.send_timeout((), SOON).expect("the observer waits");

    broker.wait("acked", SOON);
    drop(observed);
    trigger.stop();
    running.join().expect("it does not panic").expect("it ends well");
    broker.finish(SOON);
}

/// Delivers what has the consumer wait in its observer while the results of two further tasks, whose
/// tags are returned, wait for others: five make a batch, and more tasks are to run.
fn deliver_and_hold(session: &mut Session, to: &Consumer, before: &[&'static str]) -> [u64; 2] {
    let bodies = before.iter().chain(&["requeued", "waits", "done", "waits", "done"]);
    for (tag, body) in (1..).zip(bodies) {
        deliver(session, to, tag, body);
    }
    let waits = before.len() as u64 + 2;
    [waits, waits + 1]
}

fn deliver(session: &mut Session, to: &Consumer, tag: u64, body: &str) {
    let properties = Properties::with_message_id(tag.to_string());
    let delivery = WireDelivery::new(to.channel, &to.tag, tag).properties(properties);
    session.deliver(&delivery.body(body));
}

/// Reads until these are acked, one by one because others stay, and then everything.
fn read_acks_of(session: &mut Session, tags: [u64; 2]) {
    let mut unacked = BTreeSet::from(tags);
    while !unacked.is_empty() {
        let settled = session.answer_rpcs().expect("an ack").call;
        if let Call::Ack { delivery_tag, multiple: false } = settled {
            unacked.remove(&delivery_tag);
        }
    }
    session.report("acked");
    while session.answer_rpcs().is_some() {}
}

/// Runs a worker for [`deliver_and_hold`]. Lets its consumer go on once `meanwhile` is over, to an
/// event in which its observer waits again, and expects the acks before that event.
fn expect_acks_before_event(
    broker: ScriptedBroker,
    before: usize,
    meanwhile: impl FnOnce(&ScriptedBroker, &Trigger),
) {
    let (go_on, waits) = bounded::<()>(1);
    let handler = move |delivery: &Delivery| match delivery.body() {
        b"fails" => Err(Failure::retry("on purpose")),
        b"requeued" => Err(Failure::requeue("on purpose")),
        b"asks for two" => {
            for part in ["first", "second"] {
                delivery.follow_up(&Queue::new("q"), Task::new(part))?;
            }
            Ok(())
        }
        b"waits" => {
            let _ = waits.recv();
            Ok(())
        }
        _ => Ok(()),
    };
    let (observed, observer) = slow_observer();
    let url = broker.url().parse().expect("a URL");
    let policy = RetryPolicy::new().first_delay(Duration::ZERO);
    let worker = Worker::new(&url, &Queue::new("q")).threads(1).prefetch(10).retry(policy);
    let worker = worker.observer(observer);
    let (trigger, shutdown) = shutdown();
    let running = thread::spawn(move || worker.run(handler, &shutdown));
    observed.held.recv_timeout(SOON).expect("the observer waits");
    go_on.send(()).expect("the handler waits");
    for _ in 0..before + 4 {
        observed.started.recv_timeout(SOON).expect("each task starts");
    }
    meanwhile(&broker, &trigger);
    observed.open.send_timeout((), SOON).expect("the observer waits");

    broker.wait("acked", SOON);
    drop((observed, go_on));
    trigger.stop();
    running.join().expect("it does not panic").expect("it ends well");
    broker.finish(SOON);
}

#[test]
fn a_task_that_is_done_is_acked_before_an_observer_learns_of_one_that_is_retried() {
    let (confirm, confirms) = bounded::<()>(1);
    let before = ["fails", "asks for two"];
    let broker = ScriptedBroker::start(move |session, number| {
        session.handshake();
        if number == 0 {
            let consumer = session.accept_consumer();
            let done = deliver_and_hold(session, &consumer, &before);
            return read_acks_of(session, done);
        }
        session.read_publish();
        let channel = session.read_publish().channel;
        let _ = confirms.recv_timeout(SOON);
        session.ack_up_to(channel, 2);
        // Its first follow-up was confirmed together with the failed task, whose result came before.
        session.read_publish();
        session.report("republished");
        session.ack(channel, 3);
        while session.answer_rpcs().is_some() {}
    });
    expect_acks_before_event(broker, before.len(), |broker, _| {
        confirm.send(()).expect("the script waits");
        broker.wait("republished", SOON);
    });
}

#[test]
fn a_task_that_is_done_is_acked_before_an_observer_learns_of_one_that_came_again() {
    let (repeat, repeats) = bounded::<()>(1);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let done = deliver_and_hold(session, &consumer, &[]);
        let _ = repeats.recv_timeout(SOON);
        // The task that runs.
        let again = WireDelivery::new(consumer.channel, &consumer.tag, 6).redelivered();
        session.deliver(&again.properties(Properties::with_message_id("4")).body("waits"));
        session.report("repeated");
        read_acks_of(session, done);
    });
    expect_acks_before_event(broker, 0, |broker, _| {
        repeat.send(()).expect("the script waits");
        broker.wait("repeated", SOON);
    });
}

/// The task that is not started is requeued, and the observer waits in that.
#[test]
fn a_task_that_is_done_is_acked_at_a_stop_before_an_observer_learns_of_what_is_requeued() {
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let done = deliver_and_hold(session, &consumer, &[]);
        read_acks_of(session, done);
    });
    expect_acks_before_event(broker, 0, |_, trigger| trigger.stop());
}

/// A result waits up to 1 ms for others.
#[test]
fn results_do_not_wait_long_for_a_task_that_still_runs() {
    const ROUNDS: u64 = 20;
    const SHORT: Duration = Duration::from_millis(200);
    let (open, opened) = unbounded();
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        let consumer = session.accept_consumer();
        let mut shortest = Duration::MAX;
        for round in 0..ROUNDS {
            let mut held = Held { last: 3 * round, ..Held::default() };
            for body in ["done", "done", "waits"] {
                held.last += 1;
                deliver(session, &consumer, held.last, body);
                held.tags.extend((body == "done").then_some(held.last));
            }
            let delivered = Instant::now();
            held.read_acks(session);
            shortest = shortest.min(delivered.elapsed());
            open.send(()).expect("the handler waits");
            held.tags.insert(held.last);
            held.read_acks(session);
        }
        // A busy machine makes single rounds slow.
        assert!(shortest < SHORT, "{shortest:?}");
        session.report("acked");
        while session.answer_rpcs().is_some() {}
    });
    let handler = move |delivery: &Delivery| {
        if delivery.body() == b"waits" {
            let _ = opened.recv();
        }
        Ok(())
    };
    let url = broker.url().parse().expect("a URL");
    let worker = Worker::new(&url, &Queue::new("q")).threads(1).prefetch(10);
    let working = Working::start(&worker, handler);
    broker.wait("acked", SOON);
    assert_eq!(working.stop(SOON).done, 3 * ROUNDS);
    broker.finish(SOON);
}
