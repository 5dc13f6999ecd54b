//! The async clients: `peers CONTENDER WORK KEY=VALUE...`. A program of its own, so that what they
//! bring costs the other contenders nothing.

mod amqprs;
mod lapin;

use std::env;
use std::process::ExitCode;

use rabbit_work_bench::job::Job;
use rabbit_work_bench::{Error, exit_status};

fn main() -> ExitCode {
    exit_status(run())
}

fn run() -> Result<(), Error> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [contender, work, settings @ ..] = words.as_slice() else {
        return Err("peers CONTENDER WORK KEY=VALUE...".into());
    };
    let job = Job::parse(work, settings)?;
    let url = env::var("AMQP_URL").map_err(|_| "AMQP_URL is not set")?;
    let measured = match *contender {
        "lapin" => lapin::measure(&url, &job)?,
        "amqprs" => amqprs::measure(&url, &job)?,
        _ => return Err(format!("no contender is called '{contender}'").into()),
    };
    println!("{measured}");
    Ok(())
}
