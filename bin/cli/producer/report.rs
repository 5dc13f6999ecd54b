//! [`Report`]: what became of the tasks, in the log, on standard output and in the file of --failed.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use log::{error, info, warn};
use rabbit_work::{BatchSummary, Outcome, Receipt, Shutdown, Task};

use crate::cli::common::arguments::refuse_dash;
use crate::cli::common::error::CommandError;
use crate::cli::common::exit::Exit;
use crate::cli::common::signals::{is_interrupted, on_forced_exit};
use crate::cli::common::stdio::{print_line, refuse_file_of_a_stream};
use crate::cli::producer::input::{Bodies, End, LONGEST_BODY, Piece, show};
use crate::cli::producer::options::Options;
use crate::cli::producer::position::Position;
use crate::cli::producer::progress::Progress;
use crate::cli::producer::publishing::Publishing;
use crate::cli::producer::source::{Source, is_same_file};
use crate::cli::producer::summary::Totals;
use crate::cli::producer::wait::how_to_go_on;

/// What became of the tasks: for people, for scripts, and for the next run.
pub(crate) struct Report {
    started: Instant,
    printed: Printed,
    failed: Option<BufWriter<File>>,
    /// What ends each task there.
    failed_end: &'static [u8],
    /// What the input is counted in.
    unit: Option<&'static str>,
    /// The file of --outcomes.
    outcomes: Option<PathBuf>,
    progress: Progress,
    position: Arc<Position>,
    totals: Totals,
    /// A task ran out of time: the tasks after it would, too.
    pub(crate) gave_up: bool,
    /// A failed task was logged.
    has_logged_failure: bool,
    /// Why standard output cannot be written.
    unwritable: Option<io::Error>,
}

/// What standard output gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Printed {
    /// A line for each confirmed task.
    Lines,
    /// The summary of --json.
    Summary,
    Nothing,
}

impl Report {
    pub(crate) fn open(source: &Source, options: &Options) -> Result<Report, CommandError> {
        let failed = options.failed.as_deref().map(|path| open_failed(path, source)).transpose()?;
        let printed = match source {
            _ if options.json => Printed::Summary,
            _ if options.wait.output => Printed::Nothing,
            Source::Words(..) => Printed::Lines,
            Source::Whole(..) | Source::Pieces(..) => Printed::Nothing,
        };
        let shows_tasks = printed == Printed::Lines && io::stdout().is_terminal();
        let position = Arc::<Position>::default();
        let shared = Arc::clone(&position);
        on_forced_exit(move || shared.log_forced_exit());
        Ok(Report {
            started: Instant::now(),
            printed,
            failed,
            failed_end: source.end(),
            unit: source.unit(),
            outcomes: options.wait.outcomes.clone(),
            progress: if shows_tasks { Progress::hidden() } else { Progress::new(source) },
            position,
            totals: Totals::default(),
            gave_up: false,
            has_logged_failure: false,
            unwritable: None,
        })
    }

    pub(crate) fn has_failed_file(&self) -> bool {
        self.failed.is_some()
    }

    pub(crate) fn note_read(&self) {
        self.position.note_read();
    }

    /// Counts a task that an earlier run has published.
    pub(crate) fn note_published_before(&mut self, length: usize) {
        self.position.note_resolved(1);
        self.progress.advance(length);
    }

    /// Notes how the tasks have ended, for the summary.
    pub(crate) fn note_ended(&mut self, summary: BatchSummary) {
        self.totals.ended = Some(summary);
    }

    /// Writes --failed before it logs: a log that nobody reads blocks, and a signal then ends the
    /// process there.
    pub(crate) fn note(&mut self, receipts: &[Receipt]) {
        if receipts.is_empty() {
            return;
        }
        let is_confirmed = |it: &&Receipt| it.outcome == Outcome::Confirmed;
        let failed: Vec<&Receipt> = receipts.iter().filter(|it| !is_confirmed(it)).collect();
        for receipt in &failed {
            self.note_failed(receipt);
        }
        if !failed.is_empty() {
            self.flush_failed();
        }
        self.position.note_resolved(receipts.len());
        self.log_first_failure(&failed);
        for receipt in receipts.iter().filter(is_confirmed) {
            self.note_confirmed(&receipt.task);
        }
        let bodies = receipts.iter().map(|receipt| receipt.task.body());
        self.progress.note(bodies, self.totals.confirmed, self.totals.not_confirmed());
    }

