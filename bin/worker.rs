//! `worker`: runs a command for each task of a RabbitMQ queue, in several threads.

#[cfg(not(unix))]
compile_error!("the commands need Unix; on other systems build the library: --lib");

fn main() -> std::process::ExitCode {
    rabbit_work::cli::run("worker")
}
