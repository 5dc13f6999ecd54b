//! Owns the account that a producer gives: what became of its tasks.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use log::{error, info, warn};
use rabbit_work::{Error, Outcome, Receipt, Shutdown, Task};
use serde_json::{Value, json};

use super::cli::{self, Exit, print_line};
use super::input::{Bodies, End, LONGEST_BODY, Piece, Source, is_same_file, show};
use super::progress::Progress;
#[cfg(unix)]
use super::streams::refuse_where_a_stream_goes;

/// What became of the tasks, for people, for scripts, and for another try.
pub(crate) struct Report {
    started: Instant,
    sent: Sent,
    summary: Summary,
    pub(crate) failed: Option<BufWriter<File>>,
    /// What follows each task there.
    failed_end: &'static [u8],
    /// What the input is counted in.
    unit: Option<&'static str>,
    progress: Progress,
    reached: Arc<Reached>,
    published: u64,
    confirmed: u64,
    nacked: u64,
    returned: u64,
    unconfirmed: u64,
    /// A task ran out of time: there is no sense in reading on.
    pub(crate) gave_up: bool,
    /// A task that failed was told.
    told: bool,
    unwritable: Option<io::Error>,
}

/// How far it came. Shared with the last resort, which comes where something holds up the rest.
#[derive(Default)]
struct Reached {
    /// How many tasks were read from the input.
    read: AtomicU64,
    /// Of how many of them it is known what became of them.
    known: AtomicU64,
}

/// What is printed at the end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Summary {
    Json,
    Nothing,
}

/// What is printed for each confirmed task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Line,
    Nothing,
}

/// How long the last resort may take to tell how far it came: who reads that, does so at once.
const TELLING: Duration = Duration::from_millis(200);

impl Report {
    /// An account of the tasks from `source`; `failed` is to have those not confirmed.
    pub(crate) fn open(
        source: &Source,
        failed: Option<&Path>,
        summary: Summary,
    ) -> Result<Report, Error> {
        let failed = failed.map(|path| open_failed(path, source)).transpose()?;
        let quiet = summary == Summary::Json || !matches!(source, Source::Words(..));
        let sent = if quiet { Sent::Nothing } else { Sent::Line };
        let shown = sent == Sent::Line && io::stdout().is_terminal();
        let reached = Arc::<Reached>::default();
        let at_the_last = Arc::clone(&reached);
        cli::at_last_resort(move || at_the_last.tell());
        Ok(Report {
            started: Instant::now(),
            sent,
            summary,
            failed,
            failed_end: source.end(),
            unit: source.unit(),
            progress: if shown { Progress::hidden() } else { Progress::new(source) },
            reached,
            published: 0,
            confirmed: 0,
            nacked: 0,
            returned: 0,
            unconfirmed: 0,
            gave_up: false,
            told: false,
            unwritable: None,
        })
    }

    fn read(&self) -> u64 {
        self.reached.read.load(Ordering::SeqCst)
    }

    pub(crate) fn note_read(&self) {
        self.reached.read.fetch_add(1, Ordering::SeqCst);
    }

    /// What failed is written down before anything is told: whoever is told may not listen, and
    /// a signal then ends this where it stands.
    pub(crate) fn note(&mut self, receipts: Vec<Receipt>) {
        let is_confirmed = |it: &Receipt| it.outcome == Outcome::Confirmed;
        let (confirmed, failed): (Vec<_>, Vec<_>) = receipts.into_iter().partition(is_confirmed);
        for receipt in &failed {
            self.note_failed(receipt);
        }
        if !failed.is_empty() {
            self.flush_failed();
        }
        self.note_known(confirmed.len() + failed.len());
        // One line says it; a million would bury it.
        if let (Some(receipt), false) = (failed.first(), self.told) {
            self.told = true;
            let id = receipt.task.id().unwrap_or("without an id");
            error!("task {id}: {}", receipt.outcome);
        }
        for receipt in &confirmed {
            self.note_confirmed(&receipt.task);
        }
        for receipt in failed.iter().chain(&confirmed) {
            self.progress.note(receipt.task.body(), self.confirmed, self.not_confirmed());
        }
    }

    /// What was read and is not sent.
    pub(crate) fn note_unsent(&mut self, pieces: impl Iterator<Item = Piece>) {
        for piece in pieces {
            match &piece {
                Piece::Body(body) => {
                    self.note_one_unsent(body);
                    self.write_failed(self.failed_end);
                }
                Piece::TooLong(start) => {
                    self.note_one_unsent(start);
                    self.tell_too_long();
                }
                Piece::Rest(more) => self.write_failed(more),
            }
        }
    }

    fn note_one_unsent(&mut self, bytes: &[u8]) {
        self.note_read();
        self.unconfirmed += 1;
        self.write_failed(bytes);
        self.note_known(1);
    }

    fn tell_too_long(&self) {
        let unit = self.unit.unwrap_or("task");
        let number = self.read();
        error!("{unit} {number} is not published: it has more than {LONGEST_BODY} bytes");
    }

    /// Reads on where somebody wants to have the rest, once nothing is published any more.
    pub(crate) fn keep_rest(&mut self, bodies: &Bodies, shutdown: &Shutdown, why: End) -> End {
        if self.failed.is_some() && !shutdown.is_stopping() {
            warn!("the rest of the input goes to --failed and is not published");
        }
        while self.failed.is_some() {
            match bodies.next(shutdown) {
                Ok(piece) => self.note_unsent([piece].into_iter()),
                Err(End::Finished) => return why,
                Err(end) => {
                    self.note_unsent(bodies.read_ahead());
                    return end;
                }
            }
        }
        self.note_unsent(bodies.read_ahead());
        why
    }

