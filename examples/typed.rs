//! Tasks of several types: JSON bodies, a handler for each type, and what an error means for a task.

use std::ops::ControlFlow;
use std::time::Duration;

use rabbit_work::{
    Broker, DeadLetterFilter, DeadLetters, Delivery, Error, Failure, OrFail, Producer, Queue,
    RetryPolicy, Router, Task, Worker, shutdown,
};
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
struct Resize {
    photo: String,
    width: String,
}

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("example.typed");

    let mut producer = Producer::new(&broker, &queue);
    for width in ["640", "wide"] {
        let job = Resize { photo: "a.jpg".into(), width: width.into() };
        producer.publish(Task::json(&job)?.with_type("resize"))?;
    }
    producer.publish(Task::json("b.jpg")?.with_type("delete"))?;
    producer.publish(Task::new(r#"{"photo": "c.jpg"}"#).with_type("resize"))?;
    producer.publish(Task::json("d.jpg")?.with_type("rotate"))?; // perhaps a later version can

    let router = Router::new().on("resize", resize).on("delete", |_: &Delivery, photo: String| {
        println!("{photo} is deleted");
        Ok(())
    });
    let policy = RetryPolicy::new().max_attempts(2).first_delay(Duration::from_millis(100));
    let (_trigger, shutdown) = shutdown();
    let worker = Worker::new(&broker, &queue).threads(1).retry(policy).drain();
    println!("{} tasks done", worker.run(router, &shutdown)?.done);

    let letters = DeadLetters::new(&broker, &queue);
    letters.for_each(&DeadLetterFilter::all(), |letter| {
        let record = letter.record();
        println!("dead in attempt {}: {}", record.attempts, record.reason);
        ControlFlow::Continue(())
    })?;
    letters.purge(&DeadLetterFilter::all())?;
    Ok(())
}

fn resize(_: &Delivery, job: Resize) -> Result<(), Failure> {
    // No other attempt would make it a number.
    let width: u32 = job.width.parse().or_reject()?;
    println!("{} becomes {width} wide", job.photo);
    Ok(())
}
