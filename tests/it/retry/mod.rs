//! Failed tasks: attempts, delays, dead letters, and what a task keeps on its way.

mod attempts;
mod dead_letter_queues;
mod delay_queues;
mod drain;
mod headers;

use std::time::Duration;

use crossbeam_channel::unbounded;
use rabbit_work::{Broker, Delivery, Failure, Producer, Queue, RetryPolicy, Task, Worker};

use crate::support::broker::shared_broker;

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
