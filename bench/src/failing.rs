//! How long a load takes when tasks fail: `failing COUNT none|some QUEUE`. With `some`, every third
//! task fails twice, and every hundredth always.

use std::env;
use std::time::Duration;

use rabbit_work::{
    Broker, Delivery, Error, Failure, Outcome, Producer, Queue, RetryPolicy, Task, Worker, shutdown,
};

const ATTEMPTS: u32 = 3;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [count, kind, queue] = &arguments[..] else {
        return Err("failing COUNT none|some QUEUE".into());
    };
    let broker: Broker = env::var("AMQP_URL")?.parse()?;
    let (count, some) = (count.parse()?, kind == "some");
    let queue = Queue::new(queue);
    publish(&broker, &queue, count)?;
    work_off(&broker, &queue, count, some)
}

fn publish(broker: &Broker, queue: &Queue, count: u64) -> Result<(), Error> {
    let mut producer = Producer::new(broker, queue);
    producer.connect()?;
    let mut receipts: Vec<_> = Vec::new();
    for number in 0..count {
        receipts.extend(producer.send(Task::new("x").with_id(number.to_string())));
    }
    receipts.extend(producer.flush());
    assert!(receipts.iter().all(|it| it.outcome == Outcome::Confirmed), "all are confirmed");
    Ok(())
}

/// Works the tasks off with 4 threads and a prefetch of 100, and prints how long that took.
fn work_off(broker: &Broker, queue: &Queue, count: u64, some: bool) -> Result<(), AnyError> {
    let fails = move |number: u64, attempt| {
        some && (number.is_multiple_of(100) || number.is_multiple_of(3) && attempt < ATTEMPTS)
    };
    let handler = move |delivery: &Delivery| {
        let number: u64 = delivery.task().id().unwrap_or_default().parse()?;
        match fails(number, delivery.attempt()) {
            true => Err(Failure::retry("as it should")),
            false => Ok(()),
        }
    };
    let retry = RetryPolicy::new()
        .max_attempts(ATTEMPTS)
        .first_delay(Duration::from_millis(500))
        .factor(1.0);
    let worker = Worker::new(broker, queue).threads(4).prefetch(100).retry(retry).drain();
    let (_trigger, shutdown) = shutdown();
    let summary = worker.run(handler, &shutdown)?;
    let failing = |attempt| (0..count).filter(|number| fails(*number, attempt)).count() as u64;
    let (dead, retried) = (failing(ATTEMPTS), failing(1) + failing(2));
    assert_eq!((summary.done, summary.retried, summary.dead), (count - dead, retried, dead));
    println!("seconds={:.3}", summary.elapsed.as_secs_f64());
    Ok(())
}
