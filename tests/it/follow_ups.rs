//! Follow-ups: published and confirmed before their task is acked, so that no chain of tasks breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rabbit_work::{
    Batch, Broker, Delivery, EventKind, Failure, Inspector, OrFail, Producer, Queue, QueueType,
    RetryPolicy, Router, Task, Worker, shutdown,
};

use crate::child::chain_worker;
use crate::faults::cuts::{Cut, forwarded, since, sweep};
use crate::support::broker::{breakable_broker, poll, shared_broker};
use crate::support::client::{Client, unique_queue};
use crate::support::ledger::Ledger;
use crate::support::proxy::Proxy;
use crate::support::working::Working;

const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(180);

fn broker() -> Broker {
    shared_broker().url().parse().expect("the broker's URL is one")
}

fn publish(queue: &str, id: &str) {
    let task = Task::new(id).with_id(id);
    Producer::new(&broker(), &Queue::new(queue)).publish(task).expect("confirmed");
}

fn worker(queue: &str) -> Worker {
    let policy = RetryPolicy::new().first_delay(Duration::ZERO);
    Worker::new(&broker(), &Queue::new(queue)).threads(1).retry(policy)
}

/// Asks for a follow-up with the body of its task.
fn pass_on(to: Queue) -> impl Fn(&Delivery) -> Result<(), Failure> + Send + Sync + 'static {
    move |delivery: &Delivery| {
        delivery.follow_up(&to, Task::new(delivery.body()))?;
        Ok(())
    }
}

fn texts(client: &Client, queue: &str) -> Vec<String> {
    client.get_all(queue).iter().map(|it| it.text()).collect()
}

#[test]
fn a_done_task_has_its_follow_ups_published_to_other_queues_in_their_order() {
    for prefetch in [1, 20] {
        let (queue, next) = (unique_queue("first"), unique_queue("next"));
        (0..5).for_each(|number| publish(&queue, &number.to_string()));
        let to = Queue::new(&next);
        let twice = move |delivery: &Delivery| {
            for part in ["a", "b"] {
                let body = format!("{}{part}", delivery.task().id().unwrap_or_default());
                delivery.follow_up(&to, Task::new(body))?;
            }
            Ok(())
        };

        let (_trigger, shutdown) = shutdown();
        let worker = worker(&queue).prefetch(prefetch).drain();
        let summary = worker.run(twice, &shutdown).expect("it ends well");

        assert_eq!((summary.done, summary.requeued), (5, 0));
        let client = shared_broker().client();
        let mut found = texts(&client, &next);
        for number in 0..5 {
            let place = |part| found.iter().position(|it| *it == format!("{number}{part}"));
            assert!(place("a") < place("b") && place("a").is_some(), "{found:?}");
        }
        found.dedup();
        assert_eq!((found.len(), client.count(&queue)), (10, 0));
    }
}

#[test]
fn the_queue_of_a_follow_up_is_created_with_its_type_and_its_delay_queue() {
    let (queue, next) = (unique_queue("delaying"), unique_queue("delayed"));
    publish(&queue, "1");
    let to = Queue::new(&next).queue_type(QueueType::Quorum);
    let later = {
        let to = to.clone();
        move |delivery: &Delivery| {
            delivery.follow_up(&to, Task::new("late").with_delay(Duration::from_secs(600)))?;
            delivery.follow_up(&to, Task::new("now"))?;
            Ok(())
        }
    };
    let (_trigger, shutdown) = shutdown();
    let summary = worker(&queue).drain().run(later, &shutdown).expect("it ends well");
    assert_eq!(summary.done, 1);
    let mut inspector = Inspector::new(&broker(), &to);
    poll("both are where they belong", SOON, || {
        let status = inspector.status().expect("a quorum queue, as it was declared");
        let delayed: Vec<_> = status.delayed.iter().filter(|it| it.tasks == 1).collect();
        (status.ready == 1 && delayed.len() == 1 && delayed[0].delay.as_secs() == 600).then_some(())
    });
}

#[test]
fn a_failed_attempt_has_no_follow_ups_however_it_fails() {
    let (queue, next) = (unique_queue("failing"), unique_queue("unwanted"));
    publish(&queue, "1");
    let to = Queue::new(&next);
    let fails_first = move |delivery: &Delivery| {
        delivery.follow_up(&to, Task::new(delivery.attempt().to_string()))?;
        match (delivery.attempt(), delivery.deferrals()) {
            (1, 0) => Err(Failure::defer("not now", Duration::from_millis(100))),
            (1, _) => Err(Failure::retry("no luck")),
            (2, _) => std::panic::resume_unwind(Box::new("no")),
            _ => Ok(()),
        }
    };
    let (_trigger, shutdown) = shutdown();
    let summary = worker(&queue).drain().run(fails_first, &shutdown).expect("it ends well");
    assert_eq!((summary.done, summary.retried, summary.deferred), (1, 2, 1));
    assert_eq!(texts(&shared_broker().client(), &next), ["3"]);
}

