//! [`RecordFile`]: appends whole records to a file that other workers may append to as well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::cli::common::arguments::refuse_dash_for_file;
use crate::cli::common::error::CommandError;
use crate::cli::common::stdio::refuse_file_of_a_stream;

/// A regular file, locked while a record is appended.
#[derive(Debug)]
pub(crate) struct RecordFile(Mutex<File>);

/// Held by this worker alone.
struct Locked<'a>(&'a File);

/// How long other workers and programs may have the file locked. A worker holds it for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two tries to lock the file.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

impl RecordFile {
    pub(crate) fn open(option: &'static str, path: &Path) -> Result<RecordFile, CommandError> {
        let unusable = |error| CommandError::usage(option, format!("{}: {error}", path.display()));
        refuse_dash_for_file(option, path)?;
        refuse_file_of_a_stream(option, path)?;
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(unusable(io::Error::other("it is not a regular file; take another one")));
        }
        let file = OpenOptions::new().create(true).append(true).read(true).open(path);
        file.map(|file| RecordFile(Mutex::new(file))).map_err(unusable)
    }

    /// Appends what `record` makes of the file and its length. If it cannot be written as a whole,
    /// no part of it stays.
    pub(crate) fn append(
        &self,
        record: impl FnOnce(&File, u64) -> io::Result<Vec<u8>>,
    ) -> io::Result<()> {
        // For all threads that wait: the first failure stops the worker.
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let locked = Locked::until(deadline, &file)?;
        let length = locked.0.metadata()?.len();
        let mut bytes = record(locked.0, length)?;
        if ends_in_a_part(locked.0, length)? {
            bytes.insert(0, b'\n');
        }
        let written = (&*file).write_all(&bytes);
        if written.is_err() {
            let _ = file.set_len(length);
        }
        written
    }
}

impl Locked<'_> {
    /// Some file systems have no locks: there, each worker needs a file of its own.
    fn until(deadline: Instant, file: &File) -> io::Result<Locked<'_>> {
        while flock(file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            if Instant::now() >= deadline {
                let text = format!("another program has kept it locked for {LOCK_TIMEOUT:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            sleep(LOCK_PAUSE);
        }
        Ok(Locked(file))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

/// Whether the last line has no end, as after a crash of the machine.
fn ends_in_a_part(file: &File, length: u64) -> io::Result<bool> {
    let Some(last) = length.checked_sub(1) else { return Ok(false) };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte != [b'\n'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_another_program_keeps_is_not_waited_for_without_end() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let other = File::open(file.path()).expect("opened");
        let held = Locked::until(Instant::now(), &other).expect("locked");
        let soon = Instant::now() + Duration::from_millis(20);
        let failed = Locked::until(soon, file.as_file()).err().expect("it is locked");
        assert_eq!(failed.to_string(), "another program has kept it locked for 10s");
        assert!(Instant::now() >= soon, "it was waited for");
        drop(held);
        assert!(Locked::until(soon, file.as_file()).is_ok(), "though the time is over");
    }
}
