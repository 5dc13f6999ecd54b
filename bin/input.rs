//! Owns what the producer reads: where its tasks' bodies come from, and the thread that reads
//! them.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
#[cfg(unix)]
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Select, Sender, bounded, select_biased, unbounded};
use rabbit_work::{Error, Shutdown};

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

/// Where the tasks' bodies come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// The words of the command line as one body, so many times.
    Words(Vec<u8>, u64),
    /// A whole file, so many times.
    Whole(PathBuf, u64),
    /// The pieces of a file, each ended by this byte.
    Pieces(PathBuf, u8),
}

impl Source {
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Source::Words(..) => None,
            Source::Whole(path, _) | Source::Pieces(path, _) => Some(path),
        }
    }

    /// What the input is counted in, where it can be gone on with in the middle.
    pub(crate) fn unit(&self) -> Option<&'static str> {
        match self {
            Source::Words(..) | Source::Whole(..) => None,
            Source::Pieces(_, b'\n') => Some("line"),
            Source::Pieces(..) => Some("task"),
        }
    }

    /// Refuses tasks that, written down, would be fed again as others.
    pub(crate) fn validate_for_another_feed(&self) -> Result<(), Error> {
        let reason = match self {
            Source::Words(body, _) if body.contains(&b'\n') => {
                "it has one task for each line, and this message has several; give it with \
                 --body-file, or on standard input with --null"
            }
            Source::Whole(_, 2..) => "with --body-file it has one body, and --repeat makes several",
            Source::Words(..) | Source::Whole(..) | Source::Pieces(..) => return Ok(()),
        };
        Err(Error::setting("--failed", reason))
    }

    /// What follows each task where they are written down.
    pub(crate) fn end(&self) -> &'static [u8] {
        match self {
            Source::Pieces(_, 0) => b"\0",
            Source::Whole(..) => b"",
            Source::Words(..) | Source::Pieces(..) => b"\n",
        }
    }
}

/// The bodies as they are read, by a thread of its own: reading may block for ever, and a stop
/// must not.
pub(crate) struct Bodies {
    receiver: Receiver<io::Result<Piece>>,
    /// Tells the reader the length of each piece that was asked for.
    taken: Sender<usize>,
}

/// The reader's end of it.
struct Feed {
    sender: Sender<io::Result<Piece>>,
    taken: Receiver<usize>,
    /// The bytes of the pieces that were sent and not taken.
    ahead: usize,
}

/// The most pieces that are read ahead.
const MOST_AHEAD: usize = 256;
/// The most bytes of pieces that are read ahead, unless it is a single one; as many as may be in
/// flight.
const BYTES_AHEAD: usize = 8 * 1024 * 1024;

/// The longest body taken; RabbitMQ takes no longer one either.
pub(crate) const LONGEST_BODY: u64 = 128 * 1024 * 1024;

/// How much of a longer one is read at a time, so that it is never in memory as a whole.
const REST: u64 = 1024 * 1024;

/// An input that pauses for longer than this is not a stream of tasks in full flow.
const LULL: Duration = Duration::from_millis(50);

impl Bodies {
    pub(crate) fn open(source: &Source) -> Result<Bodies, Error> {
        let (sender, receiver) = bounded(MOST_AHEAD);
        let (taken, told) = unbounded();
        let feed = Feed { sender, taken: told, ahead: 0 };
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
        spawned.map_err(|error| Error::setting("reading", error.to_string()))?;
        Ok(Bodies { receiver, taken })
    }

    /// The next piece, or why there is none.
    pub(crate) fn next(&self, shutdown: &Shutdown) -> Result<Piece, End> {
        let piece = select_biased! {
            recv(shutdown.stopping()) -> _ => return Err(End::Stopped),
            recv(self.receiver) -> piece => piece.map_err(|_| End::Finished)?,
        };
        let piece = piece.map_err(End::Unreadable)?;
        // The reader may have read all there is, and ended.
        let _ = self.taken.send(piece.bytes().len());
        Ok(piece)
    }

    /// Waits a moment for the input to go on or to end; says whether it does.
    pub(crate) fn are_coming(&self, shutdown: &Shutdown) -> bool {
        let mut ready = Select::new();
        ready.recv(&self.receiver);
        ready.recv(shutdown.stopping());
        ready.ready_timeout(LULL).is_ok()
    }