    /// One line is enough: a million would hide it.
    fn log_first_failure(&mut self, failed: &[&Receipt]) {
        if let (Some(receipt), false) = (failed.first(), self.has_logged_failure) {
            self.has_logged_failure = true;
            let (id, outcome) = (receipt.task.id(), &receipt.outcome);
            let name = id.unwrap_or("without an id");
            error!(task = id.unwrap_or_default(), reason:% = outcome; "task {name}: {outcome}");
        }
    }

    /// Counts what was read and is not published, and writes it to --failed. What an earlier run has
    /// published is neither.
    pub(crate) fn note_unsent(
        &mut self,
        pieces: impl Iterator<Item = Piece>,
        publishing: &dyn Publishing,
    ) {
        for piece in pieces {
            match &piece {
                Piece::Body(body) => {
                    self.note_read();
                    if publishing.has_published(self.position.read()) {
                        self.position.note_resolved(1);
                    } else {
                        self.note_unconfirmed(body);
                        self.write_failed(self.failed_end);
                    }
                }
                Piece::TooLong(start) => {
                    self.note_read();
                    self.note_unconfirmed(start);
                    self.log_too_long();
                }
                Piece::Rest(more) => self.write_failed(more),
            }
        }
    }

    /// The same for bodies that were counted when they were read.
    pub(crate) fn note_held(&mut self, bodies: &[Vec<u8>]) {
        for body in bodies {
            self.note_unconfirmed(body);
            self.write_failed(self.failed_end);
        }
    }

    fn note_unconfirmed(&mut self, bytes: &[u8]) {
        self.totals.unconfirmed += 1;
        self.write_failed(bytes);
        self.position.note_resolved(1);
    }

    fn log_too_long(&self) {
        let unit = self.unit.unwrap_or("task");
        let number = self.position.read();
        error!("{unit} {number} is not published: it has more than {LONGEST_BODY} bytes");
    }

    /// Reads the rest of the input for --failed, if there is such a file.
    pub(crate) fn keep_rest(
        &mut self,
        bodies: &mut Bodies,
        publishing: &dyn Publishing,
        shutdown: &Shutdown,
        why: End,
    ) -> End {
        if self.failed.is_some() && !shutdown.is_stopping() {
            warn!("the rest of the input goes to --failed and is not published");
        }
        while self.failed.is_some() {
            match bodies.next(shutdown) {
                Ok(piece) => self.note_unsent([piece].into_iter(), publishing),
                Err(End::Finished) => return why,
                Err(end) => {
                    self.note_unsent(bodies.read_ahead(), publishing);
                    return end;
                }
            }
        }
        self.note_unsent(bodies.read_ahead(), publishing);
        why
    }

    fn note_confirmed(&mut self, task: &Task) {
        self.totals.published += 1;
        self.totals.confirmed += 1;
        if self.printed == Printed::Lines && self.unwritable.is_none() {
            let line = format!(" [x] Sent '{}'", String::from_utf8_lossy(task.body()));
            self.unwritable = print_line(line).err();
        }
    }

    fn note_failed(&mut self, receipt: &Receipt) {
        let was_sent = !matches!(receipt.outcome, Outcome::Refused { .. } | Outcome::Unsent { .. });
        self.totals.published += u64::from(was_sent);
        match receipt.outcome {
            // The broker refused it until its time was over, and would refuse the next ones.
            Outcome::Nacked { .. } => {
                self.totals.nacked += 1;
                self.gave_up = true;
            }
            Outcome::Returned { .. } => self.totals.returned += 1,
            // Only this task is at fault.
            Outcome::Refused { .. } => self.totals.unconfirmed += 1,
            _ => {
                self.totals.unconfirmed += 1;
                self.gave_up = true;
            }
        }
        self.write_failed(receipt.task.body());
        self.write_failed(self.failed_end);
    }

