//! Reads the bodies of the tasks in a thread of its own, with limited read-ahead.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::{mem, vec};

use crossbeam_channel::{Receiver, Select, Sender, bounded, select_biased, unbounded};
use rabbit_work::Shutdown;

use crate::cli::common::error::CommandError;
use crate::cli::common::stdio::{is_unreadable, metadata};
use crate::cli::producer::source::Source;

/// Why no further task was read.
#[derive(Debug)]
pub(crate) enum End {
    Finished,
    Stopped,
    GaveUp,
    Unreadable(io::Error),
}

/// What is read at a time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A task's body.
    Body(Vec<u8>),
    /// The start of a task that is too long to be published.
    TooLong(Vec<u8>),
    /// More of that task. The last piece of it has the byte that ends the task.
    Rest(Vec<u8>),
}

/// The bodies as they are read, by a thread of its own: a read may block for ever, and a stop must
/// not.
pub(crate) struct Bodies {
    receiver: Receiver<io::Result<Vec<Piece>>>,
    /// What is left of the batch that was taken last.
    batch: vec::IntoIter<Piece>,
    /// Sends the reader the length of each batch that was taken.
    taken: Sender<usize>,
}

/// The reader's end of [`Bodies`]. It sends many pieces together: to pass them on one by one would
/// take longer than to publish them.
struct Feed {
    sender: Sender<io::Result<Vec<Piece>>>,
    taken: Receiver<usize>,
    /// The pieces that are still to be sent, and how many bytes they have.
    batch: Vec<Piece>,
    bytes: usize,
    /// The bytes of the batches that were sent and not taken.
    ahead: usize,
}

/// The most batches that are read ahead, and the most pieces and bytes of each, unless a single piece
/// is larger.
const MOST_AHEAD: usize = 4;
const LARGEST_BATCH: usize = 64;
const BYTES_OF_A_BATCH: usize = 64 * 1024;
/// The most bytes that are read ahead, unless a single piece is larger; as many as may be published
/// and not confirmed.
const BYTES_AHEAD: usize = 8 * 1024 * 1024;

/// The longest body; RabbitMQ takes no longer one.
pub(crate) const LONGEST_BODY: u64 = 128 * 1024 * 1024;

/// How much of a longer body is read at a time, so that it is never in memory as a whole.
const REST: u64 = 1024 * 1024;

/// An input that pauses for longer than this is waited for without publishes in flight.
const LULL: Duration = Duration::from_millis(50);

impl Bodies {
    pub(crate) fn open(source: &Source) -> Result<Bodies, CommandError> {
        let (sender, receiver) = bounded(MOST_AHEAD);
        let (taken, lengths) = unbounded();
        let feed = Feed { sender, taken: lengths, batch: Vec::new(), bytes: 0, ahead: 0 };
        let spawned = match source {
            Source::Words(body, count) => {
                let (body, count) = (body.clone(), *count);
                spawn_reader(move || repeat(&body, count, feed))
            }
            Source::Whole(path, count) => {
                let (body, count) = (read_whole(path)?, *count);
                spawn_reader(move || repeat(&body, count, feed))
            }
            Source::Pieces(path, end) => {
                let (input, end) = (open_input("--lines", path)?, *end);
                spawn_reader(move || send_pieces(BufReader::new(input), end, feed))
            }
        };
        spawned.map_err(|error| CommandError::usage("reading", error))?;
        Ok(Bodies { receiver, batch: Vec::new().into_iter(), taken })
    }

    /// The next piece, or why there is none.
    pub(crate) fn next(&mut self, shutdown: &Shutdown) -> Result<Piece, End> {
        if shutdown.is_stopping() {
            return Err(End::Stopped);
        }
        loop {
            if let Some(piece) = self.batch.next() {
                return Ok(piece);
            }
            let batch = select_biased! {
                recv(shutdown.stopping()) -> _ => return Err(End::Stopped),
                recv(self.receiver) -> batch => batch.map_err(|_| End::Finished)?,
            };
            let batch = batch.map_err(End::Unreadable)?;
            // The reader may have read everything and ended.
            let _ = self.taken.send(batch.iter().map(|piece| piece.bytes().len()).sum());
            self.batch = batch.into_iter();
        }
    }

    /// Whether the input continues or ends within a moment.
    pub(crate) fn are_coming(&self, shutdown: &Shutdown) -> bool {
        if !self.batch.as_slice().is_empty() {
            return true;
        }
        let mut ready = Select::new();
        ready.recv(&self.receiver);
        ready.recv(shutdown.stopping());
        ready.ready_timeout(LULL).is_ok()
    }

    /// Takes what was read ahead.
    pub(crate) fn read_ahead(&mut self) -> impl Iterator<Item = Piece> {
        // No more than that: the reader continues while there is room.
        let count = self.receiver.len();
        let batches = self.receiver.try_iter().take(count).filter_map(Result::ok).flatten();
        self.batch.by_ref().chain(batches)
    }
}

