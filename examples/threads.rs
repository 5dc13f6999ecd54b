//! Several threads that produce: each has a producer, and so a connection, of its own.

use std::thread;

use rabbit_work::{Broker, Delivery, Error, Outcome, Producer, Queue, Task, Worker, shutdown};

const THREADS: usize = 4;
const TASKS: usize = 250;

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("example.threads");

    let confirmed: usize = thread::scope(|scope| {
        let produce = |thread| {
            let mut producer = Producer::new(&broker, &queue);
            scope.spawn(move || produce(&mut producer, thread))
        };
        let threads: Vec<_> = (1..=THREADS).map(produce).collect();
        threads.into_iter().map(|it| it.join().expect("a producer does not panic")).sum()
    });
    println!("{confirmed} tasks confirmed");

    let (_trigger, shutdown) = shutdown();
    let worker = Worker::new(&broker, &queue).threads(THREADS).prefetch(50).drain();
    let summary = worker.run(|_: &Delivery| Ok(()), &shutdown)?;
    println!("{} tasks done", summary.done);
    Ok(())
}

/// Keeps many tasks in flight, and returns how many the broker has confirmed.
fn produce(producer: &mut Producer, thread: usize) -> usize {
    let mut receipts = Vec::new();
    for number in 1..=TASKS {
        receipts.extend(producer.send(Task::new(format!("task {number} of thread {thread}"))));
    }
    receipts.extend(producer.flush());
    receipts.iter().filter(|it| it.outcome == Outcome::Confirmed).count()
}
