//! Dead letters: reads the tasks that failed for good, and replays those that can work now.

use std::ops::ControlFlow;

use rabbit_work::{
    Broker, DeadLetterFilter, DeadLetters, Delivery, Error, Failure, Producer, Queue, RetryPolicy,
    Summary, Task, Worker, shutdown,
};

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("example.dead_letters");

    let mut producer = Producer::new(&broker, &queue);
    producer.publish(Task::new("order 17"))?;
    producer.publish(Task::new("nonsense"))?;
    let failed = drain(&broker, &queue, |delivery| match delivery.body() {
        b"nonsense" => Err(Failure::reject("this is no order")),
        _ => Err(Failure::retry("the database is down")),
    })?;
    println!("{} tasks are dead letters", failed.dead);

    let letters = DeadLetters::new(&broker, &queue);
    letters.for_each(&DeadLetterFilter::all(), |letter| {
        let body = String::from_utf8_lossy(letter.task().body());
        println!("{body}: {}", letter.record().reason);
        ControlFlow::Continue(())
    })?;

    // The database is up again: only the tasks that failed because of it go back to the queue.
    let replay = letters.replay(&DeadLetterFilter::all().reason("database"))?;
    println!("{} replayed", replay.replayed);
    let worked = drain(&broker, &queue, |_| Ok(()))?;
    println!("{} done", worked.done);

    letters.purge(&DeadLetterFilter::all())?;
    Ok(())
}

fn drain(
    broker: &Broker,
    queue: &Queue,
    work: impl Fn(&Delivery) -> Result<(), Failure> + Send + Sync + 'static,
) -> Result<Summary, Error> {
    let once = RetryPolicy::new().max_attempts(1);
    let (_trigger, shutdown) = shutdown();
    Worker::new(broker, queue).threads(1).retry(once).drain().run(work, &shutdown)
}
