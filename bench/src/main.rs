//! Measures rabbit-work beside its peers. `scripts/bench.sh` starts it, with a private broker.

use std::env;
use std::process::ExitCode;

mod contend;
mod proxy;
mod report;
mod run;
mod timed;

/// What anything here may fail with: a benchmark ends at the first error.
type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["run", options @ ..] => run::run(options),
        ["contend", contender, work, settings @ ..] => contend::contend(contender, work, settings),
        ["report", csv, markdown] => report::report(csv, markdown),
        ["timed", times, command @ ..] => timed::timed(times, command),
        _ => Err("usage: bench run [OPTION...] [GROUP...]; scripts/bench.sh --help".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