#[test]
fn a_follow_up_that_no_queue_takes_sends_its_task_back_uncounted() {
    let (queue, missing) = (unique_queue("sent-back"), unique_queue("missing"));
    publish(&queue, "1");
    let working = Working::start(&worker(&queue), pass_on(Queue::new(&missing).passive()));
    assert_eq!(working.wait_for(EventKind::Requeued, SOON), "1");
    let client = shared_broker().client();
    client.declare(&missing);
    assert_eq!(working.wait_for(EventKind::Done, SOON), "1");
    let summary = working.stop(SOON);
    assert_eq!((summary.done, summary.retried, summary.failed), (1, 0, 0));
    assert!(summary.requeued >= 1);
    assert_eq!(texts(&client, &missing), ["1"]);
    client.delete(&missing);
    client.delete(&queue);
}

#[test]
fn a_queue_of_follow_ups_that_was_deleted_is_declared_again() {
    let (queue, next) = (unique_queue("again"), unique_queue("deleted"));
    publish(&queue, "1");
    let working = Working::start(&worker(&queue), pass_on(Queue::new(&next)));
    working.wait_for(EventKind::Done, SOON);
    let client = shared_broker().client();
    client.delete(&next);
    publish(&queue, "2");
    assert_eq!(working.wait_for(EventKind::Done, SOON), "2");
    assert_eq!(texts(&client, &next), ["2"]);
    working.stop(SOON);
}

#[test]
fn a_worker_with_auto_ack_refuses_follow_ups() {
    let (queue, next) = (unique_queue("auto-ack"), unique_queue("refused"));
    publish(&queue, "1");
    let worker = worker(&queue).auto_ack();
    let (tell, told) = crossbeam_channel::bounded(1);
    let to = Queue::new(&next);
    let working = Working::start(&worker, move |delivery: &Delivery| {
        let refused = delivery.follow_up(&to, Task::new("x")).or_reject();
        let _ = tell.send(refused.clone());
        refused.map(drop)
    });
    let refused = told.recv_timeout(SOON).expect("it ran").expect_err("refused");
    assert!(refused.reason().contains("auto-ack"), "{refused}");
    working.wait_for(EventKind::Failed, SOON);
    assert_eq!(working.stop(SOON).lost, 1);
    assert!(!shared_broker().client().has(&next));
}

#[test]
fn a_task_of_a_batch_is_reported_as_done_after_its_follow_ups_are_confirmed() {
    let (queue, next) = (unique_queue("batch"), unique_queue("batch-next"));
    let router = Router::new().route("pass on", pass_on(Queue::new(&next)));
    let working = Working::start(&worker(&queue), router);
    let mut batch = Batch::new(&broker(), &Queue::new(&queue));
    for number in 0..3 {
        batch.send(Task::new(number.to_string()).with_type("pass on")).expect("sent");
    }
    let (_trigger, shutdown) = shutdown();
    let summary = batch.wait(Some(SOON), &shutdown).expect("all end");
    assert_eq!(summary.done, 3);
    assert_eq!(texts(&shared_broker().client(), &next), ["0", "1", "2"]);
    working.stop(SOON);
}

#[test]
fn a_chain_of_three_follow_ups_cut_anywhere_loses_nothing() {
    let whole = Proxy::start(shared_broker().address());
    let mut client = shared_broker().client();
    let mut before = [0; 2];
    run_chain(&mut client, &whole, |proxy| before = forwarded(proxy));

    let lengths = since(before, &whole);
    sweep(Cut::by_turns(lengths).step_by(CUT_STEP), |client, cut| {
        let proxy = Proxy::start(shared_broker().address());
        run_chain(client, &proxy, |proxy| cut.set(proxy));
    });
}

/// Of the sweep, every so many cuts are made.
const CUT_STEP: usize = 3;

