//! The contenders that are libraries: each does the same work, in a process of its own.

mod amiquip;
#[cfg(feature = "peers")]
mod amqprs;
mod job;
#[cfg(feature = "peers")]
mod lapin;
mod meter;
mod rabbit_work;
pub mod raw;
mod window;
pub mod wire;

use std::env;

use self::job::{Job, Work};
use self::meter::Measured;
use crate::Error;

/// Has a contender do a work on the broker of `AMQP_URL`, and prints what was measured.
pub fn contend(contender: &str, work: &str, settings: &[&str]) -> Result<(), Error> {
    let job = Job::parse(work, settings)?;
    let url = env::var("AMQP_URL").map_err(|_| "AMQP_URL is not set")?;
    println!("{}", measure(contender, &url, &job)?);
    Ok(())
}

fn measure(contender: &str, url: &str, job: &Job) -> Result<Measured, Error> {
    match (contender, job.work) {
        ("raw", Work::Publish) => raw::publish(url, job, wire::Properties::Persistent),
        ("raw-same-bytes", Work::Publish) => raw::publish(url, job, wire::Properties::AsRabbitWork),
        ("raw", Work::Consume) => raw::consume(url, job),
        ("raw", Work::Pass) => raw::pass(url, job),
        ("amiquip", Work::Publish) => amiquip::publish(url, job, amiquip::Socket::AsItComes),
        ("amiquip", Work::Consume) => amiquip::consume(url, job, amiquip::Socket::AsItComes),
        ("amiquip", Work::Pass) => amiquip::pass(url, job, amiquip::Socket::AsItComes),
        ("amiquip-nodelay", Work::Publish) => amiquip::publish(url, job, amiquip::Socket::NoDelay),
        ("amiquip-nodelay", Work::Consume) => amiquip::consume(url, job, amiquip::Socket::NoDelay),
        ("amiquip-nodelay", Work::Pass) => amiquip::pass(url, job, amiquip::Socket::NoDelay),
        ("rabbit-work", Work::Publish) => rabbit_work::publish(url, job),
        ("rabbit-work", Work::Consume) => rabbit_work::consume(url, job),
        ("rabbit-work", Work::Pass) => rabbit_work::pass(url, job),
        ("rabbit-work", Work::Share) => rabbit_work::share(url, job),
        #[cfg(feature = "peers")]
        ("lapin", _) => lapin::measure(url, job),
        #[cfg(feature = "peers")]
        ("amqprs", _) => amqprs::measure(url, job),
        _ => Err(format!("no contender '{contender}' does this here").into()),
    }
}
