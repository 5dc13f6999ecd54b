//! The works: which contenders do what, and with how many tasks.

mod commands;
mod growth;
mod libraries;
mod shared;

use super::options::Options;
use super::work::{Work, words};
use rabbit_work_bench::Error;

/// The works that the options ask for, with the contenders that they ask for.
pub fn works(options: &Options) -> Result<Vec<Work>, Error> {
    let plan = Plan { options };
    let all = [
        plan.publish(),
        plan.lines()?,
        plan.consume(),
        plan.outcomes(),
        plan.latency(),
        plan.cold(),
        plan.command()?,
        plan.failures(),
        plan.growth(),
        plan.prefetch(),
        plan.fairness(),
    ];
    let mut works = all.concat();
    works.retain(|work| options.includes_work(&work.name));
    for work in &mut works {
        work.contenders.retain(|it| options.includes_contender(&it.name));
    }
    works.retain(|work| !work.contenders.is_empty());
    Ok(works)
}

/// The libraries of the program `peers`.
const PEERS: [&str; 2] = ["lapin", "amqprs"];

struct Plan<'a> {
    options: &'a Options,
}

impl Plan<'_> {
    /// Those of these libraries that are built.
    fn built<'a>(&self, libraries: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
        let peers = self.options.programs.join("peers").is_file();
        libraries.iter().copied().filter(move |library| peers || !PEERS.contains(library))
    }

    fn contend(&self, contender: &str, settings: &str) -> Vec<String> {
        let programs = self.options.programs.display();
        let program = if PEERS.contains(&contender) { "peers" } else { "bench contend" };
        words(&format!("{programs}/{program} {contender} {settings}"))
    }

    /// Python's client, if it is here.
    fn pika(&self, settings: &str) -> Option<Vec<String>> {
        let python = self.options.python.as_ref()?;
        let script = self.options.here.join("pika_contender.py");
        Some(words(&format!("{} {} {settings}", python.display(), script.display())))
    }

    /// A program of rabbit-work with its arguments.
    fn program(&self, command: &str) -> String {
        format!("{}/{command}", self.options.programs.display())
    }
}
