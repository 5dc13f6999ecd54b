//! The least that a worker on amiquip can cost: `bare QUEUE THREADS TASKS COMMAND...` looks at
//! nothing of a delivery, runs the command, and acks. What this takes beyond the command alone is
//! not the worker's. Run by `scripts/bench.sh`, beside the worker.

use std::env;
use std::error::Error;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use amiquip::{Channel, Connection, ConsumerMessage, ConsumerOptions, QueueDeclareOptions};

type Result = std::result::Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Result {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [queue, threads, tasks, command @ ..] = &arguments[..] else {
        return Err("bare QUEUE THREADS TASKS COMMAND...".into());
    };
    let left = AtomicU64::new(tasks.parse()?);
    let mut connection = Connection::insecure_open(&env::var("AMQP_URL")?)?;
    let channels = (0..threads.parse()?).map(|_| connection.open_channel(None));
    let channels: Vec<Channel> = channels.collect::<std::result::Result<_, _>>()?;
    thread::scope(|scope| {
        let work_off = |channel| scope.spawn(|| work_off(channel, queue, command, &left));
        let threads: Vec<_> = channels.into_iter().map(work_off).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    Ok(connection.close()?)
}

fn work_off(channel: Channel, queue: &str, command: &[String], left: &AtomicU64) -> Result {
    channel.qos(0, 1, false)?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(queue, durable)?;
    let consumer = queue.consume(ConsumerOptions::default())?;
    let one_less = |left: u64| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
        let ConsumerMessage::Delivery(delivery) = consumer.receiver().recv()? else {
            return Err("the consumer has ended".into());
        };
        if !Command::new(&command[0]).args(&command[1..]).status()?.success() {
            return Err("the command failed".into());
        }
        consumer.ack(delivery)?;
    }
    consumer.cancel()?;
    // Word to a consumer that is gone would end the connection of the others.
    while consumer.receiver().recv().is_ok() {}
    Ok(())
}