    fn note_known(&self, count: usize) {
        self.reached.known.fetch_add(count as u64, Ordering::SeqCst);
    }

    fn note_confirmed(&mut self, task: &Task) {
        self.published += 1;
        self.confirmed += 1;
        if self.sent == Sent::Line && self.unwritable.is_none() {
            let line = format!(" [x] Sent '{}'", String::from_utf8_lossy(task.body()));
            self.unwritable = print_line(line).err();
        }
    }

    fn note_failed(&mut self, receipt: &Receipt) {
        // What is refused here is not sent.
        self.published += u64::from(!matches!(receipt.outcome, Outcome::Refused { .. }));
        match receipt.outcome {
            // Refused for all of its time: so would be what follows.
            Outcome::Nacked { .. } => {
                self.nacked += 1;
                self.gave_up = true;
            }
            Outcome::Returned { .. } => self.returned += 1,
            // A matter of this task alone.
            Outcome::Refused { .. } => self.unconfirmed += 1,
            _ => {
                self.unconfirmed += 1;
                self.gave_up = true;
            }
        }
        self.write_failed(receipt.task.body());
        self.write_failed(self.failed_end);
    }

    fn write_failed(&mut self, bytes: &[u8]) {
        let Some(failed) = &mut self.failed else { return };
        if let Err(error) = failed.write_all(bytes) {
            error!("--failed cannot be written: {error}");
            self.failed = None;
        }
    }

    fn not_confirmed(&self) -> u64 {
        self.nacked + self.returned + self.unconfirmed
    }

    pub(crate) fn close(mut self, end: &End) -> Result<Exit, Error> {
        self.flush_failed();
        self.end_progress();
        self.tell_end(end);
        self.print_summary(end);
        Ok(match end {
            _ if cli::is_interrupted() => Exit::Interrupted,
            End::Finished if self.not_confirmed() == 0 => self.exit_as_printed(),
            _ => Exit::Failed,
        })
    }

    /// Nothing is published any more.
    pub(crate) fn end_progress(&self) {
        self.progress.end();
    }

    pub(crate) fn flush_failed(&mut self) {
        if let Some(Err(error)) = self.failed.as_mut().map(BufWriter::flush) {
            error!("--failed cannot be written: {error}");
            self.failed = None;
        }
    }

    pub(crate) fn tell_end(&self, end: &End) {
        let read = self.read();
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
        if self.sent == Sent::Nothing {
            let (confirmed, failed) = (self.confirmed, self.not_confirmed());
            let seconds = self.started.elapsed().as_secs_f64();
            info!("{confirmed} tasks confirmed and {failed} not, in {seconds:.1} s");
        }
    }

    /// Where to go on another time.
    fn next(&self) -> String {
        let next = self.read() + 1;
        self.unit.map_or_else(String::new, |unit| format!("; go on at {unit} {next}"))
    }

    pub(crate) fn print_summary(&mut self, end: &End) {
        if self.summary == Summary::Json && self.unwritable.is_none() {
            self.unwritable = print_line(self.as_json(end)).err();
        }
    }

    fn as_json(&self, end: &End) -> Value {
        let mut object = json!({
            "published": self.published,
            "confirmed": self.confirmed,
            "nacked": self.nacked,
            "returned": self.returned,
            "unconfirmed": self.unconfirmed,
            "seconds": self.started.elapsed().as_secs_f64(),
        });
        if !matches!(end, End::Finished) {
            object["read"] = json!(self.read());
        }
        object
    }

    /// Every task is confirmed, but whoever reads our output may not know: a reader that went
    /// away did not want to, a full disk is an error.
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

impl Reached {
    /// In a thread of its own: what holds up the rest may hold up this, too.
    fn tell(self: Arc<Reached>) {
        let (done, told) = bounded(0);
        let tell = move || {
            let _done: Sender<Infallible> = done;
            // In this order: a task is read before it is known what became of it.
            let known = self.known.load(Ordering::SeqCst);
            let read = self.read.load(Ordering::SeqCst);
            error!(
                "ended in the middle after {read} tasks were read; what became of {} of them is \
                 not known",
                read - known
            );
        };
        if thread::Builder::new().name("telling".into()).spawn(tell).is_ok() {
            let _ = told.recv_timeout(TELLING);
        }
    }
}

/// The summary of a producer that never came to read a task.
pub(crate) fn of_nothing() -> Value {
    json!({
        "published": 0,
        "confirmed": 0,
        "nacked": 0,
        "returned": 0,
        "unconfirmed": 0,
        "seconds": 0.0,
        "read": 0,
    })
}

fn open_failed(path: &Path, source: &Source) -> Result<BufWriter<File>, Error> {
    cli::refuse_dash("--failed", path)?;
    #[cfg(unix)]
    refuse_where_a_stream_goes("--failed", path)?;
    if source.path().is_some_and(|input| is_same_file(input, path)) {
        return Err(Error::setting("--failed", "it would overwrite the input"));
    }
    let file =
        File::create(path).map_err(|error| Error::setting("--failed", show(path, &error)))?;
    Ok(BufWriter::new(file))
}
