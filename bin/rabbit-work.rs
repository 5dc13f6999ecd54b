//! `rabbit-work`: all commands in one program, as its subcommands, or by the name that it is called by.

#[cfg(not(unix))]
compile_error!("the commands need Unix; on other systems build the library: --lib");

fn main() -> std::process::ExitCode {
    rabbit_work::cli::run_as_called()
}
