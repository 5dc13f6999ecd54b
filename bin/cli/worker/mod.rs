//! `worker`: runs a command for each task, or prints the tasks as the tutorial does.

mod events;
mod handler;
mod health;
mod health_file;

mod joblog;
mod metrics;
pub(crate) mod options;
mod outcome;
mod output;
mod progress;
pub(crate) mod queues;
mod rate;
mod record_file;
mod records;
mod results;
mod service_manager;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use log::{error, info};
use rabbit_work::{
    Command, Event, Handler, QueueSummary, StopReason, Worker, Workers, WorkersSummary,
};

use crate::cli::call::Call;
use crate::cli::common::arguments::parse;
use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::common::first_process::{ensure_sigchld_is_delivered, status_as_first_process};
use crate::cli::common::logging::init_logging;
use crate::cli::common::signals::{StopLimits, stop_on_signals};
use crate::cli::common::variables::warn_of_unknown_variables;
use crate::cli::worker::events::EventLog;
use crate::cli::worker::handler::{CommandHandler, TutorialHandler, command_of};
use crate::cli::worker::health_file::HealthFile;
use crate::cli::worker::metrics::MetricsFile;
use crate::cli::worker::options::Options;
use crate::cli::worker::outcome::{as_json, as_lines, exit_of};
use crate::cli::worker::output::Output;
use crate::cli::worker::progress::Progress;
use crate::cli::worker::records::Records;
use crate::cli::worker::service_manager::report_to_service_manager;

pub(crate) fn main(call: &Call) -> ExitCode {
    let options: Options = parse(call);
    init_logging(call.name(), options.broker.log_format);
    if !options.command.is_empty() {
        if let Some(status) = status_as_first_process() {
            return status.into();
        }
    }
    warn_of_unknown_variables();
    let output = Output::default();
    let exit = run(&options, &output).unwrap_or_else(|error| {
        print_summary(&options, &output, None);
        error.log()
    });
    exit.into()
}

fn run(options: &Options, output: &Output) -> Result<Exit, CommandError> {
    let workers = options.workers()?;
    let command = command_of(options, output)?;
    if command.is_some() {
        ensure_sigchld_is_delivered()?;
    }
    refuse_shared_file(options)?;
    let records = Records::open(options, output)?;
    let health_file = options.health_file.as_deref();
    let health = health_file.map(|path| HealthFile::keep(path, options, &workers)).transpose()?;
    let (trigger, shutdown) = stop_on_signals(stop_limits(options, command.as_ref()))?;
    report_to_service_manager(options, &workers, &shutdown)?;
    output.stop_when_unwritable(trigger);
    let events = options.events.as_deref().map(|path| EventLog::open(path, &shutdown));
    let events = events.transpose()?;
    let progress = Progress::start(options, &workers);
    let metrics =
        options.metrics_file.as_deref().map(|path| MetricsFile::keep(path, options, &workers));
    let metrics = metrics.transpose()?;
    let handler = command.map(|it| Arc::new(CommandHandler::new(it, records, output)));
    let stop_reason = handler.as_ref().map(|it| it.stop_reason());
    let mut observers = Observers::default();
    observers.add(events.as_ref().map(EventLog::observer));
    observers.add(progress.as_ref().map(Progress::counter));
    observers.add(metrics.as_ref().map(MetricsFile::counter));
    let workers = workers.into_iter().map(|it| observers.observe(it));
    let workers = with_handler(workers, handler.as_ref(), options, output);
    let mut summary = workers.run(&shutdown)?;
    drop((health, progress, metrics));
    if let Some(events) = events {
        events.close();
    }
    if !options.queues.are_several() {
        forget_refusal(&mut summary);
    }
    report(options, output, &summary);
    log_errors(stop_reason.as_ref().and_then(|it| it.get()).map(String::as_str), &summary);
    Ok(exit_of(&summary, options, output.error()))
}

/// These workers, each with the handler of the command, or else the tutorial's.
fn with_handler(
    workers: impl Iterator<Item = Worker>,
    handler: Option<&Arc<CommandHandler>>,
    options: &Options,
    output: &Output,
) -> Workers {
    workers.fold(options.limited(Workers::new()), |all, worker| match handler {
        Some(handler) => all.add(worker, Arc::clone(handler)),
        None => all.add(worker, TutorialHandler::new(output)),
    })
}

/// A worker of one queue that was stopped exits like any other, even if the broker refused it then.
fn forget_refusal(summary: &mut WorkersSummary) {
    for queue in &mut summary.by_queue {
        queue.error = queue.error.take().filter(|_| queue.summary.ended == StopReason::Failed);
    }
}

/// Refuses one file for two options.
fn refuse_shared_file(options: &Options) -> Result<(), CommandError> {
    let Options { health_file, events, joblog, results, metrics_file, .. } = options;
    let mut files = vec![
        ("--health-file", health_file),
        ("--joblog", joblog),
        ("--results", results),
        ("--events", events),
        ("--metrics-file", metrics_file),
    ];
    while let Some((option, path)) = files.pop() {
        let path = path.as_deref().and_then(location);
        let is_same = |other: &Path| path.is_some() && path == location(other);
        if let Some((other, _)) = files.iter().find(|(_, it)| it.as_deref().is_some_and(is_same)) {
            let reason = format!("{option} names the same file; take another one");
            return Err(CommandError::usage(other, reason));
        }
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

/// What is called for each event.
#[derive(Clone, Default)]
struct Observers(Vec<Arc<Observer>>);

type Observer = dyn Fn(&Event) + Send + Sync;

impl Observers {
    fn add(&mut self, observer: Option<impl Fn(&Event) + Send + Sync + 'static>) {
        self.0.extend(observer.map(|it| Arc::new(it) as Arc<Observer>));
    }

    fn observe(&self, worker: Worker) -> Worker {
        if self.0.is_empty() {
            return worker;
        }
        let observers = self.clone();
        worker.observer(move |event| observers.0.iter().for_each(|observer| observer(event)))
    }
}

/// Logs and prints the summary.
fn report(options: &Options, output: &Output, summary: &WorkersSummary) {
    as_lines(summary).iter().for_each(|line| info!("{line}"));
    print_summary(options, output, Some(summary));
}

/// Prints the summary of --json. An unwritable standard output is reported elsewhere.
fn print_summary(options: &Options, output: &Output, summary: Option<&WorkersSummary>) {
    if options.json && output.is_writable() {
        let _ = output.print_line(as_json(summary));
    }
}

/// Logs the errors that end the worker. The library has logged those of a handler and of one of several
/// queues when they happened.
fn log_errors(stop_reason: Option<&str>, summary: &WorkersSummary) {
    stop_reason.iter().for_each(|reason| error!("{reason}"));
    match &summary.by_queue[..] {
        [QueueSummary { error, .. }] => error.iter().for_each(|it| error!("{}", it.chain())),
        several => {
            for QueueSummary { queue, error, .. } in several {
                error.iter().for_each(|it| error!("queue '{queue}': {}", it.chain()));
            }
        }
    }
}
