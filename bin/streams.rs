//! Owns the look at the standard streams: whether a command was given them for what it does with
//! them. Rust takes it for a success, or for the end of the input, when it was not.

#![allow(dead_code)] // Each command is a crate of its own and uses its part.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{OFlags, fcntl_getfl};

/// Whether it is closed, or not open for reading.
pub(crate) fn is_unreadable(stream: &impl AsFd) -> bool {
    is_open_for(stream, OFlags::WRONLY) || was_closed(stream)
}

/// Whether it is closed, or not open for writing.
pub(crate) fn is_unwritable(stream: &impl AsFd) -> bool {
    is_open_for(stream, OFlags::RDONLY) || was_closed(stream)
}

/// Whether this was closed when we began, as far as that can be told: Rust then puts /dev/null in
/// its place, open for both, which no shell does.
fn was_closed(stream: &impl AsFd) -> bool {
    let device = |it: io::Result<fs::Metadata>| it.map(|it| it.rdev()).ok();
    is_open_for(stream, OFlags::RDWR)
        && device(metadata(stream)) == device(fs::metadata("/dev/null"))
}

/// Whether it is a directory, which opens like a file.
pub(crate) fn is_folder(stream: &impl AsFd) -> bool {
    metadata(stream).is_ok_and(|it| it.is_dir())
}

fn metadata(stream: &impl AsFd) -> io::Result<fs::Metadata> {
    File::from(stream.as_fd().try_clone_to_owned()?).metadata()
}

fn is_open_for(stream: &impl AsFd, mode: OFlags) -> bool {
    fcntl_getfl(stream).is_ok_and(|it| it & OFlags::RWMODE == mode)
}
