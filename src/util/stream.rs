//! Writes to streams that other programs share.

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Writes all bytes, and flushes. Any program that shares the stream can make it non-blocking: then
/// this waits for room, as if it were not.
pub(crate) fn write_all(mut out: impl Write + AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match when_writable(&mut out, |out| out.write(bytes))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => bytes = &bytes[count..],
        }
    }
    when_writable(&mut out, Write::flush)
}

fn when_writable<O: AsFd, T>(
    out: &mut O,
    write: impl Fn(&mut O) -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match write(out) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_for_room(out)?,
            written => return written,
        }
    }
}

/// Returns also when all readers are gone: the next write fails then.
fn wait_for_room(out: &impl AsFd) -> io::Result<()> {
    match poll(&mut [PollFd::new(out, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
