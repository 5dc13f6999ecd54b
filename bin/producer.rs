//! `producer`: puts tasks on a RabbitMQ queue from a shell, each one confirmed.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run("producer")
}
