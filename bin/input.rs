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
    receiver: Receiver<io::Result<Vec<u8>>>,
    /// Tells the reader the length of each body that was asked for.
    taken: Sender<usize>,
}

/// The reader's end of it.
struct Feed {
    sender: Sender<io::Result<Vec<u8>>>,
    taken: Receiver<usize>,
    /// The bytes of the bodies that were sent and not taken.
    ahead: usize,
}

/// The most bodies that are read ahead.
const MOST_AHEAD: usize = 256;
/// The most bytes of bodies that are read ahead, unless it is a single one; as many as may be in
/// flight.
const BYTES_AHEAD: usize = 8 * 1024 * 1024;

/// The longest body taken; RabbitMQ takes no longer one either.
const LONGEST_BODY: u64 = 128 * 1024 * 1024;

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

    /// The next body, or why there is none.
    pub(crate) fn next(&self, shutdown: &Shutdown) -> Result<Vec<u8>, End> {
        let body = select_biased! {
            recv(shutdown.stopping()) -> _ => return Err(End::Stopped),
            recv(self.receiver) -> body => body.map_err(|_| End::Finished)?,
        };
        let body = body.map_err(End::Unreadable)?;
        // The reader may have read all there is, and ended.
        let _ = self.taken.send(body.len());
        Ok(body)
    }

    /// Waits a moment for the input to go on or to end; says whether it does.
    pub(crate) fn are_coming(&self, shutdown: &Shutdown) -> bool {
        let mut ready = Select::new();
        ready.recv(&self.receiver);
        ready.recv(shutdown.stopping());
        ready.ready_timeout(LULL).is_ok()
    }

    /// What was read and not asked for.
    pub(crate) fn read_ahead(&self) -> impl Iterator<Item = Vec<u8>> {
        // No more than that: the reader goes on while there is room.
        let count = self.receiver.len();
        self.receiver.try_iter().take(count).filter_map(Result::ok)
    }
}

impl Feed {
    /// Waits for room for a body of this length; `None` once nobody takes any.
    fn wait_for_room(&mut self, length: usize) -> Option<()> {
        self.ahead -= self.taken.try_iter().sum::<usize>();
        while self.ahead > 0 && self.ahead + length > BYTES_AHEAD {
            self.ahead -= self.taken.recv().ok()?;
        }
        self.ahead += length;
        Some(())
    }

    /// Sends a body that there is room for; `None` once nobody takes any.
    fn send(&self, body: io::Result<Vec<u8>>) -> Option<()> {
        self.sender.send(body).ok()
    }
}

fn spawn_reader(read: impl FnOnce() -> Option<()> + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("reader".into()).spawn(read).map(drop)
}

fn repeat(body: &[u8], count: u64, mut feed: Feed) -> Option<()> {
    for _ in 0..count {
        feed.wait_for_room(body.len())?;
        feed.send(Ok(body.to_vec()))?;
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
        match next_piece(&mut input, end) {
            Ok(Some(piece)) => {
                feed.wait_for_room(piece.len())?;
                feed.send(Ok(piece))?;
            }
            Ok(None) => return Some(()),
            Err(error) => return feed.send(Err(error)),
        }
    }
}

/// The next piece of the input without the byte that ends it; all others as they are.
fn next_piece(input: &mut impl BufRead, end: u8) -> io::Result<Option<Vec<u8>>> {
    let mut piece = Vec::new();
    let read = input.take(LONGEST_BODY + 1).read_until(end, &mut piece)?;
    if piece.last() == Some(&end) {
        piece.pop();
    } else if read as u64 > LONGEST_BODY {
        let error = format!("a task has more than {LONGEST_BODY} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok((read > 0).then_some(piece))
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
