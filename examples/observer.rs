//! An observer: learns what happened to each task, here for the counters of a metrics page.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rabbit_work::{
    Broker, Delivery, Error, Event, EventKind, Failure, Producer, Queue, RetryPolicy, Task, Worker,
    shutdown,
};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("example.observer");

    let mut producer = Producer::new(&broker, &queue);
    for number in 1..=10 {
        producer.publish(Task::new(number.to_string()))?;
    }

    let counts: Arc<Mutex<BTreeMap<&str, u32>>> = Arc::default();
    let count = {
        let counts = Arc::clone(&counts);
        // The worker waits for its observer, so an observer must be quick.
        move |event: &Event| {
            if event.kind.is_of_session() {
                return; // a connection to the broker was made or lost
            }
            *counts.lock().expect("no observer panics").entry(event.kind.name()).or_default() += 1;
            if event.kind == EventKind::Retried {
                let reason = event.reason.as_deref().unwrap_or_default();
                println!("a task failed after {:?}: {reason}", event.elapsed);
            }
        }
    };
    let policy = RetryPolicy::new().first_delay(Duration::from_millis(200));
    let (_trigger, shutdown) = shutdown();
    let worker = Worker::new(&broker, &queue).threads(2).retry(policy).observer(count).drain();
    worker.run(fail_once, &shutdown)?;

    for (kind, count) in &*counts.lock().expect("no observer panics") {
        println!("tasks_{kind}_total {count}");
    }
    Ok(())
}

fn fail_once(delivery: &Delivery) -> Result<(), Failure> {
    if delivery.body() == b"7" && delivery.attempt() == 1 {
        return Err(Failure::retry("7 fails once"));
    }
    Ok(())
}
