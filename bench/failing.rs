//! How much longer a load takes when tasks fail: the same tasks once without failures, and once
//! with every third failing twice and every hundredth always. Run by `scripts/bench.sh`.

use std::env;
use std::time::{Duration, Instant};

use rabbit_work::{
    Broker, Delivery, Error, Failure, Outcome, Producer, Queue, RetryPolicy, Summary, Task, Worker,
    shutdown,
};

const ATTEMPTS: u32 = 3;

fn main() -> Result<(), Error> {
    let url = env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let count: u64 = env::args().nth(1).and_then(|it| it.parse().ok()).unwrap_or(100_000);

    let (sound, summary) = work_off(&broker, count, |_| Ok(()))?;
    assert_eq!((summary.done, summary.dead), (count, 0));
    let (failing, summary) = work_off(&broker, count, |delivery| {
        let number: u64 = delivery.task().id().unwrap_or_default().parse()?;
        let fails_now = number % 3 == 0 && delivery.attempt() < ATTEMPTS;
        if fails_now || number % 100 == 0 { Err(Failure::retry("as it should")) } else { Ok(()) }
    })?;
    let dead = count.div_ceil(100);
    let retried = (0..count).map(|n| if n % 3 == 0 || n % 100 == 0 { 2 } else { 0 }).sum::<u64>();
    assert_eq!((summary.done, summary.retried, summary.dead), (count - dead, retried, dead));

    println!(
        "{count} tasks: {:.1} s without failures, {:.1} s with {retried} retries and {dead} dead \
         letters: {:.1} times",
        sound.as_secs_f64(),
        failing.as_secs_f64(),
        failing.as_secs_f64() / sound.as_secs_f64()
    );
    Ok(())
}

/// Publishes the tasks, and then works them off with 4 threads and a prefetch of 100; says how
/// long the second took.
fn work_off(
    broker: &Broker,
    count: u64,
    work: impl Fn(&Delivery) -> Result<(), Failure> + Send + Sync + 'static,
) -> Result<(Duration, Summary), Error> {
    let queue = Queue::new(format!("bench.failing.{}", std::process::id()));
    let mut producer = Producer::new(broker, &queue);
    let mut receipts: Vec<_> = Vec::new();
    for number in 0..count {
        receipts.extend(producer.send(Task::new("x").with_id(number.to_string())));
    }
    receipts.extend(producer.flush());
    assert!(receipts.iter().all(|it| it.outcome == Outcome::Confirmed), "all are confirmed");

    let retry = RetryPolicy::new()
        .max_attempts(ATTEMPTS)
        .first_delay(Duration::from_millis(500))
        .factor(1.0);
    let worker = Worker::new(broker, &queue).threads(4).prefetch(100).retry(retry).drain();
    let (_trigger, shutdown) = shutdown();
    let started = Instant::now();
    let summary = worker.run(work, &shutdown)?;
    Ok((started.elapsed(), summary))
}
