//! The standard streams: writes to them, and checks whether they are open for what a command does
//! with them. Rust reports a closed stream as a success, or as the end of the input.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rabbit_work::OutputStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};

use crate::cli::common::error::CommandError;
use crate::util::stream;

/// How long the first byte of an input may take.
const FIRST_BYTE_TIMEOUT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Writes one line to standard output.
pub(crate) fn print_line(line: impl fmt::Display) -> io::Result<()> {
    write_out(format!("{line}\n").as_bytes())
}

/// Writes bytes to standard output.
pub(crate) fn write_out(bytes: &[u8]) -> io::Result<()> {
    write_all(OutputStream::Stdout, bytes)
}

/// Writes all bytes to a stream.
pub(crate) fn write_all(stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        OutputStream::Stdout => stream::write_all(io::stdout().lock(), bytes),
        OutputStream::Stderr => stream::write_all(io::stderr().lock(), bytes),
    }
}

/// Whether the stream is closed or not open for reading.
pub(crate) fn is_unreadable(stream: &impl AsFd) -> bool {
    is_open_for(stream, OFlags::WRONLY) || was_closed(stream)
}

/// Whether the stream is closed or not open for writing.
pub(crate) fn is_unwritable(stream: &impl AsFd) -> bool {
    is_read_only(stream) || was_closed(stream)
}

/// Whether the stream is open for reading only.
pub(crate) fn is_read_only(stream: &impl AsFd) -> bool {
    is_open_for(stream, OFlags::RDONLY)
}

/// Whether the stream seems to have been closed at the start: Rust replaces it by /dev/null, open
/// for reading and writing, as no shell opens it.
fn was_closed(stream: &impl AsFd) -> bool {
    let device = |it: io::Result<fs::Metadata>| it.map(|it| it.rdev()).ok();
    is_open_for(stream, OFlags::RDWR)
        && device(metadata(stream)) == device(fs::metadata("/dev/null"))
}

fn is_open_for(stream: &impl AsFd, mode: OFlags) -> bool {
    fcntl_getfl(stream).is_ok_and(|it| it & OFlags::RWMODE == mode)
}

/// Whether nobody can read the stream: a pipe without a reader is in error, a socket or a terminal
/// hung up.
pub(crate) fn has_no_reader(stream: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    polled.is_ok() && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// Whether the stream brings something to read within a second.
pub(crate) fn has_input(stream: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    let polled = poll(&mut fds, Some(&FIRST_BYTE_TIMEOUT));
    polled.is_ok() && fds[0].revents().contains(PollFlags::IN)
}

pub(crate) fn metadata(stream: &impl AsFd) -> io::Result<fs::Metadata> {
    File::from(stream.as_fd().try_clone_to_owned()?).metadata()
}

/// Identifies a regular file, whatever its names. A terminal or another device has no identity:
/// several streams may share it.
pub(crate) fn identity(file: fs::Metadata) -> Option<(u64, u64)> {
    file.is_file().then(|| (file.dev(), file.ino()))
}

/// Refuses an output file that a standard stream already writes: each would overwrite the other.
pub(crate) fn refuse_file_of_a_stream(
    option: &'static str,
    path: &Path,
) -> Result<(), CommandError> {
    let file = fs::metadata(path).ok().and_then(identity);
    let streams = [metadata(&io::stdout()), metadata(&io::stderr())];
    let mut streams = streams.into_iter().filter_map(|it| it.ok().and_then(identity));
    if file.is_some_and(|file| streams.any(|stream| stream == file)) {
        let reason = "standard output or standard error goes to that file, and each would \
                      overwrite the other; take another file";
        return Err(CommandError::usage(option, reason));
    }
    Ok(())
}