/// Runs a task that leads to another three times, the last one on another queue. The fault may end the
/// connection of the worker, and that of its follow-ups, after both have been used.
fn run_chain(client: &mut Client, proxy: &Proxy, fault: impl FnOnce(&Proxy)) {
    let (queue, end) = (unique_queue("chain"), unique_queue("chain-end"));
    client.declare(&queue);
    client.declare(&end);
    client.publish_id(&queue, "3");
    let broker: Broker = proxy.url().parse().expect("the proxy's URL is one");
    let (own, last) = (Queue::new(&queue), Queue::new(&end));
    let link = move |delivery: &Delivery| {
        let number: u8 = std::str::from_utf8(delivery.body())?.parse()?;
        let next = if number < 3 { &own } else { &last };
        delivery.follow_up(next, Task::new((number + 1).to_string()))?;
        Ok(())
    };
    let worker = Worker::new(&broker, &Queue::new(&queue)).threads(1);
    let working = Working::start(&worker, link);
    working.wait_for(EventKind::Done, SOON);
    assert_eq!(client.get_all(&end).len(), 1);

    fault(proxy);
    proxy.heal_at(3);
    client.publish_id(&queue, "1");
    poll("the end of the chain", LONG, || (client.count(&end) > 0).then_some(()));
    working.stop(SOON);

    let ends = client.get_all(&end);
    let ids: BTreeSet<_> = ends.iter().map(|it| it.message_id.clone()).collect();
    assert_eq!(ids.len(), 1, "a follow-up that is published again has the same id: {ids:?}");
    assert!(ends.iter().all(|it| it.text() == "4"));
    client.delete(&queue);
    client.delete(&end);
}

/// A chain of four steps, each on a queue of its own, run by processes that die.
struct Chain {
    url: String,
    prefix: String,
    ledger: Ledger,
    _dir: tempfile::TempDir,
}

const STEPS: usize = 4;

impl Chain {
    fn start(url: &str, tasks: usize) -> Chain {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = Ledger::open(&dir.path().join("ledger"));
        let prefix = unique_queue("steps");
        let broker: Broker = url.parse().expect("a URL");
        let first = Queue::new(format!("{prefix}.0"));
        let mut producer = Producer::new(&broker, &first);
        for number in 0..tasks {
            for step in 0..STEPS {
                ledger.attempted(&format!("{number}.{step}"));
                ledger.confirmed(&format!("{number}.{step}"));
            }
            producer.publish(Task::new(number.to_string())).expect("confirmed");
        }
        Chain { url: url.into(), prefix, ledger, _dir: dir }
    }

    fn worker(&self) -> crate::support::command::Command {
        chain_worker(&self.url, &self.prefix, self.ledger.path(), STEPS)
    }

    fn finished(&self) -> usize {
        self.ledger.records().finished.len()
    }

    /// Drains what is left, and judges: each step of each task was done, and a step that was done
    /// twice was the same task.
    fn judge(&self) {
        self.worker().env("IT_DRAIN", "1").run(LONG).assert_code(0);
        let verdict = self.ledger.verdict(&[]);
        assert!(verdict.lost.is_empty() && verdict.unexpected.is_empty(), "{verdict}");
        let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for started in self.ledger.records().started.into_keys() {
            let (step, id) = started.split_once('/').expect("a step and an id");
            ids.entry(step.into()).or_default().insert(id.into());
        }
        assert!(ids.values().all(|it| it.len() == 1), "several ids of one follow-up: {ids:?}");
    }
}

#[test]
fn a_chain_whose_worker_dies_at_every_step_loses_nothing() {
    let chain = Chain::start(shared_broker().url(), 8);
    for step in 0..STEPS {
        let output = chain.worker().env("IT_DIES_AT", step.to_string()).run(SOON);
        assert_eq!(output.code, None, "it is killed in step {step}: {output:?}");
    }
    chain.judge();
}

#[test]
fn a_chain_whose_worker_is_killed_at_any_moment_loses_nothing() {
    let chain = Chain::start(shared_broker().url(), 60);
    for round in 1..=6 {
        let running = chain.worker().start();
        let wanted = (chain.finished() + 5 + 3 * round).min(60 * STEPS);
        poll("some steps are done", SOON, || (chain.finished() >= wanted).then_some(()));
        running.kill();
        running.wait(SOON);
    }
    chain.judge();
}

#[test]
fn a_chain_whose_broker_is_killed_loses_nothing() {
    let broker = breakable_broker();
    let chain = Chain::start(broker.url(), 60);
    let running = chain.worker().start();
    for _ in 0..2 {
        let wanted = (chain.finished() + 30).min(60 * STEPS);
        poll("some steps are done", LONG, || (chain.finished() >= wanted).then_some(()));
        broker.kill();
        broker.restart();
    }
    running.signal("INT");
    running.wait(SOON).assert_code(0);
    chain.judge();
}
