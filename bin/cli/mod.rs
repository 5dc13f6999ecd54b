//! The commands. Each program is a short file next to this folder that runs one of them by its name.

#[cfg(not(unix))]
compile_error!("the commands need Unix; on other systems build the library: --lib");

pub(crate) mod common;
pub(crate) mod producer;
pub(crate) mod queuectl;
pub(crate) mod worker;

use std::process::ExitCode;

pub(crate) fn run(command: &str) -> ExitCode {
    match command {
        "producer" => producer::main(),
        "worker" => worker::main(),
        _ => queuectl::main(),
    }
}
