//! `worker`: runs a command for each task of a RabbitMQ queue, in several threads.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run("worker")
}
