//! `producer --wait`: publishes the input as a batch, and waits until each of its tasks has ended.

pub(crate) mod args;
mod file;
mod output;
mod progress;
mod record;

use std::collections::BTreeSet;
use std::mem;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use log::{info, warn};
use rabbit_work::{
    Batch, BatchOutcome, BatchSummary, Broker, Outcome, Queue, Receipt, Shutdown, TaskEnd,
};

use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::common::signals::is_interrupted;
use crate::cli::common::text::one_line;
use crate::cli::producer::options::{Options, TaskArgs};
use crate::cli::producer::publishing::{Publishing, Sent};
use crate::cli::producer::wait::args::WaitArgs;
use crate::cli::producer::wait::file::OutcomeFile;
use crate::cli::producer::wait::output::Printer;
use crate::cli::producer::wait::progress::WaitProgress;
use crate::cli::producer::wait::record::{Line, Position};

/// The batch of a producer that waits.
pub(crate) struct Waiting<'a> {
    batch: Batch,
    queue: String,
    task: &'a TaskArgs,
    file: Option<OutcomeFile>,
    printer: Printer,
    /// How much of the input was read.
    position: Position,
    /// How much of it an earlier run had read, until we have read as much.
    earlier: Option<Position>,
    /// Tasks of that part that are still to be published: only if it is the same input.
    held: Vec<(u64, Vec<u8>)>,
    /// The outcomes of an earlier run are to be printed.
    prints_earlier: bool,
}

/// The exit status of a wait.
pub(crate) struct Waited(Exit);

const ONLY_WITH_A_FILE: &str = "workers go on with the tasks. A wait can be continued only if it was \
                                started with --outcomes FILE";

impl<'a> Waiting<'a> {
    /// Opens the batch: a new one, or the one of the file of --outcomes.
    pub(crate) fn open(
        options: &'a Options,
        broker: &Broker,
        queue: &Queue,
        shutdown: &Shutdown,
    ) -> Result<Waiting<'a>, CommandError> {
        let file = options.wait.outcomes.as_deref().map(OutcomeFile::open).transpose()?;
        let found = file.as_ref().map(|file| resume(file, broker, queue)).transpose()?.flatten();
        let (resumed, earlier) = found.map_or((None, None), |(batch, read)| (Some(batch), read));
        let prints_earlier = resumed.is_some();
        let batch = resumed.unwrap_or_else(|| Batch::new(broker, queue));
        let batch = batch.window(options.window as usize).timeout(options.timeout);
        let batch = batch.shutdown(shutdown);
        let printer = printer(&options.wait)?;
        Ok(Waiting {
            batch: if printer.is_on() { batch.outputs() } else { batch },
            queue: queue.name().to_string(),
            task: &options.task,
            file,
            printer,
            position: Position::START,
            earlier,
            held: Vec::new(),
            prints_earlier,
        })
    }

    /// Publishes what was held, once the input has shown to be the one of the earlier run.
    fn check_input(&mut self) -> Result<Vec<Receipt>, CommandError> {
        match self.earlier {
            Some(earlier) if self.position.read == earlier.read => {
                if self.position != earlier {
                    return Err(other_input("it belongs to another batch: the input differs"));
                }
                self.earlier = None;
            }
            _ => return Ok(Vec::new()),
        }
        let mut receipts = Vec::new();
        for (n, body) in mem::take(&mut self.held) {
            receipts.extend(self.batch.send_numbered(n, self.task.task(body))?);
        }
        Ok(receipts)
    }

    fn note(&mut self, receipts: &[Receipt]) {
        let Some(file) = &mut self.file else { return };
        let confirmed = receipts.iter().filter(|it| it.outcome == Outcome::Confirmed);
        let numbers = confirmed.filter_map(|it| self.batch.number_of(&it.task)).collect();
        file.note_published(numbers, self.position);
    }

    /// How the tasks stand.
    pub(crate) fn summary(&self) -> BatchSummary {
        self.batch.summary()
    }

    /// Waits until each published task has ended.
    pub(crate) fn wait(
        &mut self,
        options: &Options,
        shutdown: &Shutdown,
    ) -> Result<Waited, CommandError> {
        if self.file.as_ref().is_some_and(|file| !file.is_writable()) {
            return Ok(Waited(Exit::Failed));
        }
        let started = Instant::now();
        if self.printer.is_on() {
            let unpublished = |n: &u64| !self.batch.is_published(*n);
            self.printer.skip((1..=self.position.read).filter(unpublished).collect());
            self.print_earlier()?;
        }
        let waited = self.wait_each(options.wait.wait_timeout, shutdown);
        self.printer.finish();
        let summary = waited?;
        log_summary(summary, started.elapsed());
        Ok(Waited(self.exit(summary, options.wait.outcomes.as_deref())))
    }

    /// Prints the outputs of the tasks that have ended in earlier runs, so that this one prints all.
    fn print_earlier(&mut self) -> Result<(), CommandError> {
        let Some(file) = self.file.as_ref().filter(|_| self.prints_earlier) else { return Ok(()) };
        let mut seen = BTreeSet::new();
        let printer = &mut self.printer;
        file.read(|line| {
            if let Line::Ended(outcome) = line {
                if seen.insert(outcome.n) {
                    printer.note(&outcome);
                }
            }
            Ok(())
        })
    }

    fn wait_each(
        &mut self,
        limit: Option<Duration>,
        shutdown: &Shutdown,
    ) -> Result<BatchSummary, CommandError> {
        let progress = WaitProgress::new(self.batch.summary());
        let (file, printer) = (&mut self.file, &mut self.printer);
        let mut has_logged_dead = false;
        let summary = self.batch.wait_each(limit, shutdown, |outcomes| {
            if file.as_mut().is_some_and(|file| !file.note_ended(outcomes)) {
                return ControlFlow::Break(());
            }
            if printer.is_on() {
                progress.suspend(|| outcomes.iter().for_each(|it| printer.note(it)));
            }
            log_first_dead(outcomes, &mut has_logged_dead);
            progress.note(outcomes);
            ControlFlow::Continue(())
        })?;
        Ok(summary)
    }

    fn exit(&self, summary: BatchSummary, path: Option<&Path>) -> Exit {
        let is_unwritable = self.file.as_ref().is_some_and(|file| !file.is_writable());
        if self.printer.has_failed() || is_unwritable {
            return Exit::Failed;
        }
        if summary.left > 0 {
            log_how_to_go_on(summary.left, path);
            return if is_interrupted() { Exit::Interrupted } else { Exit::Unfinished };
        }
        if summary.dead > 0 { Exit::Failed } else { Exit::Success }
    }
}

