//! `worker`: works the tasks of a RabbitMQ queue with several threads.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run("worker")
}
