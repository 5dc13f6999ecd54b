//! A batch of 50,000 tasks, and a wait until each of them has ended.

use std::thread;

use rabbit_work::{
    Batch, Broker, DeadLetterFilter, DeadLetters, Delivery, Error, Failure, OrFail, Queue, Task,
    Worker, shutdown,
};

const TASKS: u64 = 50_000;

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("example.batch");

    // The workers of a real batch are on other machines, and run on.
    let (trigger, shutdown) = shutdown();
    let worker = Worker::new(&broker, &queue).threads(2).prefetch(200);
    let until = shutdown.clone();
    let working = thread::spawn(move || worker.run(halve, &until));

    let mut batch = Batch::new(&broker, &queue).shutdown(&shutdown);
    batch.connect()?;
    for number in 0..TASKS {
        // Its receipts say which tasks were not confirmed; the summary counts them.
        let _ = batch.send(Task::new(number.to_string()))?;
    }
    let _ = batch.flush();
    let summary = batch.wait(None, &shutdown)?;
    println!("{} done, {} dead, {} left", summary.done, summary.dead, summary.left);

    DeadLetters::new(&broker, &queue).purge(&DeadLetterFilter::all())?;
    trigger.stop();
    working.join().expect("a worker does not panic")?;
    Ok(())
}

fn halve(delivery: &Delivery) -> Result<(), Failure> {
    let number: u64 = std::str::from_utf8(delivery.body()).or_reject()?.parse().or_reject()?;
    // A dead letter is an end, too.
    (number % 1000 != 999).then_some(number / 2).ok_or("an unlucky number").or_reject()?;
    Ok(())
}
