//! The library's batch.

use std::ops::ControlFlow;
use std::time::Duration;

use rabbit_work::{
    Batch, Broker, Delivery, Error, Failure, Queue, RetryPolicy, Task, TaskEnd, Worker, shutdown,
};

use super::SOON;
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::working::Working;

fn broker() -> Broker {
    shared_broker().url().parse().expect("a URL")
}

fn sent(queue: &Queue, count: usize) -> Batch {
    let mut batch = Batch::new(&broker(), queue);
    for n in 1..=count {
        let _ = batch.send(Task::new(n.to_string())).expect("sent");
    }
    batch
}

#[test]
fn a_batch_waits_until_each_task_is_done_or_dead() {
    let queue = Queue::new(unique_queue("library"));
    let policy = RetryPolicy::new().max_attempts(2).first_delay(Duration::from_millis(100));
    let worker = Worker::new(&broker(), &queue).threads(2).retry(policy);
    let working = Working::start(&worker, |delivery: &Delivery| match delivery.body() {
        b"2" => Err(Failure::retry("no")),
        b"3" if delivery.attempt() == 1 => panic!("oh"),
        _ => Ok(()),
    });
    let mut batch = sent(&queue, 5);
    let (_trigger, shutdown) = shutdown();
    let mut seen = Vec::new();

    let summary = batch.wait_each(Some(SOON), &shutdown, |outcomes| {
        seen.extend(outcomes.iter().map(|it| (it.n, it.end, it.attempts)));
        ControlFlow::Continue(())
    });

    let summary = summary.expect("waited");
    assert_eq!([summary.done, summary.dead, summary.left, summary.unconfirmed], [4, 1, 0, 0]);
    seen.sort_by_key(|it| it.0);
    use TaskEnd::{Dead, Done};
    assert_eq!(seen, [(1, Done, 1), (2, Dead, 2), (3, Done, 2), (4, Done, 1), (5, Done, 1)]);
    working.stop(SOON);
}

#[test]
fn a_wait_has_a_limit_ends_at_a_stop_and_goes_on() {
    let queue = Queue::new(unique_queue("limit"));
    let mut batch = sent(&queue, 2);
    let (_trigger, running) = shutdown();
    let late = batch.wait(Some(Duration::from_millis(50)), &running).expect("waited");
    assert_eq!(late.left, 2);
    let (stopping, stopped) = shutdown();
    stopping.stop();
    assert_eq!(batch.wait(None, &stopped).expect("waited").left, 2);

    let working = Working::start(&Worker::new(&broker(), &queue), |_: &Delivery| Ok(()));
    assert_eq!(batch.wait(Some(SOON), &running).expect("waited").done, 2);
    working.stop(SOON);
}

/// The broker keeps what the caller does not take.
#[test]
fn outcomes_that_the_caller_refuses_come_again() {
    let queue = Queue::new(unique_queue("break"));
    let mut batch = sent(&queue, 3);
    let working = Working::start(&Worker::new(&broker(), &queue), |_: &Delivery| Ok(()));
    let (_trigger, shutdown) = shutdown();
    let refused = batch.wait_each(Some(SOON), &shutdown, |_| ControlFlow::Break(()));
    assert_eq!(refused.expect("waited").left, 3);

    let mut seen = 0;
    let taken = batch.wait_each(Some(SOON), &shutdown, |outcomes| {
        seen += outcomes.len();
        ControlFlow::Continue(())
    });

    assert_eq!((taken.expect("waited").left, seen), (0, 3));
    working.stop(SOON);
}

#[test]
fn what_a_batch_cannot_wait_for_is_refused() {
    let mut batch = Batch::new(&broker(), &Queue::new(unique_queue("transient")));
    let refused = batch.send(Task::new("x").transient());
    assert!(matches!(refused, Err(Error::InvalidSetting { .. })), "{refused:?}");
    let mut batch = Batch::new(&broker(), &Queue::new(unique_queue("transient")).transient());
    let refused = batch.send(Task::new("x"));
    assert!(matches!(refused, Err(Error::InvalidSetting { .. })), "{refused:?}");
    assert!(Batch::resume(&broker(), &Queue::new("q"), "x").is_err());
}

/// A worker that acks on delivery cannot keep a task until its outcome is confirmed.
#[test]
fn a_worker_with_auto_ack_reports_nothing() {
    let queue = Queue::new(unique_queue("auto"));
    let mut batch = sent(&queue, 1);
    let worker = Worker::new(&broker(), &queue).auto_ack();
    let working = Working::start(&worker, |_: &Delivery| Ok(()));
    working.wait_for(rabbit_work::EventKind::Done, SOON);
    let (_trigger, shutdown) = shutdown();
    let summary = batch.wait(Some(Duration::from_millis(200)), &shutdown).expect("waited");
    assert_eq!((summary.done, summary.left), (0, 1));
    working.stop(SOON);
}
