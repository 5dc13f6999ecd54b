//! Drains of several queues, which end together.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use rabbit_work::{
    Broker, Delivery, Error, Failure, Producer, Queue, StopReason, Task, Worker, Workers, shutdown,
};

use super::{queues, summary, worker};
use crate::support::broker::shared_broker;

/// For tasks that go round.
const LATER: Duration = Duration::from_secs(120);

/// How long a task runs before it publishes the next: longer than a drain of one queue takes.
const LONG: Duration = Duration::from_secs(4);

fn broker() -> Broker {
    shared_broker().url().parse().expect("a URL")
}

/// Three queues in a circle: a task of each publishes to the next, so that two of them are empty at
/// any time, up to the last of the tasks.
#[test]
fn a_drain_ends_when_all_queues_are_empty_at_one_moment() {
    let names: [String; 3] = queues("circle");
    let broker = broker();
    let (_trigger, shutdown) = shutdown();
    let mut workers = Workers::new();
    for (number, name) in names.iter().enumerate() {
        let next = Queue::new(&names[(number + 1) % names.len()]);
        let producer = Mutex::new(Producer::new(&broker, &next));
        let pass_on = move |delivery: &Delivery| -> Result<(), Failure> {
            let left: u32 = std::str::from_utf8(delivery.body())?.parse()?;
            thread::sleep(LONG);
            if left > 0 {
                let mut producer = producer.lock().expect("no panic");
                producer.publish(Task::new((left - 1).to_string()))?;
            }
            Ok(())
        };
        workers = workers.add(Worker::new(&broker, &Queue::new(name)).threads(1).drain(), pass_on);
    }
    Producer::new(&broker, &Queue::new(&names[0])).publish(Task::new("4")).expect("confirmed");

    let summary = workers.run(&shutdown).expect("it begins");

    assert_eq!((summary.total().done, summary.total().ended), (5, StopReason::Drained));
    let done: Vec<u64> = summary.by_queue.iter().map(|it| it.summary.done).collect();
    assert_eq!(done, [2, 2, 1]);
    assert!(summary.by_queue.iter().all(|it| it.error.is_none()));
    let client = shared_broker().client();
    assert!(names.iter().all(|name| client.count(name) == 0));
}

/// Also if its task waits for a retry meanwhile.
#[test]
fn a_drain_of_several_queues_waits_for_the_retries_of_each() {
    let [empty, failing] = queues("retried");
    super::publish(&failing, &["1"]);

    let options = ["--drain", "--retry-delay", "5s", "--json", "--", "sh", "-c"];
    let command = "test $TASK_ATTEMPT = 2";
    let output = worker(&[&empty, &failing], &[&options[..], &[command]].concat()).run(LATER);

    output.assert_code(0);
    let summary = summary(&output);
    assert_eq!((&summary["done"], &summary["retried"]), (&1.into(), &1.into()));
    assert!(summary["by_queue"][&empty]["seconds"].as_f64() > Some(5.0), "{summary}");
}

#[test]
fn a_worker_whose_handler_stops_it_holds_up_no_other() {
    let [unfit, fit] = queues("unfit");
    super::publish(&unfit, &["1"]);
    super::publish(&fit, &["2"]);
    let broker = broker();
    let worker = |name: &str| Worker::new(&broker, &Queue::new(name)).threads(1).drain();
    let (_trigger, shutdown) = shutdown();

    let summary = Workers::new()
        .add(worker(&unfit), |_: &Delivery| Err(Failure::stop_worker("no printer")))
        .add(worker(&fit), |_: &Delivery| Ok(()))
        .run(&shutdown)
        .expect("it begins");

    let ended: Vec<StopReason> = summary.by_queue.iter().map(|it| it.summary.ended).collect();
    assert_eq!(ended, [StopReason::HandlerStopped, StopReason::Drained]);
    assert_eq!(summary.total().ended, StopReason::HandlerStopped);
    assert_eq!(summary.by_queue[1].summary.done, 1);
    assert_eq!(shared_broker().client().count(&unfit), 1);
}

#[test]
fn workers_without_a_worker_or_with_two_limits_are_refused() {
    let (_trigger, shutdown) = shutdown();
    let refused = |workers: Workers| match workers.run(&shutdown) {
        Err(Error::InvalidSetting { setting, .. }) => setting,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(Workers::new()), "workers");
    let worker = || Worker::new(&broker(), &Queue::new("never"));
    let nothing = |_: &Delivery| Ok(());
    let limited = Workers::new().add(worker().max_tasks(1), nothing).max_dead(1);
    assert_eq!(refused(limited), "max tasks");
    assert_eq!(refused(Workers::new().add(worker(), nothing).max_tasks(0)), "max tasks");
    assert_eq!(refused(Workers::new().add(worker().threads(0), nothing)), "threads");
}
