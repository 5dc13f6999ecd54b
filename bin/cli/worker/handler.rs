//! What the worker does with a task: [`CommandHandler`] runs a command, [`TutorialHandler`] prints
//! the task.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rabbit_work::{Command, Delivery, Failure, Handler, OutputStream};

use crate::cli::common::arguments::has_two_dashes;
use crate::cli::common::error::CommandError;
use crate::cli::common::logging::with_progress_suspended;
use crate::cli::common::stdio::{has_no_reader, is_read_only, is_unwritable, write_all};
use crate::cli::common::variables::URL_VARIABLE;
use crate::cli::worker::options::Options;
use crate::cli::worker::output::Output;
use crate::cli::worker::records::Records;

/// The command that the options name; `None` if tasks are to be printed.
pub(crate) fn command_of(
    options: &Options,
    output: &Output,
) -> Result<Option<Command>, CommandError> {
    let Some((program, arguments)) = options.command.split_first() else {
        return refuse_to_print(options).map(|()| None);
    };
    let mut command = Command::new(program, arguments)?;
    if options.broker.has_address_in_file() {
        command = command.env_remove(URL_VARIABLE);
    }
    if let Some(limit) = options.task_timeout {
        if limit.is_zero() {
            let reason = "0 would end every command at once; write 1s or more";
            return Err(CommandError::usage("--task-timeout", reason));
        }
        command = command.time_limit(limit);
    }
    if options.tag {
        refuse_lost_output()?;
        let output = output.clone();
        command = command.tag_lines(move |stream, lines| output.write_all(stream, lines));
    } else {
        command = command.forward_lines(forward);
    }
    Ok(Some(command))
}

/// Refuses to print tasks if that is most likely not meant, or not possible.
fn refuse_to_print(options: &Options) -> Result<(), CommandError> {
    if has_two_dashes() {
        // `-- $JOB` with an empty JOB.
        return Err(CommandError::usage("command", "missing after --; add one"));
    }
    if let (Some(queue), false) = (options.queues.beyond_tutorial(), options.print) {
        let reason = format!(
            "missing for queue '{queue}'; put -- and a command after the options, or add --print, \
             which prints and acks each task"
        );
        return Err(CommandError::usage("command", reason));
    }
    if is_read_only(&io::stdout()) {
        let reason = "it is not open for writing: tasks would be acked and not shown; if they may \
                      be lost, use >/dev/null";
        return Err(CommandError::usage("standard output", reason));
    }
    Ok(())
}

/// Passes on what commands write through the worker, on rows of its own.
fn forward(stream: OutputStream, lines: &[u8]) -> io::Result<()> {
    let mut written = Ok(());
    with_progress_suspended(&mut || written = write_all(stream, lines));
    match stream {
        OutputStream::Stdout => written,
        // There is nowhere to report that standard error cannot be written.
        OutputStream::Stderr => Ok(()),
    }
}

fn refuse_lost_output() -> Result<(), CommandError> {
    if is_unwritable(&io::stdout()) || is_unwritable(&io::stderr()) {
        let reason = "standard output or standard error is closed, not open for writing, or \
                      /dev/null opened for reading as well: the output of commands would be lost; \
                      if it may be, use >/dev/null";
        return Err(CommandError::usage("--tag", reason));
    }
    Ok(())
}

/// Runs the command for each task.
pub(crate) struct CommandHandler {
    command: Command,
    records: Records,
    output: Output,
    stop_reason: Arc<OnceLock<String>>,
}

impl CommandHandler {
    pub(crate) fn new(command: Command, records: Records, output: &Output) -> CommandHandler {
        CommandHandler { command, records, output: output.clone(), stop_reason: Arc::default() }
    }

    /// Set when no task can be done any more.
    pub(crate) fn stop_reason(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.stop_reason)
    }
}

impl Handler for CommandHandler {
    /// A command can fail because standard output has no reader any more (`| head -1`). That is not
    /// the task's fault: the task is requeued and the worker stops.
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure> {
        let result = self.records.run(&self.command, delivery);
        if let Some(error) = delivery.program_end().and_then(|end| end.output_error.clone()) {
            self.output.fail(io::Error::other(error));
        }
        let failed = match result {
            Err(failure) if !self.records.take_output() && has_no_reader(&io::stdout()) => failure,
            Err(Failure::StopWorker { reason, .. }) => {
                let _ = self.stop_reason.set(reason.clone());
                return Err(Failure::stop_worker(reason));
            }
            result => return result,
        };
        self.output.fail(io::ErrorKind::BrokenPipe.into());
        Err(Failure::requeue(format!("nobody reads standard output any more: {failed}")))
    }

    fn cancel_timeout(&self) -> Duration {
        self.command.cancel_timeout()
    }
}

/// The tutorial's worker: a second of work for each dot in the body.
pub(crate) struct TutorialHandler {
    output: Output,
}

impl TutorialHandler {
    pub(crate) fn new(output: &Output) -> TutorialHandler {
        TutorialHandler { output: output.clone() }
    }

    fn print(&self, line: String) -> Result<(), Failure> {
        let unwritable =
            |error| Failure::requeue(format!("standard output cannot be written: {error}"));
        self.output.print_line(line).map_err(unwritable)
    }
}

impl Handler for TutorialHandler {
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure> {
        self.print(format!(" [x] Received '{}'", String::from_utf8_lossy(delivery.body())))?;
        let dots = delivery.body().iter().filter(|byte| **byte == b'.').count();
        thread::sleep(Duration::from_secs(dots as u64));
        self.print(" [x] Done".to_string())
    }
}