impl Publishing for Waiting<'_> {
    /// A batch with a file of an earlier run that has ended asks the broker for nothing.
    fn connect(&mut self) -> Result<(), CommandError> {
        if self.prints_earlier && self.batch.summary().left == 0 {
            return Ok(());
        }
        self.batch.connect()?;
        match &mut self.file {
            Some(file) if !self.prints_earlier => file.begin(self.batch.id(), &self.queue),
            _ => Ok(()),
        }
    }

    fn has_priorities(&self) -> Option<bool> {
        self.batch.has_priorities()
    }

    fn has_published(&self, n: u64) -> bool {
        self.batch.is_published(n)
    }

    fn send(&mut self, body: Vec<u8>) -> Result<Sent, CommandError> {
        self.position.add(&body);
        let n = self.position.read;
        if self.batch.is_published(n) {
            let receipts = self.check_input()?;
            self.note(&receipts);
            return Ok(Sent::Before(receipts));
        }
        let receipts = if self.earlier.is_some() {
            self.held.push((n, body));
            self.check_input()?
        } else {
            self.batch.send_numbered(n, self.task.task(body))?
        };
        self.note(&receipts);
        Ok(Sent::Now(receipts))
    }

    fn skip(&mut self, start: &[u8]) -> Result<Vec<Receipt>, CommandError> {
        self.position.add(start);
        let receipts = self.check_input()?;
        self.note(&receipts);
        Ok(receipts)
    }

    fn flush(&mut self) -> Vec<Receipt> {
        let receipts = self.batch.flush();
        self.note(&receipts);
        receipts
    }

    fn take_held(&mut self) -> Vec<Vec<u8>> {
        mem::take(&mut self.held).into_iter().map(|(_, body)| body).collect()
    }

    fn end(&mut self) -> Result<(), CommandError> {
        match self.earlier {
            Some(_) => Err(other_input("it belongs to another batch: the input was longer")),
            None => Ok(()),
        }
    }
}

impl Waited {
    /// The exit status, if that of publishing is this.
    pub(crate) fn exit_after(&self, published: Exit) -> Exit {
        match (published, self.0) {
            (Exit::Success | Exit::Failed, Exit::Unfinished) => Exit::Unfinished,
            (Exit::Success, exit) => exit,
            (published, _) => published,
        }
    }
}

