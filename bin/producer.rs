//! `producer`: puts tasks on a RabbitMQ queue from a shell, each one confirmed.

#[cfg(not(unix))]
compile_error!("the commands need Unix; on other systems build the library: --lib");

fn main() -> std::process::ExitCode {
    rabbit_work::cli::run("producer")
}
