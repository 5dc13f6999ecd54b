//! `queuectl`: inspects a RabbitMQ queue, checks a set-up, shows and replays dead letters.

#[cfg(not(unix))]
compile_error!("the commands need Unix; on other systems build the library: --lib");

fn main() -> std::process::ExitCode {
    rabbit_work::cli::run("queuectl")
}
