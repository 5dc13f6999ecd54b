//! Hello World, the sending side: puts one task on the queue `hello`.
//!
//! The queue is not durable, as the tutorial for RabbitMQ 3.13 declares it. RabbitMQ from 4.3 on may
//! refuse that, unless `deprecated_features.permit.transient_nonexcl_queues = true` is set; there,
//! leave out `.transient()` at both ends.

use rabbit_work::{Broker, Error, Producer, Queue, Task};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("hello").transient();

    Producer::new(&broker, &queue).publish(Task::new("Hello World!"))?;
    println!(" [x] Sent 'Hello World!'");
    Ok(())
}
