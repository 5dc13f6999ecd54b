//! The test kit: it agrees with a real worker and a real producer.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{bounded, unbounded};
use rabbit_work::testing::{Recorder, Verdict, delivery, verdict};
use rabbit_work::{
    Broker, Delivery, Event, EventKind, Failure, Inspector, OrFail, Outcome, Producer, Publish,
    Queue, RetryPolicy, Router, Status, StopReason, Summary, Task, Worker, shutdown,
};

use crate::support::broker::{poll, shared_broker};
use crate::support::client::unique_queue;

const SOON: Duration = Duration::from_secs(60);
/// Delays that no task outwaits during the test.
const FIRST_DELAY: Duration = Duration::from_secs(600);
const DEFER_DELAY: Duration = Duration::from_secs(1800);
const ASKED: Duration = Duration::from_secs(70 * 60);
const ROUNDED: Duration = Duration::from_secs(2 * 3600);

fn broker() -> Broker {
    shared_broker().url().parse().expect("the broker's URL is one")
}

fn policy() -> RetryPolicy {
    let policy = RetryPolicy::new().max_attempts(3).first_delay(FIRST_DELAY);
    policy.max_defers(2).defer_delay(DEFER_DELAY)
}

fn handler() -> Arc<Router> {
    let sum = |_: &Delivery, _: (u8, u8)| Ok(());
    Arc::new(Router::new().on("sum", sum).route("work", work))
}

/// Does what the body says. Each reason says what the handler saw of the delivery.
fn work(delivery: &Delivery) -> Result<(), Failure> {
    let (attempt, most) = (delivery.attempt(), delivery.max_attempts());
    let seen = format!("attempt {attempt} of {most}, deferred {} times", delivery.deferrals());
    match std::str::from_utf8(delivery.body()).or_reject()? {
        "be done" => Ok(()),
        "retry" => Err(Failure::retry(seen)),
        "retry after" => Err(Failure::retry_after(seen, ASKED)),
        "reject" => Err(Failure::reject(seen)),
        "panic" => resume_unwind(Box::new(seen)),
        "defer" => Err(Failure::defer(seen, None)),
        "defer for" => Err(Failure::defer(seen, ASKED)),
        "requeue" => Err(Failure::requeue(seen)),
        "stop" => Err(Failure::stop_worker(seen)),
        "wait" => {
            assert!(delivery.wait_cancelled(SOON), "it is cancelled");
            Err(Failure::reject("cancelled"))
        }
        number => {
            number.parse::<u8>()?;
            Ok(())
        }
    }
}

fn to_do(body: &str) -> Task {
    Task::new(body).with_type("work")
}

/// A task that has failed so often.
fn failed(times: u32) -> Task {
    to_do("retry").with_header("x-rabbit-work-attempts", times)
}

fn retried(after: Duration, reason: &str) -> Verdict {
    Verdict::Retried { after, reason: reason.into() }
}

fn deferred(after: Duration, reason: &str) -> Verdict {
    Verdict::Deferred { after, reason: reason.into() }
}

fn dead(reason: &str) -> Verdict {
    Verdict::Dead { reason: reason.into() }
}

/// Each fate of a task, by each way to it.
fn cases() -> Vec<(Task, Verdict)> {
    let first = "attempt 1 of 3, deferred 0 times";
    let deferred_twice = to_do("defer").with_header("x-rabbit-work-deferrals", 2);
    vec![
        (to_do("be done"), Verdict::Done),
        (to_do("7"), Verdict::Done),
        (Task::new("[1, 2]").with_type("sum"), Verdict::Done),
        (to_do("retry"), retried(FIRST_DELAY, first)),
        (failed(1), retried(2 * FIRST_DELAY, "attempt 2 of 3, deferred 0 times")),
        (to_do("retry after"), retried(ROUNDED, first)),
        (to_do("panic"), retried(FIRST_DELAY, &format!("panicked: {first}"))),
        (to_do("seven"), retried(FIRST_DELAY, "invalid digit found in string")),
        (
            Task::new("").with_type("other"),
            retried(
                FIRST_DELAY,
                "this worker does not know the task type 'other', only: sum, work",
            ),
        ),
        (to_do("defer"), deferred(DEFER_DELAY, first)),
        (to_do("defer for"), deferred(ROUNDED, first)),
        (to_do("reject"), dead(first)),
        (failed(2), dead("attempt 3 of 3, deferred 0 times")),
        (
            to_do("retry").with_header("x-rabbit-work-attempts", "many"),
            dead("attempt 3 of 3, deferred 0 times"),
        ),
        (
            deferred_twice,
            dead("deferred 2 times, as often as allowed: attempt 1 of 3, deferred 2 times"),
        ),
        (
            Task::new([0xff]).with_type("work"),
            dead("invalid utf-8 sequence of 1 bytes from index 0"),
        ),
        (
            Task::new("[1,\n2").with_type("sum"),
            dead("the body is not the JSON expected: EOF while parsing a list at line 2 column 1"),
        ),
        (Task::new(""), dead("the task has no type")),
        (to_do("requeue"), Verdict::Requeued { reason: Some(first.into()) }),
        (to_do("wait"), Verdict::Requeued { reason: None }),
        (to_do("stop"), Verdict::WorkerStopped { reason: first.into() }),
    ]
}

