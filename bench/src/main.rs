//! Measures rabbit-work beside its peers. `scripts/bench.sh` starts it, with a private broker.

use std::env;
use std::process::ExitCode;

use rabbit_work_bench::exit_status;

mod contend;
mod proxy;
mod report;
mod run;
mod timed;

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
    exit_status(result)
}
