//! A producer and a worker inside one synchronous program: squares numbers with four threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rabbit_work::{
    Broker, Delivery, Error, OrFail, Outcome, Producer, Queue, Task, Worker, shutdown,
};

const NUMBERS: u64 = 100;

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("squares");

    let (_trigger, shutdown) = shutdown();
    let sum = Arc::new(AtomicU64::new(0));
    let add_square = {
        let sum = Arc::clone(&sum);
        move |delivery: &Delivery| {
            // Bad input is a dead letter at once: no other attempt would read it.
            let text = std::str::from_utf8(delivery.body()).or_reject()?;
            let number: u64 = text.parse().or_reject()?;
            sum.fetch_add(number * number, Ordering::Relaxed);
            Ok(())
        }
    };
    let mut producer = Producer::new(&broker, &queue);
    producer.connect()?;

    let worker = Worker::new(&broker, &queue).threads(4).prefetch(10).max_tasks(NUMBERS);
    let working = thread::spawn(move || worker.run(add_square, &shutdown));

    let mut receipts = Vec::new();
    for number in 1..=NUMBERS {
        receipts.extend(producer.send(Task::new(number.to_string())));
    }
    receipts.extend(producer.flush());
    let confirmed = receipts.iter().filter(|it| it.outcome == Outcome::Confirmed).count();
    println!("{confirmed} tasks confirmed");

    let summary = working.join().expect("a worker does not panic")?;
    println!(
        "{} tasks done, the sum of the squares is {}",
        summary.done,
        sum.load(Ordering::Relaxed)
    );
    Ok(())
}
