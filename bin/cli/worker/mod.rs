//! `worker`: runs a command for each task, or prints the tasks as the tutorial does.

mod events;
mod handler;
mod health_file;
mod init;
pub(crate) mod options;
mod outcome;
mod output;
mod rate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use log::{Level, error, info, log_enabled};
use rabbit_work::{Command, Error, Handler, Shutdown, Summary, Worker};

use crate::cli::common::arguments::parse;
use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::common::logging::init_logging;
use crate::cli::common::signals::{StopLimits, stop_on_signals};
use crate::cli::worker::events::EventLog;
use crate::cli::worker::handler::{CommandHandler, TutorialHandler, command_of};
use crate::cli::worker::health_file::HealthFile;
use crate::cli::worker::init::{ensure_sigchld_is_delivered, status_as_first_process};
use crate::cli::worker::options::Options;
use crate::cli::worker::outcome::{as_json, as_text, exit_of, has_news};
use crate::cli::worker::output::Output;

pub(crate) fn main() -> ExitCode {
    let options: Options = parse();
    init_logging();
    if !options.command.is_empty() {
        if let Some(status) = status_as_first_process() {
            return status.into();
        }
    }
    let output = Output::default();
    let exit = run(&options, &output).unwrap_or_else(|error| {
        print_summary(&options, &output, None);
        error.log()
    });
    exit.into()
}

fn run(options: &Options, output: &Output) -> Result<Exit, CommandError> {
    let worker = options.worker()?;
    let command = command_of(options, output)?;
    if command.is_some() {
        ensure_sigchld_is_delivered()?;
    }
    refuse_shared_file(options)?;
    let health_file = options.health_file.as_deref();
    let health = health_file.map(|path| HealthFile::keep(path, options, &worker)).transpose()?;
    let (trigger, shutdown) = stop_on_signals(stop_limits(options, command.as_ref()))?;
    output.stop_when_unwritable(trigger);
    let events = options.events.as_deref().map(|path| EventLog::open(path, &shutdown));
    let events = events.transpose()?;
    let worker = observed(worker, events.as_ref());
    let (ended, stop_reason) = work(&worker, command, output, &shutdown);
    drop(health);
    if let Some(events) = events {
        events.close();
    }
    report(options, output, worker.last_summary().as_ref(), &ended);
    log_stop_reason(stop_reason.as_deref());
    Ok(match ended {
        Ok(summary) => exit_of(&summary, options, output.error()),
        Err(error) => CommandError::from(error).log(),
    })
}

/// Refuses one file for --health-file and --events.
fn refuse_shared_file(options: &Options) -> Result<(), CommandError> {
    let health_file = options.health_file.as_deref().and_then(location);
    if health_file.is_some() && health_file == options.events.as_deref().and_then(location) {
        let reason = "--events names the same file; take another one";
        return Err(CommandError::usage("--health-file", reason));
    }
    Ok(())
}

/// Where a file is or would be, however its path is spelt.
fn location(path: &Path) -> Option<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
    Some(folder.join(path.file_name()?))
}

fn stop_limits(options: &Options, command: Option<&Command>) -> StopLimits {
    let cancel_timeout = command.map_or(Duration::ZERO, Command::cancel_timeout);
    StopLimits { grace: options.grace, cancel_timeout, late: Exit::GraceExceeded }
}

fn observed(worker: Worker, events: Option<&EventLog>) -> Worker {
    match events.cloned() {
        Some(events) => worker.observer(move |event| events.note(event)),
        None => worker,
    }
}

/// Runs the worker. Returns how it ended, and why its handler stopped it if it did.
fn work(
    worker: &Worker,
    command: Option<Command>,
    output: &Output,
    shutdown: &Shutdown,
) -> (Result<Summary, Error>, Option<String>) {
    let Some(command) = command else {
        return (worker.run(TutorialHandler::new(output), shutdown), None);
    };
    let stop_reason = Arc::<OnceLock<String>>::default();
    let ended = worker.run(CommandHandler::new(command, output, &stop_reason), shutdown);
    (ended, stop_reason.get().cloned())
}

/// Logs and prints the summary.
fn report(
    options: &Options,
    output: &Output,
    summary: Option<&Summary>,
    ended: &Result<Summary, Error>,
) {
    if let Some(summary) = summary.filter(|summary| has_news(summary, ended)) {
        info!("{}", as_text(summary));
    }
    print_summary(options, output, summary);
}

/// Prints the summary of --json. An unwritable standard output is reported elsewhere.
fn print_summary(options: &Options, output: &Output, summary: Option<&Summary>) {
    if options.json && output.error().is_none() {
        let _ = output.print_line(as_json(summary));
    }
}

/// The library logs why a handler stopped the worker. This repeats it if RUST_LOG excludes that.
fn log_stop_reason(reason: Option<&str>) {
    if let (Some(reason), false) = (reason, log_enabled!(target: "rabbit_work", Level::Error)) {
        error!("{reason}");
    }
}
