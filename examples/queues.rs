//! Several queues in one program: a task of one queue leads to a task of the other, and both are
//! drained together.

use rabbit_work::{Broker, Delivery, Error, Producer, Queue, Task, Worker, Workers, shutdown};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let (orders, mail) = (Queue::new("example.orders"), Queue::new("example.mail"));

    let mut producer = Producer::new(&broker, &orders);
    for number in 1..=3 {
        producer.publish(Task::new(format!("order {number}")))?;
    }

    let to_mail = mail.clone();
    let ship = move |delivery: &Delivery| {
        let order = std::str::from_utf8(delivery.body())?;
        println!("shipped {order}");
        // The order is acked after the broker has confirmed this: no order is without its mail.
        delivery.follow_up(&to_mail, Task::new(format!("{order} is on its way")))?;
        Ok(())
    };
    let send = |delivery: &Delivery| {
        println!("sent {}", std::str::from_utf8(delivery.body())?);
        Ok(())
    };

    let (_trigger, shutdown) = shutdown();
    let summary = Workers::new()
        .add(Worker::new(&broker, &orders).threads(2).drain(), ship)
        .add(Worker::new(&broker, &mail).threads(1).drain(), send)
        .run(&shutdown)?;
    for queue in &summary.by_queue {
        println!("{}: {} done", queue.queue, queue.summary.done);
    }
    println!("{} done", summary.total().done);
    Ok(())
}
