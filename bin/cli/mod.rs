//! The commands. The library compiles them once, as a hidden module, for all programs in `bin/`. They use
//! only its public names.

pub(crate) mod common;
pub(crate) mod producer;
pub(crate) mod queuectl;
pub(crate) mod worker;

use std::process::ExitCode;

use clap::CommandFactory;

/// Runs the command of this name with the arguments of the process.
pub fn run(command: &str) -> ExitCode {
    match command {
        "producer" => producer::main(),
        "worker" => worker::main(),
        _ => queuectl::main(),
    }
}

/// The definitions of all commands, for their man pages and completions.
pub fn definitions() -> [clap::Command; 3] {
    [
        producer::options::Options::command(),
        queuectl::options::Options::command(),
        worker::options::Options::command(),
    ]
}