    /// What was read and not asked for.
    pub(crate) fn read_ahead(&self) -> impl Iterator<Item = Piece> {
        // No more than that: the reader goes on while there is room.
        let count = self.receiver.len();
        self.receiver.try_iter().take(count).filter_map(Result::ok)
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
    /// Sends a piece once there is room for it; `None` when nobody takes any.
    fn send(&mut self, piece: Piece) -> Option<()> {
        let length = piece.bytes().len();
        self.ahead -= self.taken.try_iter().sum::<usize>();
        while self.ahead > 0 && self.ahead + length > BYTES_AHEAD {
            self.ahead -= self.taken.recv().ok()?;
        }
        self.ahead += length;
        self.sender.send(Ok(piece)).ok()
    }

    /// The last that is sent.
    fn fail(&self, error: io::Error) -> Option<()> {
        self.sender.send(Err(error)).ok()
    }
}

fn spawn_reader(read: impl FnOnce() -> Option<()> + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("reader".into()).spawn(read).map(drop)
}

fn repeat(body: &[u8], count: u64, mut feed: Feed) -> Option<()> {
    for _ in 0..count {
        feed.send(Piece::Body(body.to_vec()))?;
    }
    Some(())
}

fn open_input(option: &'static str, path: &Path) -> Result<Box<dyn Read + Send>, Error> {
    if path == Path::new("-") {
        #[cfg(unix)]
        if super::streams::is_unreadable(&io::stdin()) {
            let reason = "standard input is closed, not open for reading, or /dev/null opened for \
                          writing as well; where it is to be empty, use </dev/null";
            return Err(Error::setting(option, reason));
        }
        #[cfg(unix)]
        refuse_folder(option, path, &io::stdin())?;
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path).map_err(|error| Error::setting(option, show(path, &error)))?;
    #[cfg(unix)]
    refuse_folder(option, path, &file)?;
    Ok(Box::new(file))
}

/// It can be opened, and not be read: too late for --failed, which is empty by then.
#[cfg(unix)]
fn refuse_folder(option: &'static str, path: &Path, input: &impl AsFd) -> Result<(), Error> {
    if super::streams::is_folder(input) {
        return Err(Error::setting(option, format!("{}: it is a directory", path.display())));
    }
    Ok(())
}

fn read_whole(path: &Path) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    let input = open_input("--body-file", path)?;
    let read = input.take(LONGEST_BODY + 1).read_to_end(&mut body);
    read.map_err(|error| Error::setting("--body-file", show(path, &error)))?;
    if body.len() as u64 > LONGEST_BODY {
        let error = format!("{}: it has more than {LONGEST_BODY} bytes", path.display());
        return Err(Error::setting("--body-file", error));
    }
    Ok(body)
}

fn send_pieces(mut input: impl BufRead, end: u8, mut feed: Feed) -> Option<()> {
    loop {
        match send_next(&mut input, end, &mut feed) {
            Ok(more) => more?,
            Err(error) => return feed.fail(error),
        }
    }
}

/// Sends the next task of the input without the byte that ends it, all others as they are; `None`
/// at the end of the input, or when nobody takes any more.
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
    Ok(feed.send(Piece::Body(bytes)))
}

/// Sends a task bit by bit, and ends it where the input does not.
fn send_too_long(
    start: Vec<u8>,
    input: &mut impl BufRead,
    end: u8,
    feed: &mut Feed,
) -> io::Result<Option<()>> {
    let mut sent = feed.send(Piece::TooLong(start));
    while sent.is_some() {
        let mut bytes = Vec::new();
        if input.take(REST).read_until(end, &mut bytes)? == 0 {
            bytes.push(end);
        }
        let is_last = bytes.last() == Some(&end);
        sent = feed.send(Piece::Rest(bytes));
        if is_last {
            break;
        }
    }
    Ok(sent)
}

/// How many bytes the input has, where it is a file.
pub(crate) fn length(path: &Path) -> Option<u64> {
    metadata(path).filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// Of the input.
fn metadata(path: &Path) -> Option<fs::Metadata> {
    if path == Path::new("-") { stdin_metadata() } else { fs::metadata(path).ok() }
}

#[cfg(unix)]
fn stdin_metadata() -> Option<fs::Metadata> {
    use std::os::fd::AsFd;

    let stdin = io::stdin().as_fd().try_clone_to_owned().ok()?;
    File::from(stdin).metadata().ok()
}

#[cfg(not(unix))]
fn stdin_metadata() -> Option<fs::Metadata> {
    None
}

/// Whether the input is this very file, by whatever name, or redirected from it.
#[cfg(unix)]
pub(crate) fn is_same_file(input: &Path, output: &Path) -> bool {
    use super::streams::identity;

    let input = metadata(input).and_then(identity);
    input.is_some() && input == fs::metadata(output).ok().and_then(identity)
}

#[cfg(not(unix))]
pub(crate) fn is_same_file(input: &Path, output: &Path) -> bool {
    let input = input.canonicalize().ok();
    input.is_some() && input == output.canonicalize().ok()
}

pub(crate) fn show(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
