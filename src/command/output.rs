//! Forwards the output of a task's program in whole lines, unchanged or with a tag before each
//! line, and keeps the end of its standard error for the failure's reason.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};

use crate::command::kept::TAIL;
use crate::util::stream::write_all;

/// One of the two streams that a program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where lines go, with their tags if they have any.
pub(crate) type Sink = dyn Fn(OutputStream, &[u8]) -> io::Result<()> + Send + Sync;

/// How a program's lines are forwarded.
#[derive(Clone)]
pub(crate) enum OutputMode {
    /// To our own stream of the same kind, unchanged.
    Plain,
    /// To the sink, unchanged.
    Forwarded(Arc<Sink>),
    /// To the sink, each with this before it.
    Tagged { tag: Arc<[u8]>, sink: Arc<Sink> },
}

/// Our end of a pipe that a program writes.
pub(crate) struct Pipe {
    end: OwnedFd,
    stream: OutputStream,
    mode: OutputMode,
    /// Read and not forwarded yet.
    pending: Vec<u8>,
    /// The end of all that was read.
    tail: Vec<u8>,
    /// The start of all that was read, up to `head_limit` bytes.
    head: Vec<u8>,
    head_limit: usize,
    /// How many bytes were read.
    count: u64,
}

/// The number of pipes whose program has ended and that a background process holds open.
#[derive(Clone, Debug, Default)]
pub(crate) struct BackgroundPipes(Arc<AtomicUsize>);

/// What is read at a time: as much as a pipe holds.
const CHUNK: usize = 64 * 1024;
/// A pipe holds 1 MiB at most, unless root says otherwise; each read takes 64 KiB.
const MAX_READS_OF_REST: usize = 16;
/// A line up to this length is forwarded as one.
const MAX_LINE: usize = 64 * 1024;
/// The most background pipes that are forwarded at a time; each takes a thread.
const MAX_BACKGROUND_PIPES: usize = 64;

/// Whether a pipe may bring more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    Ended,
}

