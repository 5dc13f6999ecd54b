//! The options of `producer --wait`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args};

use crate::cli::common::arguments::{parse_duration, refuse_dash_for_file};
use crate::cli::common::error::CommandError;
use crate::cli::common::stdio::refuse_file_of_a_stream;
use crate::cli::producer::options::Options;
use crate::cli::producer::source::{Source, is_same_file};

/// The options that say how to wait. What excludes --wait excludes each of them: clap waives what is
/// required if a given option excludes it.
pub(crate) const OF_A_WAIT: [&str; 4] = ["outcomes", "output", "keep_order", "wait_timeout"];

/// Whether and how to wait for the tasks.
#[derive(Args, Debug)]
#[command(next_help_heading = "Waiting")]
#[command(group = ArgGroup::new("of_a_wait").args(OF_A_WAIT).multiple(true).requires("wait"))]
pub(crate) struct WaitArgs {
    /// Wait until every task is done or a dead letter, on whatever machine; see Waiting
    #[arg(long, conflicts_with_all = ["correlation_id", "reply_to"])]
    pub(crate) wait: bool,

    /// Append a line of JSON to FILE for each ended task. If FILE exists, continue its wait; see Waiting
    #[arg(long, value_name = "FILE")]
    pub(crate) outcomes: Option<PathBuf>,

    /// Print the standard output of each task's command, up to 64 KiB, as the tasks end
    #[arg(long, conflicts_with = "json")]
    pub(crate) output: bool,

    /// With --output: print in the order of the input
    #[arg(long, requires = "output", conflicts_with = "json")]
    pub(crate) keep_order: bool,

    /// How long to wait, from when all tasks are published [default: no limit]
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub(crate) wait_timeout: Option<Duration>,
}

impl WaitArgs {
    /// Refuses options that cannot work, before anything is read or written.
    pub(crate) fn check(&self, options: &Options, source: &Source) -> Result<(), CommandError> {
        if !self.wait {
            return Ok(());
        }
        let usage = |reason: &str| Err(CommandError::usage("--wait", reason));
        if options.task.is_transient() {
            return usage(
                "a restart of the broker loses --transient tasks, and the wait would not end; \
                 leave one of the two out",
            );
        }
        if options.task.expires() && self.wait_timeout.is_none() {
            return usage(
                "the broker drops tasks of --expiration without an outcome, and the wait would not \
                 end; add --wait-timeout",
            );
        }
        if self.wait_timeout.is_some_and(|limit| limit.is_zero()) {
            let reason = "0 would not wait; leave out --wait, or write 1s or more";
            return Err(CommandError::usage("--wait-timeout", reason));
        }
        self.outcomes.as_deref().map_or(Ok(()), |path| check_file(path, options, source))
    }
}

fn check_file(path: &Path, options: &Options, source: &Source) -> Result<(), CommandError> {
    refuse_dash_for_file("--outcomes", path)?;
    refuse_file_of_a_stream("--outcomes", path)?;
    let others = [source.path(), options.failed.as_deref()];
    if others.into_iter().flatten().any(|other| other == path || is_same_file(other, path)) {
        let reason = "it is the input, or the file of --failed; take another file";
        return Err(CommandError::usage("--outcomes", reason));
    }
    Ok(())
}