    fn write_failed(&mut self, bytes: &[u8]) {
        let Some(failed) = &mut self.failed else { return };
        if let Err(error) = failed.write_all(bytes) {
            error!("--failed cannot be written: {error}; unconfirmed tasks are missing in it");
            self.failed = None;
        }
    }

    pub(crate) fn close(mut self, end: &End) -> Exit {
        self.end_publishing(end);
        self.print_summary(end);
        self.exit(end)
    }

    pub(crate) fn end_publishing(&mut self, end: &End) {
        self.flush_failed();
        self.end_progress();
        self.log_end(end);
    }

    /// The exit status after the publishes.
    pub(crate) fn exit(&self, end: &End) -> Exit {
        match end {
            _ if is_interrupted() => Exit::Interrupted,
            End::Finished if self.totals.not_confirmed() == 0 => self.exit_as_printed(),
            _ => Exit::Failed,
        }
    }

    /// Removes the progress bar.
    pub(crate) fn end_progress(&self) {
        self.progress.end();
    }

    pub(crate) fn flush_failed(&mut self) {
        if let Some(Err(error)) = self.failed.as_mut().map(BufWriter::flush) {
            error!("--failed cannot be written: {error}");
            self.failed = None;
        }
    }

    pub(crate) fn log_end(&self, end: &End) {
        let read = self.position.read();
        match end {
            End::Finished => {}
            End::Stopped => warn!("stopped after {read} tasks were read{}", self.next()),
            End::GaveUp if self.failed.is_some() => {
                warn!("gave up; all {read} tasks were read, and --failed has those not confirmed");
            }
            End::GaveUp => error!("gave up after {read} tasks were read{}", self.next()),
            End::Unreadable(error) => {
                error!("stopped after {read} tasks were read{}: {error}", self.next());
            }
        }
        if self.printed != Printed::Lines {
            let (confirmed, failed) = (self.totals.confirmed, self.totals.not_confirmed());
            let seconds = self.started.elapsed().as_secs_f64();
            info!("{confirmed} tasks confirmed and {failed} not, in {seconds:.1} s");
        }
    }

    /// Where the next run can continue. With --outcomes, that run finds it out.
    fn next(&self) -> String {
        if let Some(path) = &self.outcomes {
            return format!("; {}", how_to_go_on(path));
        }
        let next = self.position.read() + 1;
        self.unit.map_or_else(String::new, |unit| format!("; continue with {unit} {next}"))
    }

    pub(crate) fn print_summary(&mut self, end: &End) {
        if self.printed == Printed::Summary && self.unwritable.is_none() {
            let seconds = self.started.elapsed().as_secs_f64();
            let read = (!matches!(end, End::Finished)).then(|| self.position.read());
            self.unwritable = print_line(self.totals.as_json(seconds, read)).err();
        }
    }

    /// The exit after every task is confirmed. A reader of standard output that went away is no
    /// error; a full disk is one.
    fn exit_as_printed(&self) -> Exit {
        match &self.unwritable {
            None => Exit::Success,
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
            Some(error) => {
                error!("every task is confirmed, but standard output cannot be written: {error}");
                Exit::Failed
            }
        }
    }
}

fn open_failed(path: &Path, source: &Source) -> Result<BufWriter<File>, CommandError> {
    refuse_dash("--failed", path)?;
    refuse_file_of_a_stream("--failed", path)?;
    if source.path().is_some_and(|input| is_same_file(input, path)) {
        return Err(CommandError::usage(
            "--failed",
            "it would overwrite the input; take another file",
        ));
    }
    let file =
        File::create(path).map_err(|error| CommandError::usage("--failed", show(path, &error)))?;
    Ok(BufWriter::new(file))
}
