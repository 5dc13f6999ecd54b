//! Owns what a task's program writes: passes it on in whole lines, byte for byte or with a tag
//! before each line, and keeps the end of its standard error.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};

/// One of the two streams that a program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where lines go, with their tags.
pub(crate) type Sink = dyn Fn(OutputStream, &[u8]) -> io::Result<()> + Send + Sync;

/// What becomes of a program's lines.
#[derive(Clone)]
pub(crate) enum Passing {
    /// To our own standard error, as they are.
    Plain,
    /// To the sink, each with this before it.
    Tagged { tag: Arc<[u8]>, sink: Arc<Sink> },
}

/// Our end of a pipe that a program writes.
pub(crate) struct Pipe {
    end: OwnedFd,
    stream: OutputStream,
    passing: Passing,
    /// What was read and not passed on yet.
    held: Vec<u8>,
    /// The last of all that was read.
    tail: Vec<u8>,
}

/// The pipes of programs that have ended, held open by what those left in the background.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leftovers(Arc<AtomicUsize>);

/// How much of the end of a stream is kept.
const TAIL: usize = 4096;
/// What is read at a time: as much as a pipe holds.
const CHUNK: usize = 64 * 1024;
/// A pipe holds 1 MiB at most, unless root says otherwise; each read takes 64 KiB.
const MOST_READS_OF_REST: usize = 16;
/// The longest line that is waited for.
const LONGEST_HELD: usize = 64 * 1024;
/// So many leftover pipes are passed on at a time; each takes a thread.
const MOST_LEFTOVERS: usize = 64;

/// Whether a pipe may bring more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    Ended,
}

impl OutputStream {
    /// Writes all of this to this program's own stream of that kind, while others that do so
    /// wait. Where the stream was made non-blocking, as any program that shares it can do, this
    /// waits for room as if it were not.
    ///
    /// # Errors
    /// Those of the stream. One that was closed when this program began takes everything.
    ///
    /// # Blocking
    /// While a reader of the stream does not read.
    pub fn write_all(self, bytes: &[u8]) -> io::Result<()> {
        match self {
            OutputStream::Stdout => write_patiently(io::stdout().lock(), bytes),
            OutputStream::Stderr => write_patiently(io::stderr().lock(), bytes),
        }
    }
}

impl Pipe {
    pub(crate) fn new(end: OwnedFd, stream: OutputStream, passing: &Passing) -> Pipe {
        Pipe { end, stream, passing: passing.clone(), held: Vec::new(), tail: Vec::new() }
    }

    pub(crate) fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    pub(crate) fn stream(&self) -> OutputStream {
        self.stream
    }

    pub(crate) fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Reads once, which waits unless there is something to be read, and passes on whole lines.
    pub(crate) fn pass_on(&mut self) -> io::Result<Flow> {
        let before = self.held.len();
        self.held.reserve(CHUNK);
        let count = loop {
            match read(&self.end, spare_capacity(&mut self.held)) {
                Err(Errno::INTR) => {}
                // As if it had ended: there is nothing to be had from it.
                count => break count.unwrap_or(0),
            }
        };
        keep_tail(&mut self.tail, &self.held[before..]);
        if count == 0 {
            self.flush()?;
            return Ok(Flow::Ended);
        }
        let whole = self.whole_lines(before);
        self.write(whole)?;
        Ok(Flow::Open)
    }

    /// Passes on what the program left in the pipe when it ended, and no more: what it started
    /// in the background may hold the pipe open for ever.
    pub(crate) fn pass_on_rest(&mut self) -> io::Result<Flow> {
        for _ in 0..MOST_READS_OF_REST {
            if !self.is_readable() {
                break;
            }
            if self.pass_on()? == Flow::Ended {
                return Ok(Flow::Ended);
            }
        }
        self.flush()?;
        Ok(Flow::Open)
    }

