//! This crate's library, as a program would use it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rabbit_work::{
    Batch, Broker, Delivery, Outcome, Producer, Queue, Receipt, Task, Worker, shutdown,
};

use rabbit_work_bench::Error;
use rabbit_work_bench::job::Job;
use rabbit_work_bench::meter::{Measured, Meter, Schedule};

pub fn publish(url: &str, job: &Job) -> Result<Measured, Error> {
    let broker: Broker = url.parse()?;
    let queue = Queue::new(&job.queue);
    let mut producer = Producer::new(&broker, &queue).window(job.window as usize);
    producer.connect()?;
    let body = vec![b'x'; job.size];
    let begun = Instant::now();
    if job.window == 1 {
        for _ in 0..job.count {
            producer.publish(Task::new(body.clone()))?;
        }
        return Ok(Measured::since(begun));
    }
    let mut confirmed = 0;
    for _ in 0..job.count {
        confirmed += count_confirmed(&producer.send(Task::new(body.clone())));
    }
    confirmed += count_confirmed(&producer.flush());
    let measured = Measured::since(begun);
    if confirmed != job.count {
        return Err(format!("{confirmed} of {} tasks were confirmed", job.count).into());
    }
    Ok(measured)
}

fn count_confirmed(receipts: &[Receipt]) -> u64 {
    receipts.iter().filter(|it| it.outcome == Outcome::Confirmed).count() as u64
}

pub fn consume(url: &str, job: &Job) -> Result<Measured, Error> {
    let meter = Arc::new(Meter::new(job.count));
    work_off(url, job, &meter, |_| ())?;
    Ok(meter.measured())
}

fn work_off(
    url: &str,
    job: &Job,
    meter: &Arc<Meter>,
    work: impl Fn(&[u8]) + Send + Sync + 'static,
) -> Result<(), Error> {
    let broker: Broker = url.parse()?;
    let queue = Queue::new(&job.queue);
    let worker = Worker::new(&broker, &queue).threads(job.threads).prefetch(job.prefetch);
    let (trigger, shutdown) = shutdown();
    let (meter, task) = (Arc::clone(meter), job.task);
    let handler = move |delivery: &Delivery| {
        work(delivery.body());
        if !task.is_zero() {
            thread::sleep(task);
        }
        if meter.task() {
            trigger.stop();
        }
        Ok(())
    };
    let summary = worker.run(handler, &shutdown)?;
    // A few more if the queue had more: the last task asks for a stop, and does not wait for it.
    if summary.done < job.count {
        return Err(format!("{} of {} tasks were done", summary.done, job.count).into());
    }
    Ok(())
}

/// Publishes on one connection what it consumes on another.
pub fn pass(url: &str, job: &Job) -> Result<Measured, Error> {
    let broker: Broker = url.parse()?;
    let queue = Queue::new(&job.queue);
    let mut producer = Producer::new(&broker, &queue).window(job.window as usize);
    producer.connect()?;
    let meter = Arc::new(Meter::new(job.count));
    let schedule = Arc::new(Schedule::new(job.count, job.rate));
    thread::scope(|scope| {
        let arrivals = Arc::clone(&schedule);
        let consumer =
            scope.spawn(|| work_off(url, job, &meter, move |body| arrivals.arrived(body)));
        let mut body = vec![b'x'; job.size.max(8)];
        let mut confirmed = 0;
        for number in 0..job.count {
            body[..8].copy_from_slice(&schedule.wait(number));
            confirmed += count_confirmed(&producer.send(Task::new(body.clone())));
        }
        confirmed += count_confirmed(&producer.flush());
        if confirmed != job.count {
            return Err(format!("{confirmed} of {} tasks were confirmed", job.count).into());
        }
        consumer.join().map_err(|_| "the consumer panicked")?
    })?;
    Ok(schedule.measured(&meter))
}

/// Publishes tasks, which a batch may wait for, and then works them off.
pub fn outcomes(url: &str, job: &Job) -> Result<Measured, Error> {
    if job.batch {
        let mut batch = Batch::new(&url.parse()?, &Queue::new(&job.queue));
        for _ in 0..job.count {
            let _receipts = batch.send(Task::new(vec![b'x'; job.size]))?;
        }
        let _receipts = batch.flush();
        if batch.summary().left != job.count {
            return Err("a task of the batch was not confirmed".into());
        }
    } else {
        publish(url, job)?;
    }
    consume(url, job)
}

/// Two workers share a queue: one takes `task` for each, and the other a twentieth of that.
pub fn share(url: &str, job: &Job) -> Result<Measured, Error> {
    let broker: Broker = url.parse()?;
    let meter = Arc::new(Meter::new(job.count));
    let (trigger, shutdown) = shutdown();
    thread::scope(|scope| {
        let work = |task: Duration| {
            let (meter, trigger) = (Arc::clone(&meter), trigger.clone());
            let worker = Worker::new(&broker, &Queue::new(&job.queue)).threads(1);
            let worker = worker.prefetch(job.prefetch);
            let handler = move |_: &Delivery| {
                thread::sleep(task);
                if meter.task() {
                    trigger.stop();
                }
                Ok(())
            };
            let shutdown = &shutdown;
            scope.spawn(move || worker.run(handler, shutdown))
        };
        let workers = [work(job.task), work(job.task / 20)];
        workers.into_iter().try_for_each(|it| match it.join() {
            Ok(summary) => summary.map(drop).map_err(Error::from),
            Err(_) => Err("a worker panicked".into()),
        })
    })?;
    Ok(meter.measured())
}
