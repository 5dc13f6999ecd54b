//! This crate's library in a program of many threads: each publishes one task after the other, all of
//! them through one producer.

use std::thread;
use std::time::Instant;

use rabbit_work::{Broker, Producer, Queue, Task};

use rabbit_work_bench::Error;
use rabbit_work_bench::job::Job;
use rabbit_work_bench::meter::Measured;

pub fn publish(url: &str, job: &Job) -> Result<Measured, Error> {
    let broker: Broker = url.parse()?;
    let mut producer = Producer::new(&broker, &Queue::new(&job.queue)).window(job.window as usize);
    producer.connect()?;
    let producer = producer.shared();
    let begun = Instant::now();
    thread::scope(|scope| {
        let publish = || {
            let mut tasks = 0..job.count / job.threads as u64;
            tasks.try_for_each(|_| producer.publish(Task::new(vec![b'x'; job.size])).map(drop))
        };
        let threads: Vec<_> = (0..job.threads).map(|_| scope.spawn(publish)).collect();
        threads.into_iter().try_for_each(|it| match it.join() {
            Ok(published) => published.map_err(Error::from),
            Err(_) => Err("a thread panicked".into()),
        })
    })?;
    Ok(Measured::since(begun))
}
