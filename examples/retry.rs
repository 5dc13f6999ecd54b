//! Retries: by the policy of the worker, and with a delay that the handler chooses.

use std::time::Duration;

use rabbit_work::{
    Broker, Delivery, Error, Failure, Producer, Queue, RetryPolicy, Task, Worker, shutdown,
};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("example.retry");

    let mut producer = Producer::new(&broker, &queue);
    for body in ["flaky", "busy", "broken"] {
        producer.publish(Task::new(body))?;
    }

    // Three attempts: the second after 200 ms, the third after another 500 ms.
    let policy =
        RetryPolicy::new().max_attempts(3).first_delay(Duration::from_millis(200)).factor(2.0);
    let (_trigger, shutdown) = shutdown();
    let worker = Worker::new(&broker, &queue).threads(1).retry(policy).drain();
    let summary = worker.run(work, &shutdown)?;
    println!("{} done, {} retried, {} dead", summary.done, summary.retried, summary.dead);
    Ok(())
}

fn work(delivery: &Delivery) -> Result<(), Failure> {
    let body = String::from_utf8_lossy(delivery.body());
    println!("{body}: attempt {} of {}", delivery.attempt(), delivery.max_attempts());
    match &*body {
        // Waits as long as the policy says.
        "flaky" if delivery.attempt() < 3 => Err(Failure::retry("the network is down")),
        // Waits as long as the handler says, for example as long as a server asks in `Retry-After`.
        "busy" if delivery.attempt() < 2 => {
            Err(Failure::retry_after("the server is busy", Duration::from_secs(1)))
        }
        // Becomes a dead letter now: another attempt would not help.
        "broken" => Err(Failure::reject("the order has no number")),
        _ => Ok(()),
    }
}