impl Pipe {
    /// A pipe that keeps the first `head_limit` bytes, and the last ones.
    pub(crate) fn new(
        end: OwnedFd,
        stream: OutputStream,
        mode: &OutputMode,
        head_limit: usize,
    ) -> Pipe {
        let (pending, tail, head) = (Vec::new(), Vec::new(), Vec::new());
        Pipe { end, stream, mode: mode.clone(), pending, tail, head, head_limit, count: 0 }
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

    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    /// How many bytes were read.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Reads once, which waits while the pipe is empty, and forwards whole lines.
    pub(crate) fn forward(&mut self) -> io::Result<Flow> {
        let before = self.pending.len();
        self.pending.reserve(CHUNK);
        let count = loop {
            match read(&self.end, spare_capacity(&mut self.pending)) {
                Err(Errno::INTR) => {}
                // An error counts as the end: the pipe brings nothing more.
                count => break count.unwrap_or(0),
            }
        };
        self.keep_ends(before);
        if count == 0 {
            self.flush()?;
            return Ok(Flow::Ended);
        }
        let whole = self.whole_lines(before);
        self.write(whole)?;
        Ok(Flow::Open)
    }

    /// Forwards what the program left in the pipe when it ended, and no more: a background process
    /// may hold the pipe open for ever.
    pub(crate) fn forward_rest(&mut self) -> io::Result<Flow> {
        for _ in 0..MAX_READS_OF_REST {
            if !self.is_readable() {
                break;
            }
            if self.forward()? == Flow::Ended {
                return Ok(Flow::Ended);
            }
        }
        self.flush()?;
        Ok(Flow::Open)
    }

    /// Keeps forwarding in a thread of its own until the last process closes the pipe. If there are
    /// too many such pipes, this one is closed instead.
    pub(crate) fn keep_forwarding(mut self, background: &BackgroundPipes) {
        let BackgroundPipes(count) = background.clone();
        if count.fetch_add(1, Ordering::AcqRel) >= MAX_BACKGROUND_PIPES {
            count.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let counted = Arc::clone(&count);
        let forward = move || {
            while matches!(self.forward(), Ok(Flow::Open)) {}
            counted.fetch_sub(1, Ordering::AcqRel);
        };
        if thread::Builder::new().name("rw-background".into()).spawn(forward).is_err() {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Keeps the ends of what was read, and its length. What follows `before` is new.
    fn keep_ends(&mut self, before: usize) {
        let new = &self.pending[before..];
        let room = self.head_limit.saturating_sub(self.head.len());
        self.head.extend_from_slice(&new[..room.min(new.len())]);
        keep_tail(&mut self.tail, new);
        self.count += new.len() as u64;
    }

    fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(&self.end, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// How many pending bytes are whole lines; those up to `before` hold no end of a line. In plain
    /// output a carriage return ends a line: progress is shown that way.
    fn whole_lines(&self, before: usize) -> usize {
        let ends_line = |byte: &u8| match self.mode {
            OutputMode::Plain | OutputMode::Forwarded(_) => matches!(byte, b'\n' | b'\r'),
            OutputMode::Tagged { .. } => *byte == b'\n',
        };
        match self.pending[before..].iter().rposition(ends_line) {
            Some(place) => before + place + 1,
            None if self.pending.len() >= MAX_LINE => self.pending.len(),
            None => 0,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write(self.pending.len())
    }

    fn write(&mut self, count: usize) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let lines = &self.pending[..count];
        let written = match &self.mode {
            OutputMode::Plain => match self.stream {
                OutputStream::Stdout => write_all(io::stdout().lock(), lines),
                // There is nowhere to report that standard error cannot be written.
                OutputStream::Stderr => {
                    let _ = write_all(io::stderr().lock(), lines);
                    Ok(())
                }
            },
            OutputMode::Forwarded(sink) => sink(self.stream, lines),
            OutputMode::Tagged { tag, sink } => sink(self.stream, &tagged(tag, lines)),
        };
        self.pending.drain(..count);
        written
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
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    type Written = Arc<Mutex<Vec<u8>>>;

    fn tagging() -> (OutputMode, Written) {
        let written = Written::default();
        let into = Arc::clone(&written);
        let sink = move |_: OutputStream, lines: &[u8]| {
            into.lock().map_err(|_| io::Error::other("poisoned"))?.extend_from_slice(lines);
            Ok(())
        };
        let tag: Arc<[u8]> = Arc::from(b"[1 a] ".as_slice());
        (OutputMode::Tagged { tag, sink: Arc::new(sink) }, written)
    }

    fn pipe(mode: &OutputMode) -> (Pipe, File) {
        let (end, other) = crate::command::pipe::pipe().expect("a pipe");
        (Pipe::new(end, OutputStream::Stdout, mode, 5), File::from(other))
    }

    fn text(written: &Written) -> String {
        String::from_utf8_lossy(&written.lock().expect("not poisoned")).into_owned()
    }

    #[test]
    fn each_line_has_its_tag_and_a_partial_one_waits_for_its_end() {
        let (mode, written) = tagging();
        let (mut pipe, mut program) = pipe(&mode);
        program.write_all(b"one\n\ntw").expect("written");
        assert_eq!(pipe.forward().expect("forwarded"), Flow::Open);
        assert_eq!(text(&written), "[1 a] one\n[1 a] \n");
        program.write_all(b"o\nthree").expect("written");
        assert_eq!(pipe.forward().expect("forwarded"), Flow::Open);
        drop(program);
        assert_eq!(pipe.forward().expect("forwarded"), Flow::Ended);
        assert_eq!(text(&written), "[1 a] one\n[1 a] \n[1 a] two\n[1 a] three\n");
        assert_eq!(pipe.tail(), b"one\n\ntwo\nthree");
        assert_eq!((pipe.head(), pipe.count()), (b"one\n\n".as_slice(), 14));
    }

    #[test]
    fn the_rest_is_forwarded_while_another_process_holds_the_pipe() {
        let (mode, written) = tagging();
        let (mut pipe, mut program) = pipe(&mode);
        pipe.forward_rest().expect("an empty pipe is no wait");
        program.write_all(b"last words").expect("written");
        assert_eq!(pipe.forward_rest().expect("forwarded"), Flow::Open);
        assert_eq!(text(&written), "[1 a] last words\n");
        drop(program);
        // A program that another test is starting may hold a copy until it runs: wait for that.
        assert_eq!(pipe.forward().expect("forwarded"), Flow::Ended);
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