impl Piece {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Piece::Body(bytes) | Piece::TooLong(bytes) | Piece::Rest(bytes) => bytes,
        }
    }
}

impl Feed {
    /// Adds a piece to the batch, which is sent when it is full; `None` if nobody takes pieces any
    /// more.
    fn add(&mut self, piece: Piece) -> Option<()> {
        self.bytes += piece.bytes().len();
        self.batch.push(piece);
        let is_full = self.batch.len() >= LARGEST_BATCH || self.bytes >= BYTES_OF_A_BATCH;
        if is_full { self.send() } else { Some(()) }
    }

    /// Sends the batch once there is room for it.
    fn send(&mut self) -> Option<()> {
        if self.batch.is_empty() {
            return Some(());
        }
        self.ahead -= self.taken.try_iter().sum::<usize>();
        while self.ahead > 0 && self.ahead + self.bytes > BYTES_AHEAD {
            self.ahead -= self.taken.recv().ok()?;
        }
        self.ahead += mem::take(&mut self.bytes);
        let next = Vec::with_capacity(self.batch.len());
        self.sender.send(Ok(mem::replace(&mut self.batch, next))).ok()
    }

    /// Sends an error, as the last.
    fn fail(&mut self, error: io::Error) -> Option<()> {
        self.send()?;
        self.sender.send(Err(error)).ok()
    }
}

fn spawn_reader(read: impl FnOnce() -> Option<()> + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("reader".into()).spawn(read).map(drop)
}

fn repeat(body: &[u8], count: u64, mut feed: Feed) -> Option<()> {
    for _ in 0..count {
        feed.add(Piece::Body(body.to_vec()))?;
    }
    feed.send()
}

fn open_input(option: &'static str, path: &Path) -> Result<Box<dyn Read + Send>, CommandError> {
    if path == Path::new("-") {
        if is_unreadable(&io::stdin()) {
            let reason = "standard input is closed, not open for reading, or /dev/null opened for \
                          writing as well; for an empty input use </dev/null";
            return Err(CommandError::usage(option, reason));
        }
        refuse_folder(option, path, &io::stdin())?;
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path).map_err(|error| CommandError::usage(option, show(path, &error)))?;
    refuse_folder(option, path, &file)?;
    Ok(Box::new(file))
}

/// A directory can be opened and not be read. The read would fail only after --failed was truncated.
fn refuse_folder(option: &'static str, path: &Path, input: &impl AsFd) -> Result<(), CommandError> {
    if metadata(input).is_ok_and(|it| it.is_dir()) {
        return Err(CommandError::usage(option, format!("{}: it is a directory", path.display())));
    }
    Ok(())
}

fn read_whole(path: &Path) -> Result<Vec<u8>, CommandError> {
    let mut body = Vec::new();
    let input = open_input("--body-file", path)?;
    let read = input.take(LONGEST_BODY + 1).read_to_end(&mut body);
    read.map_err(|error| CommandError::usage("--body-file", show(path, &error)))?;
    if body.len() as u64 > LONGEST_BODY {
        let error = format!("{}: it has more than {LONGEST_BODY} bytes", path.display());
        return Err(CommandError::usage("--body-file", error));
    }
    Ok(body)
}

fn send_pieces(mut input: BufReader<impl Read>, end: u8, mut feed: Feed) -> Option<()> {
    loop {
        if !input.buffer().contains(&end) {
            // The next read may wait, and what was read must not.
            feed.send()?;
        }
        match send_next(&mut input, end, &mut feed) {
            Ok(more) => more?,
            Err(error) => return feed.fail(error),
        }
    }
}

/// Sends the next task of the input without the byte that ends it; `None` at the end of the input,
/// or if nobody takes pieces any more.
fn send_next(input: &mut impl BufRead, end: u8, feed: &mut Feed) -> io::Result<Option<()>> {
    let mut bytes = Vec::new();
    let read = input.take(LONGEST_BODY + 1).read_until(end, &mut bytes)? as u64;
    if bytes.last() == Some(&end) {
        bytes.pop();
    } else if read > LONGEST_BODY {
        return send_too_long(bytes, input, end, feed);
    } else if read == 0 {
        return Ok(None);
    }
    Ok(feed.add(Piece::Body(bytes)))
}

/// Sends a task in pieces. At the end of the input, it adds the byte that ends a task.
fn send_too_long(
    start: Vec<u8>,
    input: &mut impl BufRead,
    end: u8,
    feed: &mut Feed,
) -> io::Result<Option<()>> {
    let mut sent = feed.add(Piece::TooLong(start));
    while sent.is_some() {
        let mut bytes = Vec::new();
        if input.take(REST).read_until(end, &mut bytes)? == 0 {
            bytes.push(end);
        }
        let is_last = bytes.last() == Some(&end);
        sent = feed.add(Piece::Rest(bytes));
        if is_last {
            break;
        }
    }
    Ok(sent)
}

pub(crate) fn show(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
