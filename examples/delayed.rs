//! A delayed task: no worker gets it before its time.

use std::time::{Duration, Instant};

use rabbit_work::{Broker, Delivery, Error, Producer, Queue, Task, Worker, shutdown};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("example.delayed");

    let mut producer = Producer::new(&broker, &queue);
    // Delays are rounded up to a fixed list (see `RetryPolicy`), each of which is a queue.
    producer.publish(Task::new("in two seconds").with_delay(Duration::from_secs(2)))?;
    producer.publish(Task::new("now"))?;

    let started = Instant::now();
    let print = move |delivery: &Delivery| {
        let body = String::from_utf8_lossy(delivery.body());
        println!("after {:.0} s: {body}", started.elapsed().as_secs_f64());
        Ok(())
    };
    // `drain` waits for delayed tasks before it ends.
    let (_trigger, shutdown) = shutdown();
    Worker::new(&broker, &queue).drain().run(print, &shutdown)?;
    Ok(())
}
