//! Bare amiquip: what rabbit-work is built on, with nothing around it.

use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Instant;

use amiquip::{
    AmqpProperties, Auth, Channel, Confirm, Connection, ConnectionOptions, ConnectionTuning,
    Consumer, ConsumerMessage, ConsumerOptions, Exchange, Publish, Queue, QueueDeclareOptions,
};
use url::Url;

use rabbit_work_bench::Error;
use rabbit_work_bench::job::Job;
use rabbit_work_bench::meter::{Measured, Meter, Schedule};
use rabbit_work_bench::window::Window;

#[derive(Clone, Copy, Debug)]
pub enum Socket {
    /// As amiquip opens it, without TCP_NODELAY.
    AsItComes,
    NoDelay,
}

fn open(url: &str, socket: Socket) -> Result<Connection, Error> {
    match socket {
        Socket::AsItComes => Ok(Connection::insecure_open(url)?),
        Socket::NoDelay => {
            let url = Url::parse(url)?;
            let host = url.host_str().ok_or("the URL has no host")?;
            let socket = TcpStream::connect((host, url.port().unwrap_or(5672)))?;
            socket.set_nodelay(true)?;
            let socket = mio::net::TcpStream::from_stream(socket)?;
            let auth = Auth::Plain {
                username: url.username().into(),
                password: url.password().unwrap_or("guest").into(),
            };
            let options = ConnectionOptions::default().auth(auth);
            Ok(Connection::insecure_open_stream(socket, options, ConnectionTuning::default())?)
        }
    }
}

pub fn publish(url: &str, job: &Job, socket: Socket) -> Result<Measured, Error> {
    let mut connection = open(url, socket)?;
    let channel = connection.open_channel(None)?;
    declare(&channel, &job.queue)?;
    channel.enable_publisher_confirms()?;
    let confirms = channel.listen_for_publisher_confirms()?;
    let exchange = Exchange::direct(&channel);
    let body = vec![b'x'; job.size];
    let begun = Instant::now();
    let mut window = Window::default();
    for _ in 0..job.count {
        if window.waiting() == job.window {
            take(confirms.recv()?, &mut window)?;
        }
        while let Ok(confirm) = confirms.try_recv() {
            take(confirm, &mut window)?;
        }
        exchange.publish(Publish::with_properties(&body, &job.queue, persistent()))?;
        window.send(1);
    }
    while window.waiting() > 0 {
        take(confirms.recv()?, &mut window)?;
    }
    let measured = Measured::since(begun);
    channel.close()?;
    connection.close()?;
    Ok(measured)
}

fn persistent() -> AmqpProperties {
    AmqpProperties::default().with_delivery_mode(2)
}

fn declare<'a>(channel: &'a Channel, queue: &str) -> Result<Queue<'a>, Error> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    Ok(channel.queue_declare(queue, durable)?)
}

fn take(confirm: Confirm, window: &mut Window) -> Result<(), Error> {
    match confirm {
        Confirm::Ack(it) => {
            window.confirm(it.delivery_tag, it.multiple);
            Ok(())
        }
        Confirm::Nack(_) => Err("the broker refused a task".into()),
    }
}

/// Looks at nothing of a delivery, and acks it. One channel for each thread.
pub fn consume(url: &str, job: &Job, socket: Socket) -> Result<Measured, Error> {
    let connection = open(url, socket)?;
    let meter = Meter::new(job.count);
    consume_on(connection, job, &meter, &|_| ())?;
    Ok(meter.measured())
}

fn consume_on(
    mut connection: Connection,
    job: &Job,
    meter: &Meter,
    work: &(impl Fn(&[u8]) + Sync),
) -> Result<(), Error> {
    let channels = (0..job.threads).map(|_| connection.open_channel(None));
    let channels: Vec<Channel> = channels.collect::<Result<_, _>>()?;
    let left = std::sync::atomic::AtomicU64::new(job.count);
    thread::scope(|scope| {
        let work_off = |channel| scope.spawn(|| work_off(channel, job, meter, work, &left));
        let threads: Vec<_> = channels.into_iter().map(work_off).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    Ok(connection.close()?)
}

fn work_off(
    channel: Channel,
    job: &Job,
    meter: &Meter,
    work: &impl Fn(&[u8]),
    left: &std::sync::atomic::AtomicU64,
) -> Result<(), Error> {
    use std::sync::atomic::Ordering::Relaxed;
    channel.qos(0, job.prefetch, false)?;
    let queue = declare(&channel, &job.queue)?;
    let consumer = queue.consume(ConsumerOptions::default())?;
    while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
        let ConsumerMessage::Delivery(delivery) = consumer.receiver().recv()? else {
            return Err("the consumer has ended".into());
        };
        work(&delivery.body);
        do_task(job)?;
        meter.task();
        consumer.ack(delivery)?;
    }
    leave(&consumer)?;
    drop(consumer);
    Ok(channel.close()?)
}

/// Word to a consumer that is gone would end the connection of the others.
fn leave(consumer: &Consumer<'_>) -> Result<(), Error> {
    let receiver = consumer.receiver().clone();
    consumer.cancel()?;
    while receiver.recv().is_ok() {}
    Ok(())
}

/// What a task does: nothing, wait, or run a command.
fn do_task(job: &Job) -> Result<(), Error> {
    if !job.task.is_zero() {
        thread::sleep(job.task);
    }
    let [program, arguments @ ..] = &job.command[..] else {
        return Ok(());
    };
    match Command::new(program).args(arguments).status()?.success() {
        true => Ok(()),
        false => Err("the command failed".into()),
    }
}

/// Publishes on one connection what it consumes on another.
pub fn pass(url: &str, job: &Job, socket: Socket) -> Result<Measured, Error> {
    let mut publishing = open(url, socket)?;
    let channel = publishing.open_channel(None)?;
    declare(&channel, &job.queue)?;
    channel.enable_publisher_confirms()?;
    let confirms = channel.listen_for_publisher_confirms()?;
    let consuming = open(url, socket)?;
    let meter = Meter::new(job.count);
    let schedule = Schedule::new(job.count, job.rate);
    let arrived = |body: &[u8]| schedule.arrived(body);
    thread::scope(|scope| {
        let (meter, arrived) = (&meter, &arrived);
        let consumer = scope.spawn(move || consume_on(consuming, job, meter, arrived));
        let exchange = Exchange::direct(&channel);
        let mut body = vec![b'x'; job.size.max(8)];
        let mut window = Window::default();
        for number in 0..job.count {
            if window.waiting() == job.window {
                take(confirms.recv()?, &mut window)?;
            }
            while let Ok(confirm) = confirms.try_recv() {
                take(confirm, &mut window)?;
            }
            body[..8].copy_from_slice(&schedule.wait(number));
            exchange.publish(Publish::with_properties(&body, &job.queue, persistent()))?;
            window.send(1);
        }
        consumer.join().map_err(|_| "the consumer panicked")?
    })?;
    channel.close()?;
    publishing.close()?;
    Ok(schedule.measured(&meter))
}
