//! amqprs on tokio's threads, which is what its own examples show.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amqprs::callbacks::ChannelCallback;
use amqprs::channel::{
    BasicAckArguments, BasicConsumeArguments, BasicPublishArguments, BasicQosArguments, Channel,
    ConfirmSelectArguments, QueueDeclareArguments,
};
use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::consumer::AsyncConsumer;
use amqprs::{Ack, BasicProperties, Cancel, CloseChannel, Deliver, Nack, Return};
use async_trait::async_trait;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use url::Url;

use rabbit_work_bench::Error;
use rabbit_work_bench::job::{Job, Work};
use rabbit_work_bench::meter::{Measured, Meter, Schedule};
use rabbit_work_bench::window::Window;

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
    let url = Url::parse(url)?;
    let host = url.host_str().ok_or("the URL has no host")?;
    let password = url.password().unwrap_or("guest");
    let port = url.port().unwrap_or(5672);
    let arguments = OpenConnectionArguments::new(host, port, url.username(), password);
    Ok(Connection::open(&arguments).await?)
}

async fn declare(channel: &Channel, job: &Job) -> Result<(), Error> {
    channel.queue_declare(QueueDeclareArguments::durable_client_named(&job.queue)).await?;
    Ok(())
}

async fn publish(url: &str, job: &Job) -> Result<Measured, Error> {
    let connection = open(url).await?;
    let mut publisher = Publisher::open(&connection, job).await?;
    let body = vec![b'x'; job.size];
    let begun = Instant::now();
    for _ in 0..job.count {
        publisher.publish(body.clone()).await?;
    }
    publisher.flush().await?;
    let measured = Measured::since(begun);
    connection.close().await?;
    Ok(measured)
}

struct Publisher<'a> {
    channel: Channel,
    job: &'a Job,
    window: Window,
    confirms: UnboundedReceiver<Option<(u64, bool)>>,
}

impl Publisher<'_> {
    async fn open<'a>(connection: &Connection, job: &'a Job) -> Result<Publisher<'a>, Error> {
        let channel = connection.open_channel(None).await?;
        let (to, confirms) = unbounded_channel();
        channel.register_callback(Confirmed(to)).await?;
        declare(&channel, job).await?;
        channel.confirm_select(ConfirmSelectArguments::default()).await?;
        Ok(Publisher { channel, job, window: Window::default(), confirms })
    }

    async fn publish(&mut self, body: Vec<u8>) -> Result<(), Error> {
        let properties = BasicProperties::default().with_delivery_mode(2).finish();
        let to = BasicPublishArguments::new("", &self.job.queue);
        self.channel.basic_publish(properties, body, to).await?;
        self.window.send(1);
        self.wait_below(self.job.window).await
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.wait_below(1).await
    }

    async fn wait_below(&mut self, limit: u64) -> Result<(), Error> {
        while self.window.waiting() >= limit {
            let confirm = self.confirms.recv().await.ok_or("the channel has ended")?;
            let (tag, multiple) = confirm.ok_or("the broker refused a task")?;
            self.window.confirm(tag, multiple);
        }
        Ok(())
    }
}

struct Confirmed(UnboundedSender<Option<(u64, bool)>>);

#[async_trait]
impl ChannelCallback for Confirmed {
    async fn close(&mut self, _: &Channel, _: CloseChannel) -> Result<(), amqprs::error::Error> {
        _ = self.0.send(None);
        Ok(())
    }

    async fn cancel(&mut self, _: &Channel, _: Cancel) -> Result<(), amqprs::error::Error> {
        Ok(())
    }

    async fn flow(&mut self, _: &Channel, _: bool) -> Result<bool, amqprs::error::Error> {
        Ok(true)
    }

    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        _ = self.0.send(Some((ack.delivery_tag(), ack.mutiple())));
    }

    async fn publish_nack(&mut self, _: &Channel, _: Nack) {
        _ = self.0.send(None);
    }

    async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {
        _ = self.0.send(None);
    }
}

/// As many consumers as threads, each on a channel of its own.
async fn consume(url: &str, job: &Job) -> Result<Measured, Error> {
    let connection = open(url).await?;
    let meter = Arc::new(Meter::new(job.count));
    consume_on(&connection, job, &meter, None).await?;
    let measured = meter.measured();
    connection.close().await?;
    Ok(measured)
}

async fn consume_on(
    connection: &Connection,
    job: &Job,
    meter: &Arc<Meter>,
    schedule: Option<Arc<Schedule>>,
) -> Result<(), Error> {
    let (done, mut last) = unbounded_channel();
    let mut channels = Vec::new();
    for number in 0..job.threads {
        let channel = connection.open_channel(None).await?;
        channel.basic_qos(BasicQosArguments::new(0, job.prefetch, false)).await?;
        declare(&channel, job).await?;
        let (meter, schedule, done) = (Arc::clone(meter), schedule.clone(), done.clone());
        let consumer = Consumer { meter, schedule, done, task: job.task };
        let arguments = BasicConsumeArguments::new(&job.queue, &format!("c{number}"));
        channel.basic_consume(consumer, arguments).await?;
        channels.push(channel);
    }
    last.recv().await.ok_or("the consumers have ended")?;
    for channel in channels {
        channel.close().await?;
    }
    Ok(())
}

struct Consumer {
    meter: Arc<Meter>,
    schedule: Option<Arc<Schedule>>,
    done: UnboundedSender<()>,
    task: Duration,
}

#[async_trait]
impl AsyncConsumer for Consumer {
    async fn consume(&mut self, channel: &Channel, it: Deliver, _: BasicProperties, body: Vec<u8>) {
        if let Some(schedule) = &self.schedule {
            schedule.arrived(&body);
        }
        if !self.task.is_zero() {
            tokio::time::sleep(self.task).await;
        }
        let last = self.meter.task();
        let ack = BasicAckArguments::new(it.delivery_tag(), false);
        channel.basic_ack(ack).await.expect("the connection lives");
        if last {
            _ = self.done.send(());
        }
    }
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
                handle.block_on(publisher.publish(body.clone()))?;
            }
            handle.block_on(publisher.flush())?;
            // It ends where tokio runs.
            Ok::<_, Error>(publisher)
        });
        let consumer = consume_on(&consuming, job, &meter, Some(Arc::clone(&schedule)));
        tokio::task::block_in_place(|| runtime.block_on(consumer))?;
        publishing.join().map_err(|_| "the publisher panicked")?
    })?;
    publisher.channel.close().await?;
    publishing.close().await?;
    consuming.close().await?;
    Ok(schedule.measured(&meter))
}