    /// Goes on passing on what comes, in a thread of its own, until the last that holds the
    /// pipe lets go of it. Beyond a number of such pipes they are closed instead.
    pub(crate) fn linger(mut self, leftovers: &Leftovers) {
        let Leftovers(count) = leftovers.clone();
        if count.fetch_add(1, Ordering::AcqRel) >= MOST_LEFTOVERS {
            count.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let counted = Arc::clone(&count);
        let pass_on = move || {
            while matches!(self.pass_on(), Ok(Flow::Open)) {}
            counted.fetch_sub(1, Ordering::AcqRel);
        };
        if thread::Builder::new().name("rw-leftover".into()).spawn(pass_on).is_err() {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(&self.end, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// How much of what is held, of which all but `before` is new, is whole lines. For plain
    /// output a carriage return ends a line too: progress is shown that way.
    fn whole_lines(&self, before: usize) -> usize {
        let ends_line = |byte: &u8| match self.passing {
            Passing::Plain => matches!(byte, b'\n' | b'\r'),
            Passing::Tagged { .. } => *byte == b'\n',
        };
        match self.held[before..].iter().rposition(ends_line) {
            Some(place) => before + place + 1,
            None if self.held.len() >= LONGEST_HELD => self.held.len(),
            None => 0,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write(self.held.len())
    }

    fn write(&mut self, count: usize) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let lines = &self.held[..count];
        let written = match &self.passing {
            // Nobody can be told that standard error is lost.
            Passing::Plain => {
                let _ = OutputStream::Stderr.write_all(lines);
                Ok(())
            }
            Passing::Tagged { tag, sink } => sink(self.stream, &tagged(tag, lines)),
        };
        self.held.drain(..count);
        written
    }
}

fn write_patiently(mut out: impl Write + AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match when_there_is_room(&mut out, |out| out.write(bytes))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => bytes = &bytes[count..],
        }
    }
    when_there_is_room(&mut out, Write::flush)
}

fn when_there_is_room<O: Write + AsFd, T>(
    out: &mut O,
    write: impl Fn(&mut O) -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match write(out).map_err(|error| (error.kind(), error)) {
            Ok(written) => return Ok(written),
            Err((io::ErrorKind::Interrupted, _)) => {}
            Err((io::ErrorKind::WouldBlock, _)) => wait_for_room(out)?,
            Err((_, error)) => return Err(error),
        }
    }
}

/// Also for the end of all readers, which the next write is told of.
fn wait_for_room(out: &impl AsFd) -> io::Result<()> {
    match poll(&mut [PollFd::new(out, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The lines, each with the tag before it; the last one ended, if need be.
fn tagged(tag: &[u8], lines: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(lines.len() + tag.len());
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        out.extend_from_slice(tag);
        out.extend_from_slice(line);
    }
    if out.last().is_some_and(|last| *last != b'\n') {
        out.push(b'\n');
    }
    out
}

fn keep_tail(tail: &mut Vec<u8>, new: &[u8]) {
    let new = &new[new.len().saturating_sub(TAIL)..];
    let surplus = (tail.len() + new.len()).saturating_sub(TAIL);
    tail.drain(..surplus);
    tail.extend_from_slice(new);
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Mutex;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    type Written = Arc<Mutex<Vec<u8>>>;

    fn tagging() -> (Passing, Written) {
        let written = Written::default();
        let into = Arc::clone(&written);
        let sink = move |_: OutputStream, lines: &[u8]| {
            into.lock().map_err(|_| io::Error::other("poisoned"))?.extend_from_slice(lines);
            Ok(())
        };
        let tag: Arc<[u8]> = Arc::from(b"[1 a] ".as_slice());
        (Passing::Tagged { tag, sink: Arc::new(sink) }, written)
    }

    fn pipe(passing: &Passing) -> (Pipe, File) {
        let (end, other) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        (Pipe::new(end, OutputStream::Stdout, passing), File::from(other))
    }

    fn text(written: &Written) -> String {
        String::from_utf8_lossy(&written.lock().expect("not poisoned")).into_owned()
    }

    #[test]
    fn each_line_has_its_tag_and_a_partial_one_waits_for_its_end() {
        let (passing, written) = tagging();
        let (mut pipe, mut program) = pipe(&passing);
        program.write_all(b"one\n\ntw").expect("written");
        assert_eq!(pipe.pass_on().expect("passed on"), Flow::Open);
        assert_eq!(text(&written), "[1 a] one\n[1 a] \n");
        program.write_all(b"o\nthree").expect("written");
        assert_eq!(pipe.pass_on().expect("passed on"), Flow::Open);
        drop(program);
        assert_eq!(pipe.pass_on().expect("passed on"), Flow::Ended);
        assert_eq!(text(&written), "[1 a] one\n[1 a] \n[1 a] two\n[1 a] three\n");
        assert_eq!(pipe.tail(), b"one\n\ntwo\nthree");
    }

    #[test]
    fn what_is_left_is_passed_on_while_somebody_holds_the_pipe() {
        let (passing, written) = tagging();
        let (mut pipe, mut program) = pipe(&passing);
        pipe.pass_on_rest().expect("an empty pipe is no wait");
        program.write_all(b"last words").expect("written");
        assert_eq!(pipe.pass_on_rest().expect("passed on"), Flow::Open);
        assert_eq!(text(&written), "[1 a] last words\n");
        drop(program);
        // A program that another test is starting may hold a copy until it runs: wait for that.
        assert_eq!(pipe.pass_on().expect("passed on"), Flow::Ended);
    }

    #[test]
    fn the_tail_is_the_last_of_it() {
        let mut tail = Vec::new();
        keep_tail(&mut tail, &[b'a'; 4000]);
        keep_tail(&mut tail, &[b'b'; 100]);
        assert_eq!((tail.len(), tail[0], tail[4095]), (4096, b'a', b'b'));
        keep_tail(&mut tail, &[b'c'; 9000]);
        assert_eq!(tail, [b'c'; 4096]);
    }
}
