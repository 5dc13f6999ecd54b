//! The contenders that are libraries: each does the same work, in a process of its own.

mod amiquip;
mod rabbit_work;
pub mod raw;
mod shared;
pub mod wire;

use std::env;

use rabbit_work_bench::Error;
use rabbit_work_bench::job::{Job, Work};
use rabbit_work_bench::meter::Measured;

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
        ("rabbit-work-shared", Work::Publish) => shared::publish(url, job),
        ("rabbit-work", Work::Consume) => rabbit_work::consume(url, job),
        ("rabbit-work", Work::Pass) => rabbit_work::pass(url, job),
        ("rabbit-work", Work::Share) => rabbit_work::share(url, job),
        ("rabbit-work", Work::Outcomes) => rabbit_work::outcomes(url, job),
        _ => Err(format!("no contender '{contender}' does this here").into()),
    }
}
