//! `producer`: publishes tasks, each one confirmed.

mod input;
pub(crate) mod options;
mod position;
mod progress;
mod publishing;
mod report;
mod source;
mod summary;
mod trace;
mod wait;

use std::process::ExitCode;
use std::time::Duration;

use log::warn;
use rabbit_work::{Broker, Producer, Queue, Shutdown};

use crate::cli::call::Call;
use crate::cli::common::arguments::parse;
use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::common::logging::init_logging;
use crate::cli::common::signals::{StopLimits, is_interrupted, stop_on_signals};
use crate::cli::common::stdio::print_line;
use crate::cli::common::variables::warn_of_unknown_variables;
use crate::cli::producer::input::{Bodies, End, Piece};
use crate::cli::producer::options::Options;
use crate::cli::producer::publishing::{Plain, Publishing, Sent};
use crate::cli::producer::report::Report;
use crate::cli::producer::source::Source;
use crate::cli::producer::summary::Totals;
use crate::cli::producer::wait::{Waiting, log_that_nobody_waits};

pub(crate) fn main(call: &Call) -> ExitCode {
    let options: Options = parse(call);
    init_logging(call.name(), options.broker.log_format);
    warn_of_unknown_variables();
    let exit = run(&options).unwrap_or_else(|error| {
        if options.json {
            // If this cannot be written, the error still explains the exit status.
            let _ = print_line(Totals::default().as_json(0.0, Some(0)));
        }
        error.log()
    });
    exit.into()
}

fn run(options: &Options) -> Result<Exit, CommandError> {
    let broker = options.broker.broker()?;
    let source = Source::of(options)?;
    check(options, &source)?;
    // Before the report truncates --failed: without input, an old file may still be needed.
    let mut bodies = Bodies::open(&source)?;
    let (_trigger, shutdown) = stop_on_signals(StopLimits {
        grace: options.timeout,
        cancel_timeout: Duration::ZERO,
        late: if options.wait.wait { Exit::Unfinished } else { Exit::Failed },
    })?;
    let queue = options.queue.queue();
    if options.wait.wait {
        let waiting = Waiting::open(options, &broker, &queue, &shutdown)?;
        let report = Report::open(&source, options)?;
        return publish_and_wait(waiting, report, &mut bodies, options, &shutdown);
    }
    let mut report = Report::open(&source, options)?;
    let producer = producer(options, &broker, &queue, &shutdown);
    let mut plain = Plain { producer, task: &options.task };
    if let Err(error) = plain.connect() {
        return not_connected(error, &plain, &mut bodies, &shutdown, report);
    }
    warn_of_ignored_priority(options, &plain);
    let end = publish_all(&mut plain, &mut bodies, &shutdown, &mut report)?;
    Ok(report.close(&end))
}

fn publish_and_wait(
    mut waiting: Waiting<'_>,
    mut report: Report,
    bodies: &mut Bodies,
    options: &Options,
    shutdown: &Shutdown,
) -> Result<Exit, CommandError> {
    if let Err(error) = waiting.connect() {
        let was_stopped = shutdown.is_stopping();
        report.note_ended(waiting.summary());
        let exit = not_connected(error, &waiting, bodies, shutdown, report)?;
        return Ok(if was_stopped { stopped() } else { exit });
    }
    warn_of_ignored_priority(options, &waiting);
    let end = publish_all(&mut waiting, bodies, shutdown, &mut report)?;
    report.end_publishing(&end);
    // Whatever else has ended it, the tasks that are published run.
    let waited = match end {
        End::Stopped => None,
        _ => Some(waiting.wait(options, shutdown)),
    };
    report.note_ended(waiting.summary());
    report.print_summary(&end);
    Ok(match waited {
        Some(Ok(waited)) => waited.exit_after(report.exit(&end)),
        Some(Err(error)) => error.log(),
        None => {
            log_that_nobody_waits(options);
            stopped()
        }
    })
}

/// The exit status of a stop before the wait.
fn stopped() -> Exit {
    if is_interrupted() { Exit::Interrupted } else { Exit::Unfinished }
}

/// Refuses options that cannot work, before anything is read or written.
fn check(options: &Options, source: &Source) -> Result<(), CommandError> {
    // The properties of a task do not depend on its body.
    options.task.task(Vec::new()).validate()?;
    if options.task.id.is_some() {
        source.validate_for_id()?;
    }
    if options.failed.is_some() {
        source.validate_for_failed_file()?;
    }
    options.wait.check(options, source)?;
    if options.timeout.is_zero() {
        let reason = "0 leaves no time to reach a broker; write 1s or more";
        return Err(CommandError::usage("--timeout", reason));
    }
    Ok(())
}

fn warn_of_ignored_priority(options: &Options, connected: &dyn Publishing) {
    if options.task.priority.is_some() && connected.has_priorities() == Some(false) {
        warn!(
            "--priority has no effect in queue '{}': a classic queue needs --max-priority N, for \
             producers and workers; a quorum queue has priorities from RabbitMQ 4.0 on",
            options.queue.queue().name()
        );
    }
}

fn producer(options: &Options, broker: &Broker, queue: &Queue, shutdown: &Shutdown) -> Producer {
    Producer::new(broker, queue)
        .window(options.window as usize)
        .timeout(options.timeout)
        .shutdown(shutdown)
}

