//! The raw client: what the broker itself can take. It writes frames that were encoded beforehand
//! on one socket, and looks only at the parts of an answer that it needs.

use std::io::Write;
use std::thread;
use std::time::Instant;

use super::wire::{
    DELIVER, Frame, PUBLISHER_ACK, Properties, Wire, ack, confirm_tag, delivery_tag,
    publish as encode,
};
use rabbit_work_bench::Error;
use rabbit_work_bench::job::Job;
use rabbit_work_bench::meter::{Measured, Meter, Schedule};
use rabbit_work_bench::window::Window;

/// Publishes with confirms, at most a window at a time.
pub fn publish(url: &str, job: &Job, properties: Properties) -> Result<Measured, Error> {
    let mut wire = Wire::open(url)?;
    wire.declare(&job.queue)?;
    wire.confirm()?;
    let begun = Instant::now();
    publish_on(&mut wire, job, properties)?;
    let measured = Measured::since(begun);
    wire.close()?;
    Ok(measured)
}

fn publish_on(wire: &mut Wire, job: &Job, properties: Properties) -> Result<(), Error> {
    let one = encode(&job.queue, &vec![b'x'; job.size], properties);
    let many = one.repeat(job.window as usize);
    let mut window = Window::default();
    while window.confirmed() < job.count {
        let room = (job.count - window.sent()).min(job.window - window.waiting());
        wire.write(&many[..one.len() * room as usize])?;
        window.send(room);
        wire.receive()?;
        take_confirms(wire, &mut window);
    }
    Ok(())
}

fn take_confirms(wire: &mut Wire, window: &mut Window) {
    while let Some(frame) = wire.next_frame() {
        if let Frame::Method(PUBLISHER_ACK, arguments) = frame {
            let (tag, multiple) = confirm_tag(arguments);
            window.confirm(tag, multiple);
        }
    }
}

/// Takes tasks and acks each, or several at a time. The acks of what one read has brought leave in
/// one write.
pub fn consume(url: &str, job: &Job) -> Result<Measured, Error> {
    let mut wire = Wire::open(url)?;
    wire.declare(&job.queue)?;
    let meter = Meter::new(job.count);
    wire.consume(&job.queue, job.prefetch)?;
    consume_on(&mut wire, job, &meter, |_| ())?;
    let measured = meter.measured();
    wire.close()?;
    Ok(measured)
}

fn consume_on(
    wire: &mut Wire,
    job: &Job,
    meter: &Meter,
    work: impl Fn(&[u8]),
) -> Result<(), Error> {
    let multiple = u8::from(job.multiple > 1);
    let (mut tag, mut unacked, mut last) = (0, 0, false);
    let mut acks = Vec::new();
    while !last {
        acks.clear();
        while let Some(frame) = wire.next_frame() {
            match frame {
                Frame::Method(DELIVER, arguments) => tag = delivery_tag(arguments),
                Frame::Body(body) => {
                    work(body);
                    if !job.task.is_zero() {
                        thread::sleep(job.task);
                    }
                    last |= meter.task();
                    unacked += 1;
                    if unacked >= job.multiple || last {
                        acks.extend(ack(tag, multiple));
                        unacked = 0;
                    }
                }
                _ => {}
            }
        }
        wire.write(&acks)?;
        if !last {
            wire.receive()?;
        }
    }
    Ok(())
}

/// Publishes on one connection what it consumes on another.
pub fn pass(url: &str, job: &Job) -> Result<Measured, Error> {
    let (mut publishing, mut consuming) = (Wire::open(url)?, Wire::open(url)?);
    publishing.declare(&job.queue)?;
    publishing.confirm()?;
    consuming.consume(&job.queue, job.prefetch)?;
    let meter = Meter::new(job.count);
    let schedule = Schedule::new(job.count, job.rate);
    thread::scope(|scope| {
        let consumer =
            scope.spawn(|| consume_on(&mut consuming, job, &meter, |body| schedule.arrived(body)));
        publish_on_time(&mut publishing, job, &schedule)?;
        consumer.join().map_err(|_| "the consumer panicked")?
    })?;
    consuming.close()?;
    Ok(schedule.measured(&meter))
}

/// A thread of its own reads the confirms, so that a publish leaves when it is due.
fn publish_on_time(wire: &mut Wire, job: &Job, schedule: &Schedule) -> Result<(), Error> {
    if job.rate == 0 {
        let size = job.size.max(8);
        return publish_on(wire, &Job { size, ..job.clone() }, Properties::Persistent);
    }
    let mut writer = wire.writer()?;
    thread::scope(|scope| {
        let confirms = scope.spawn(|| {
            let mut window = Window::default();
            while window.confirmed() < job.count {
                wire.receive()?;
                take_confirms(wire, &mut window);
            }
            Ok::<(), Error>(())
        });
        let mut body = vec![b'x'; job.size.max(8)];
        for number in 0..job.count {
            body[..8].copy_from_slice(&schedule.wait(number));
            writer.write_all(&encode(&job.queue, &body, Properties::Persistent))?;
        }
        confirms.join().map_err(|_| "the reader panicked")?
    })
}

/// Fills a queue with tasks as rabbit-work publishes them.
pub fn fill(url: &str, queue: &str, count: u64, size: usize) -> Result<(), Error> {
    let window = (8 << 20) / (size as u64 + 200);
    let window = window.clamp(1, 1000).to_string();
    let settings = [
        format!("queue={queue}"),
        format!("count={count}"),
        format!("size={size}"),
        format!("window={window}"),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let job = Job::parse("publish", &settings)?;
    publish(url, &job, Properties::AsRabbitWork)?;
    Ok(())
}