#[test]
fn verdicts_of_the_test_kit_agree_with_a_real_worker_for_every_fate() {
    let (trigger, cancelled) = shutdown();
    trigger.abort();
    for (task, expected) in cases() {
        let name = format!("{:?} {:?}", task.type_name(), String::from_utf8_lossy(task.body()));
        let given = delivery(task.clone());
        let given = if task.body() == b"wait" { given.shutdown(&cancelled) } else { given };
        assert_eq!(verdict(&*handler(), given, &policy()), expected, "by the test kit: {name}");
        assert_eq!(real_verdict(task, policy()), expected, "by a worker: {name}");
    }
}

#[test]
fn a_retry_without_a_delay_is_one_for_the_kit_and_for_a_worker() {
    let at_once = policy().first_delay(Duration::ZERO);
    let expected = retried(Duration::ZERO, "attempt 1 of 3, deferred 0 times");
    assert_eq!(verdict(&*handler(), to_do("retry"), &at_once), expected);
    assert_eq!(real_verdict(to_do("retry"), at_once), expected);
}

#[test]
fn a_delivery_of_the_kit_has_the_verdict_of_a_task_that_failed_so_often() {
    for attempt in 1..=4 {
        let by_header = verdict(&work, failed(attempt - 1), &policy());
        let by_number = verdict(&work, delivery(to_do("retry")).attempt(attempt), &policy());
        assert_eq!(by_header, by_number);
    }
}

/// What a worker did with the task, by its observer, its summary and the queues.
fn real_verdict(task: Task, policy: RetryPolicy) -> Verdict {
    let queue = unique_queue("verdict");
    Producer::new(&broker(), &Queue::new(&queue)).publish(task.clone()).expect("confirmed");
    let is_to_wait = task.body() == b"wait";
    let (Event { kind, reason, .. }, summary) = run_once(&queue, policy, is_to_wait);
    let status = settled(&queue, u64::from(kind != EventKind::Done));
    let text = reason.clone().unwrap_or_default();
    match kind {
        EventKind::Done => Verdict::Done,
        EventKind::Retried => retried(delay_of(&status), &text),
        EventKind::Deferred => deferred(delay_of(&status), &text),
        EventKind::Dead if status.dead == 1 => dead(&text),
        EventKind::Requeued if status.ready != 1 => panic!("not in its queue: {status:?}"),
        EventKind::Requeued if summary.ended == StopReason::HandlerStopped => {
            Verdict::WorkerStopped { reason: text }
        }
        EventKind::Requeued => Verdict::Requeued { reason },
        other => panic!("{other}: {status:?}"),
    }
}

/// Runs a worker until the fate of its first task is known.
fn run_once(queue: &str, policy: RetryPolicy, is_to_wait: bool) -> (Event, Summary) {
    let (tell, events) = unbounded();
    let (trigger, shutdown) = shutdown();
    let observer = move |event: &Event| match event.kind {
        EventKind::Started if is_to_wait => trigger.abort(),
        EventKind::Started | EventKind::Connected => {}
        _ => {
            let _ = tell.send(event.clone());
            trigger.stop();
        }
    };
    let worker = Worker::new(&broker(), &Queue::new(queue)).threads(1).retry(policy);
    let worker = worker.max_tasks(1).observer(observer);
    let (end, ended) = bounded(1);
    thread::spawn(move || end.send(worker.run(handler(), &shutdown)));
    let summary = ended.recv_timeout(SOON).expect("it ends in time").expect("it ends well");
    (events.try_recv().expect("an event"), summary)
}

/// What the queues hold once the broker counts so many tasks in all of them.
fn settled(queue: &str, tasks: u64) -> Status {
    let mut inspector = Inspector::new(&broker(), &Queue::new(queue));
    poll("the task is where it belongs", SOON, || {
        let status = inspector.status().expect("a status");
        (status.ready + status.delayed_tasks() + status.dead == tasks).then_some(status)
    })
}

/// The delay of the only task; zero if it is in its queue.
fn delay_of(status: &Status) -> Duration {
    let delayed = status.delayed.iter().find(|it| it.tasks == 1);
    assert_eq!(delayed.is_none(), status.ready == 1, "{status:?}");
    delayed.map_or(Duration::ZERO, |it| it.delay)
}

#[test]
fn a_program_publishes_alike_with_a_producer_and_a_recorder() {
    let queue = unique_queue("recorded");
    let mut producer = Producer::new(&broker(), &Queue::new(&queue));
    let recorder = Recorder::new();
    let publishers: [&mut dyn Publish; 2] = [&mut producer, &mut recorder.clone()];
    for publisher in publishers {
        let id = publisher.publish(to_do("1").with_id("one")).expect("confirmed");
        assert_eq!(id, "one");
        let too_long = to_do("2").with_id("i".repeat(256));
        assert!(publisher.publish(too_long.clone()).is_err());
        let receipts = publisher.publish_all(vec![to_do("3"), too_long, to_do("4")]);
        let confirmed = receipts.iter().filter(|it| it.outcome == Outcome::Confirmed);
        assert_eq!((receipts.len(), confirmed.count()), (3, 2));
    }
    let bodies: Vec<_> = recorder.tasks().iter().map(|it| it.body().to_vec()).collect();
    assert_eq!(bodies, [b"1", b"3", b"4"]);
    assert_eq!(settled(&queue, 3).ready, 3);
}
