//! [`Records`]: keeps a record of each run of a command, for --joblog and --results.

use std::io;

use rabbit_work::{Command, Delivery, Failure, Handler, ProgramEnd};

use crate::cli::common::error::CommandError;
use crate::cli::worker::joblog::Joblog;
use crate::cli::worker::options::Options;
use crate::cli::worker::output::Output;
use crate::cli::worker::results::Results;

/// The records that the options ask for.
#[derive(Debug)]
pub(crate) struct Records {
    joblog: Option<Joblog>,
    results: Option<Results>,
    output: Output,
}

/// A command that has run for a task.
pub(crate) struct Run<'a> {
    pub(crate) delivery: &'a Delivery,
    pub(crate) verdict: &'a Result<(), Failure>,
    pub(crate) end: &'a ProgramEnd,
}

impl Records {
    pub(crate) fn open(options: &Options, output: &Output) -> Result<Records, CommandError> {
        let joblog = options.joblog.as_deref().map(|path| Joblog::open(path, &options.command));
        let results = options.results.as_deref().map(|path| Results::open(path, options));
        Ok(Records {
            joblog: joblog.transpose()?,
            results: results.transpose()?,
            output: output.clone(),
        })
    }

    /// Whether the output of commands goes to files, and not to standard output.
    pub(crate) fn take_output(&self) -> bool {
        self.results.is_some()
    }

    /// Runs the command, and keeps the record before the task is settled. If it cannot be kept, the
    /// task is requeued and the worker stops.
    pub(crate) fn run(&self, command: &Command, delivery: &Delivery) -> Result<(), Failure> {
        let lost = |option: &'static str| {
            move |error| {
                let error = self.output.fail_at(option, error);
                Failure::requeue(format!("{option} cannot be written: {error}"))
            }
        };
        let Some(results) = &self.results else {
            let verdict = command.handle(delivery);
            return self.log(delivery, verdict).map_err(lost("--joblog"))?;
        };
        results.refuse_no_place(delivery)?;
        let files = results.files().map_err(lost("--results"))?;
        let verdict = command.handle_into(delivery, &files.stdout, &files.stderr);
        let kept = match delivery.program_end() {
            Some(end) => results.keep(files, &Run { delivery, verdict: &verdict, end }),
            None => results.keep_unstarted(delivery, &verdict),
        };
        kept.map_err(lost("--results"))?;
        self.log(delivery, verdict).map_err(lost("--joblog"))?
    }

    /// Returns the verdict after the log has its line.
    fn log(
        &self,
        delivery: &Delivery,
        verdict: Result<(), Failure>,
    ) -> io::Result<Result<(), Failure>> {
        if let (Some(joblog), Some(end)) = (&self.joblog, delivery.program_end()) {
            joblog.add(&Run { delivery, verdict: &verdict, end })?;
        }
        Ok(verdict)
    }
}

impl Run<'_> {
    /// The exit status as GNU parallel records it: -1 if the worker stopped the command, 0 if a signal
    /// ended it.
    pub(crate) fn exit_value(&self) -> i32 {
        let exit = self.end.exit.unwrap_or(0);
        let only_looks_well = self.verdict.is_err() && self.end.exit == Some(0);
        if self.end.stopped || only_looks_well { -1 } else { exit }
    }
}
