//! `queuectl`: inspects, purges and deletes a queue, checks a set-up, shows, replays and purges dead
//! letters.

mod dead;
mod letter;
pub(crate) mod options;
mod output;
mod status;
mod watch;

use std::process::ExitCode;

use rabbit_work::{DeadLetters, Inspector};

use crate::cli::call::Call;
use crate::cli::common::arguments::parse;
use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::common::first_process::status_as_first_process;
use crate::cli::common::logging::init_logging;
use crate::cli::common::variables::warn_of_unknown_variables;
use crate::cli::queuectl::dead::Form;
use crate::cli::queuectl::letter::printable;
use crate::cli::queuectl::options::{Command, Dead, Options};
use crate::cli::queuectl::output::{log_error, print, report_purged};
use crate::cli::queuectl::status::Format;

pub(crate) fn main(call: &Call) -> ExitCode {
    let options: Options = parse(call);
    init_logging(call.name(), options.broker.log_format);
    if let Some(status) = status_as_first_process() {
        return status.into();
    }
    warn_of_unknown_variables();
    run(&options).unwrap_or_else(log_error).into()
}

fn run(options: &Options) -> Result<Exit, CommandError> {
    let broker = options.broker.broker()?;
    match &options.command {
        Command::Status { json, watch: Some(every) } => {
            watch::run(&broker, &options.queues(), Format::of(*json), *every)
        }
        Command::Status { json, watch: None } => {
            status::print_all(&broker, &options.queues(), Format::of(*json))
        }
        Command::Check => Ok(status::check(&mut Inspector::new(&broker, &options.one_queue()?))),
        Command::Purge { retry, yes } => {
            let queue = options.one_queue()?;
            let which = if *retry { "delayed" } else { "ready" };
            if !yes {
                return Err(needs_yes(
                    "purge",
                    &format!("every {which} task of '{}'", queue.name()),
                ));
            }
            let mut inspector = Inspector::new(&broker, &queue);
            let purged = if *retry { inspector.purge_delayed()? } else { inspector.purge()? };
            Ok(report_purged(purged, &[]))
        }
        Command::Delete { yes } => {
            let mut inspector = Inspector::new(&broker, &options.one_queue()?);
            if !yes {
                let queues: Vec<_> = inspector.queues()?.iter().map(with_count).collect();
                return Err(needs_yes("delete", &queues.join(", ")));
            }
            Ok(print(inspector.delete()?.iter().map(with_count)))
        }
        Command::Dead(command) => {
            let queue = options.one_queue()?;
            run_dead(command, &DeadLetters::new(&broker, &queue), queue.name())
        }
    }
}

fn run_dead(command: &Dead, letters: &DeadLetters, queue: &str) -> Result<Exit, CommandError> {
    match command {
        Dead::List { filter, json: true } => dead::list_as_json(letters, &filter.filter()?),
        Dead::List { filter, json: false } => dead::list(letters, &filter.filter()?),
        Dead::Show { id, raw: true } => dead::show(letters, id, Form::Raw),
        Dead::Show { id, raw: false } => dead::show(letters, id, Form::Record),
        Dead::Replay { filter, dry_run: true } => dead::preview_replay(letters, &filter.filter()?),
        Dead::Replay { filter, dry_run: false } => dead::replay(letters, &filter.filter()?),
        Dead::Purge { filter, yes } => {
            let filter = filter.filter()?;
            if !yes {
                return Err(needs_yes("purge", &format!("dead letters of '{queue}'")));
            }
            dead::purge(letters, &filter)
        }
    }
}

/// A queue and the number of its tasks.
fn with_count((queue, tasks): &(String, u64)) -> String {
    format!("'{}' with {tasks} tasks", printable(queue, 256))
}

fn needs_yes(command: &'static str, what: &str) -> CommandError {
    CommandError::usage(command, format!("this would remove {what} for good; add --yes to do it"))
}
