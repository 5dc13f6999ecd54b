//! Hello World, the sending side: puts one task on the queue `hello`.

use rabbit_work::{Broker, Error, Producer, Queue, Task};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("hello").transient();

    Producer::new(&broker, &queue).publish(Task::new("Hello World!"))?;
    println!(" [x] Sent 'Hello World!'");
    Ok(())
}
