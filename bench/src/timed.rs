//! Runs one command and says what it took: the clock, the processors and memory. A process of its
//! own for each command, because the system adds up the children of a process.

use std::process::Command;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use rabbit_work_bench::Error;

/// Runs `command` so many times, and then prints `wall` and `cpu` in seconds, and `peak` in KiB. What
/// the command has started counts with it, once it has ended.
pub fn timed(times: &str, command: &[&str]) -> Result<(), Error> {
    let [program, arguments @ ..] = command else {
        return Err("timed: no command".into());
    };
    let times: u64 = times.parse()?;
    let begun = Instant::now();
    for _ in 0..times {
        let status = Command::new(program).args(arguments).status();
        let status = status.map_err(|error| format!("{program}: {error}"))?;
        if !status.success() {
            return Err(format!("{} failed: {status}", command.join(" ")).into());
        }
    }
    let wall = begun.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    println!("wall={wall:.6} cpu={:.6} peak={}", cpu as f64 / 1e6, usage.max_rss());
    Ok(())
}