/// This run has published nothing: the input is not confirmed, except for what an earlier run has
/// published.
fn not_connected(
    error: CommandError,
    publishing: &dyn Publishing,
    bodies: &mut Bodies,
    shutdown: &Shutdown,
    mut report: Report,
) -> Result<Exit, CommandError> {
    report.end_progress();
    if shutdown.is_stopping() {
        report.note_unsent(bodies.read_ahead(), publishing);
        return Ok(report.close(&End::Stopped));
    }
    let exit = error.log();
    let end = report.keep_rest(bodies, publishing, shutdown, End::GaveUp);
    if report.has_failed_file() {
        report.flush_failed();
        report.log_end(&end);
    }
    report.print_summary(&end);
    Ok(if is_interrupted() { Exit::Interrupted } else { exit })
}

fn publish_all(
    publishing: &mut dyn Publishing,
    bodies: &mut Bodies,
    shutdown: &Shutdown,
    report: &mut Report,
) -> Result<End, CommandError> {
    let end = publish_input(publishing, bodies, shutdown, report)?;
    report.note(&publishing.flush());
    report.note_held(&publishing.take_held());
    Ok(match end {
        End::Finished => end,
        End::GaveUp => report.keep_rest(bodies, publishing, shutdown, end),
        End::Stopped | End::Unreadable(_) => {
            report.note_unsent(bodies.read_ahead(), publishing);
            end
        }
    })
}

fn publish_input(
    publishing: &mut dyn Publishing,
    bodies: &mut Bodies,
    shutdown: &Shutdown,
    report: &mut Report,
) -> Result<End, CommandError> {
    loop {
        if !bodies.are_coming(shutdown) {
            // While we wait for input, nobody handles confirms or publishes again.
            report.note(&publishing.flush());
            if report.gave_up {
                return Ok(End::GaveUp);
            }
        }
        match bodies.next(shutdown) {
            Ok(piece) => publish_piece(publishing, piece, report)?,
            Err(End::Finished) => {
                publishing.end()?;
                return Ok(End::Finished);
            }
            Err(end) => return Ok(end),
        }
        if report.gave_up {
            return Ok(End::GaveUp);
        }
    }
}

fn publish_piece(
    publishing: &mut dyn Publishing,
    piece: Piece,
    report: &mut Report,
) -> Result<(), CommandError> {
    let length = piece.bytes().len();
    match piece {
        Piece::Body(body) => {
            report.note_read();
            match publishing.send(body)? {
                Sent::Now(receipts) => report.note(&receipts),
                Sent::Before(receipts) => {
                    report.note_published_before(length);
                    report.note(&receipts);
                }
            }
        }
        Piece::TooLong(start) => {
            report.note(&publishing.skip(&start)?);
            report.note_unsent([Piece::TooLong(start)].into_iter(), publishing);
        }
        rest @ Piece::Rest(_) => report.note_unsent([rest].into_iter(), publishing),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;
    use rabbit_work::{Receipt, Trigger, shutdown};

    use super::*;

    /// Holds what it is sent, and is stopped after two bodies.
    struct Holding {
        held: Vec<Vec<u8>>,
        trigger: Trigger,
    }

    impl Publishing for Holding {
        fn connect(&mut self) -> Result<(), CommandError> {
            Ok(())
        }

        fn has_priorities(&self) -> Option<bool> {
            None
        }

        fn has_published(&self, _: u64) -> bool {
            false
        }

        fn send(&mut self, body: Vec<u8>) -> Result<Sent, CommandError> {
            self.held.push(body);
            if self.held.len() == 2 {
                self.trigger.stop();
            }
            Ok(Sent::Now(Vec::new()))
        }

        fn skip(&mut self, _: &[u8]) -> Result<Vec<Receipt>, CommandError> {
            Ok(Vec::new())
        }

        fn flush(&mut self) -> Vec<Receipt> {
            Vec::new()
        }

        fn take_held(&mut self) -> Vec<Vec<u8>> {
            std::mem::take(&mut self.held)
        }

        fn end(&mut self) -> Result<(), CommandError> {
            Ok(())
        }
    }

    #[test]
    fn what_is_held_at_a_stop_is_not_confirmed_and_goes_to_the_file_of_failed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (input, failed) = (dir.path().join("input"), dir.path().join("failed"));
        fs::write(&input, "1\n2\n3\n").expect("written");
        let mut arguments = vec!["producer".as_ref(), "--lines".as_ref(), input.as_os_str()];
        arguments.extend(["--failed".as_ref(), failed.as_os_str()]);
        let options = Options::try_parse_from(arguments).expect("options");
        let source = Source::of(&options).expect("a source");
        let mut bodies = Bodies::open(&source).expect("opened");
        let mut report = Report::open(&source, &options).expect("opened");
        let (trigger, shutdown) = shutdown();
        let mut holding = Holding { held: Vec::new(), trigger };

        let end = publish_all(&mut holding, &mut bodies, &shutdown, &mut report).expect("no error");

        assert!(matches!(end, End::Stopped));
        assert_eq!(report.close(&end), Exit::Failed);
        assert_eq!(fs::read_to_string(&failed).expect("read"), "1\n2\n3\n");
    }
}
