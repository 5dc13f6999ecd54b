//! lapin on tokio's threads, which is what its own examples show.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, PublisherConfirm,
};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use rabbit_work_bench::Error;
use rabbit_work_bench::job::{Job, Work};
use rabbit_work_bench::meter::{Measured, Meter, Schedule};

pub fn measure(url: &str, job: &Job) -> Result<Measured, Error> {
    let runtime = Runtime::new()?;
    match job.work {
        Work::Publish => runtime.block_on(publish(url, job)),
        Work::Consume => runtime.block_on(consume(url, job)),
        Work::Pass => runtime.block_on(pass(url, job)),
        Work::Share | Work::Outcomes => Err("this is for rabbit-work alone".into()),
    }
}

async fn open(url: &str) -> Result<Connection, Error> {
    Ok(Connection::connect(url, ConnectionProperties::default()).await?)
}

async fn declare(channel: &Channel, job: &Job) -> Result<(), Error> {
    let options = QueueDeclareOptions::durable();
    channel.queue_declare(job.queue.as_str().into(), options, FieldTable::default()).await?;
    Ok(())
}

async fn publish(url: &str, job: &Job) -> Result<Measured, Error> {
    let connection = open(url).await?;
    let mut publisher = Publisher::open(&connection, job).await?;
    let body = vec![b'x'; job.size];
    let begun = Instant::now();
    for _ in 0..job.count {
        publisher.publish(&body).await?;
    }
    publisher.flush().await?;
    let measured = Measured::since(begun);
    connection.close(200, "".into()).await?;
    Ok(measured)
}

struct Publisher<'a> {
    channel: Channel,
    job: &'a Job,
    waiting: VecDeque<PublisherConfirm>,
}

impl Publisher<'_> {
    async fn open<'a>(connection: &Connection, job: &'a Job) -> Result<Publisher<'a>, Error> {
        let channel = connection.create_channel().await?;
        declare(&channel, job).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Publisher { channel, job, waiting: VecDeque::new() })
    }

    async fn publish(&mut self, body: &[u8]) -> Result<(), Error> {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let (to, options) = (self.job.queue.as_str(), BasicPublishOptions::default());
        let confirm =
            self.channel.basic_publish("".into(), to.into(), options, body, properties).await?;
        self.waiting.push_back(confirm);
        if self.waiting.len() as u64 >= self.job.window {
            self.confirm_oldest().await?;
        }
        Ok(())
    }

    async fn confirm_oldest(&mut self) -> Result<(), Error> {
        let Some(confirm) = self.waiting.pop_front() else {
            return Ok(());
        };
        match confirm.await?.is_ack() {
            true => Ok(()),
            false => Err("the broker refused a task".into()),
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        while !self.waiting.is_empty() {
            self.confirm_oldest().await?;
        }
        Ok(())
    }
}

/// As many consumers as threads, each on a channel and in a task of tokio's of its own.
async fn consume(url: &str, job: &Job) -> Result<Measured, Error> {
    let connection = open(url).await?;
    let meter = Arc::new(Meter::new(job.count));
    consume_on(&connection, job, &meter, None).await?;
    let measured = meter.measured();
    connection.close(200, "".into()).await?;
    Ok(measured)
}

async fn consume_on(
    connection: &Connection,
    job: &Job,
    meter: &Arc<Meter>,
    schedule: Option<Arc<Schedule>>,
) -> Result<(), Error> {
    let (done, mut last) = unbounded_channel();
    let mut consumers = Vec::new();
    for _ in 0..job.threads {
        let channel = connection.create_channel().await?;
        channel.basic_qos(job.prefetch, BasicQosOptions::default()).await?;
        declare(&channel, job).await?;
        let (queue, options) = (job.queue.as_str(), BasicConsumeOptions::default());
        let consumer =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
        consumers.push(channel);
        let (meter, schedule) = (Arc::clone(meter), schedule.clone());
        tokio::spawn(work(consumer, job.task, meter, schedule, done.clone()));
    }
    last.recv().await.ok_or("the consumers have ended")?;
    for channel in consumers {
        channel.close(200, "".into()).await?;
    }
    Ok(())
}

/// Takes, does and acks one task after the other. Sends a message after the last task of the job.
async fn work(
    mut consumer: Consumer,
    task: Duration,
    meter: Arc<Meter>,
    schedule: Option<Arc<Schedule>>,
    done: UnboundedSender<()>,
) -> lapin::Result<()> {
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        if let Some(schedule) = &schedule {
            schedule.arrived(&delivery.data);
        }
        if !task.is_zero() {
            tokio::time::sleep(task).await;
        }
        let last = meter.task();
        delivery.ack(BasicAckOptions::default()).await?;
        if last {
            _ = done.send(());
        }
    }
    Ok(())
}

/// Publishes on one connection what it consumes on another. A thread outside of tokio keeps the
/// schedule, because tokio's clock ticks once a millisecond.
async fn pass(url: &str, job: &Job) -> Result<Measured, Error> {
    let (publishing, consuming) = (open(url).await?, open(url).await?);
    let mut publisher = Publisher::open(&publishing, job).await?;
    let meter = Arc::new(Meter::new(job.count));
    let schedule = Arc::new(Schedule::new(job.count, job.rate));
    let runtime = Handle::current();
    let publisher = std::thread::scope(|scope| {
        let (timer, handle) = (Arc::clone(&schedule), runtime.clone());
        let publishing = scope.spawn(move || {
            let mut body = vec![b'x'; job.size.max(8)];
            for number in 0..job.count {
                body[..8].copy_from_slice(&timer.wait(number));
                handle.block_on(publisher.publish(&body))?;
            }
            handle.block_on(publisher.flush())?;
            // It ends where tokio runs.
            Ok::<_, Error>(publisher)
        });
        let consumer = consume_on(&consuming, job, &meter, Some(Arc::clone(&schedule)));
        tokio::task::block_in_place(|| runtime.block_on(consumer))?;
        publishing.join().map_err(|_| "the publisher panicked")?
    })?;
    publisher.channel.close(200, "".into()).await?;
    publishing.close(200, "".into()).await?;
    consuming.close(200, "".into()).await?;
    Ok(schedule.measured(&meter))
}
