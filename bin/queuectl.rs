//! `queuectl`: inspects a RabbitMQ queue, checks a set-up, shows and replays dead letters.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run("queuectl")
}
