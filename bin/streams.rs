//! Owns the look at the standard streams: whether a command was given them for what it does with
//! them. Rust takes it for a success, or for the end of the input, when it was not.

#![allow(dead_code)] // Each command is a crate of its own and uses its part.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rabbit_work::Error;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};

/// Whether it is closed, or not open for reading.
pub(crate) fn is_unreadable(stream: &impl AsFd) -> bool {
    is_open_for(stream, OFlags::WRONLY) || was_closed(stream)
}

/// Whether it is closed, or not open for writing.
pub(crate) fn is_unwritable(stream: &impl AsFd) -> bool {
    is_read_only(stream) || was_closed(stream)
}

/// Whether it is open, and not for writing.
pub(crate) fn is_read_only(stream: &impl AsFd) -> bool {
    is_open_for(stream, OFlags::RDONLY)
}

/// Whether this was closed when we began, as far as that can be told: Rust then puts /dev/null in
/// its place, open for both, which no shell does.
fn was_closed(stream: &impl AsFd) -> bool {
    let device = |it: io::Result<fs::Metadata>| it.map(|it| it.rdev()).ok();
    is_open_for(stream, OFlags::RDWR)
        && device(metadata(stream)) == device(fs::metadata("/dev/null"))
}

/// What kind of file it is.
pub(crate) fn what_it_is(stream: &impl AsFd) -> Option<fs::FileType> {
    metadata(stream).ok().map(|it| it.file_type())
}

/// How long whoever feeds a stream may take to begin.
const BEGINNING: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Whether there is something to read, within a moment.
pub(crate) fn has_something(stream: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    let polled = poll(&mut fds, Some(&BEGINNING));
    polled.is_ok() && fds[0].revents().contains(PollFlags::IN)
}

/// What tells one file from another, whatever their names. Terminals and other devices may be
/// several streams at once.
pub(crate) fn identity(file: fs::Metadata) -> Option<(u64, u64)> {
    file.is_file().then(|| (file.dev(), file.ino()))
}

/// Refuses a file for output of its own that is already where a standard stream goes, as each
/// would write over the other.
pub(crate) fn refuse_where_a_stream_goes(option: &'static str, path: &Path) -> Result<(), Error> {
    let file = fs::metadata(path).ok().and_then(identity);
    let streams = [metadata(&io::stdout()), metadata(&io::stderr())];
    let mut streams = streams.into_iter().filter_map(|it| it.ok().and_then(identity));
    if file.is_some_and(|file| streams.any(|stream| stream == file)) {
        let reason = "standard output or standard error goes to that file, too, and each would \
                      write over the other";
        return Err(Error::setting(option, reason));
    }
    Ok(())
}

/// Whether it is a directory, which opens like a file.
pub(crate) fn is_folder(stream: &impl AsFd) -> bool {
    what_it_is(stream).is_some_and(|it| it.is_dir())
}

fn metadata(stream: &impl AsFd) -> io::Result<fs::Metadata> {
    File::from(stream.as_fd().try_clone_to_owned()?).metadata()
}

fn is_open_for(stream: &impl AsFd, mode: OFlags) -> bool {
    fcntl_getfl(stream).is_ok_and(|it| it & OFlags::RWMODE == mode)
}
