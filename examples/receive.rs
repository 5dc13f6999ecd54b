//! Hello World, the receiving side: prints what comes in on the queue `hello` until Ctrl-C.
//!
//! The queue is not durable, as the tutorial for RabbitMQ 3.13 declares it. RabbitMQ from 4.3 on may
//! refuse that, unless `deprecated_features.permit.transient_nonexcl_queues = true` is set; there,
//! leave out `.transient()` at both ends.

use rabbit_work::{Broker, Delivery, Error, Queue, Worker, shutdown_on_signals};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("hello").transient();

    let (_, shutdown) = shutdown_on_signals()?;
    println!(" [*] Waiting for messages. To exit press CTRL+C");
    let print = |delivery: &Delivery| {
        println!(" [x] Received '{}'", String::from_utf8_lossy(delivery.body()));
        Ok(())
    };
    // With `no_reconnect`, a broker that is not there is an error at once.
    Worker::new(&broker, &queue).threads(1).no_reconnect().run(print, &shutdown)?;
    Ok(())
}