/// Logs that a stop before the wait has left it out. How to go on with --outcomes is logged already.
pub(crate) fn log_that_nobody_waits(options: &Options) {
    if options.wait.outcomes.is_none() {
        warn!("nobody waits for the published tasks; {ONLY_WITH_A_FILE}");
    }
}

fn log_how_to_go_on(left: u64, path: Option<&Path>) {
    let how = path.map_or_else(|| ONLY_WITH_A_FILE.to_string(), how_to_go_on);
    warn!("{left} tasks have not ended; {how}");
}

/// How to go on with a batch that has this file.
pub(crate) fn how_to_go_on(path: &Path) -> String {
    format!("to go on, run the same command again, with --outcomes {}", path.display())
}

fn printer(args: &WaitArgs) -> Result<Printer, CommandError> {
    match (args.output, args.keep_order) {
        (false, _) => Ok(Printer::none()),
        (true, false) => Ok(Printer::in_order_of_arrival()),
        (true, true) => Printer::in_order_of_input(),
    }
}

/// The batch of a file, and how much of the input was read; `None` if the file is empty.
fn resume(
    file: &OutcomeFile,
    broker: &Broker,
    queue: &Queue,
) -> Result<Option<(Batch, Option<Position>)>, CommandError> {
    let mut batch: Option<Batch> = None;
    let (mut read, mut published, mut ended) = (None::<Position>, 0, 0);
    file.read(|line| match (line, &mut batch) {
        (Line::Batch { batch: id, queue: of }, None) if of == queue.name() => {
            let resumed = Batch::resume(broker, queue, &id);
            batch = Some(resumed.map_err(|error| error.to_string())?);
            Ok(())
        }
        (Line::Batch { queue, .. }, None) => Err(format!("its batch is of queue '{queue}'")),
        (Line::Published(line), Some(batch)) => {
            for n in line.numbers.iter().flat_map(|(from, to)| *from..=*to) {
                batch.mark_published(n);
                published += 1;
            }
            read = read.into_iter().chain([line.position]).max_by_key(|it| it.read);
            Ok(())
        }
        (Line::Ended(outcome), Some(batch)) => {
            ended += u64::from(batch.mark_ended(&outcome));
            Ok(())
        }
        (Line::Batch { .. }, Some(_)) => Err("it begins another batch".into()),
        (_, None) => Err("the line that names the batch is missing".into()),
    })?;
    if batch.is_some() {
        file.log_resumed(published, ended);
    }
    Ok(batch.map(|batch| (batch, read)))
}

fn other_input(reason: &str) -> CommandError {
    CommandError::usage(
        "--outcomes",
        format!("{reason}; give the same input, or take another file"),
    )
}

/// One line is enough: a million would hide it.
fn log_first_dead(outcomes: &[BatchOutcome], has_logged: &mut bool) {
    let first = outcomes.iter().find(|it| it.end == TaskEnd::Dead);
    if let (Some(outcome), false) = (first, *has_logged) {
        *has_logged = true;
        let reason = outcome.reason.as_deref().unwrap_or_default();
        warn!(
            "task {} ({}) is a dead letter: {}",
            outcome.n,
            one_line(&outcome.task),
            one_line(reason)
        );
    }
}

fn log_summary(summary: BatchSummary, elapsed: Duration) {
    let BatchSummary { done, dead, left, .. } = summary;
    let seconds = elapsed.as_secs_f64();
    info!("{done} tasks done, {dead} dead, {left} left, waited for {seconds:.1} s");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_that_of_publishing_unless_the_wait_says_more() {
        use Exit::{Failed, Interrupted, Success, Unfinished, Usage};

        for (published, waited, exit) in [
            (Success, Success, Success),
            (Success, Failed, Failed),
            (Success, Unfinished, Unfinished),
            (Success, Interrupted, Interrupted),
            // A task is not confirmed.
            (Failed, Success, Failed),
            (Failed, Failed, Failed),
            (Failed, Unfinished, Unfinished),
            (Interrupted, Interrupted, Interrupted),
            (Interrupted, Success, Interrupted),
            (Usage, Unfinished, Usage),
        ] {
            let found = Waited(waited).exit_after(published);
            assert_eq!(found, exit, "{published:?}, then {waited:?}");
        }
    }
}
