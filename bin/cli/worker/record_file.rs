//! [`RecordFile`]: appends whole records to a file that other workers may append to as well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};

use crate::cli::common::arguments::refuse_dash;
use crate::cli::common::error::CommandError;
use crate::cli::common::stdio::refuse_file_of_a_stream;

/// A regular file, locked while a record is appended.
#[derive(Debug)]
pub(crate) struct RecordFile(Mutex<File>);

/// Held by this worker alone.
struct Locked<'a>(&'a File);

impl RecordFile {
    pub(crate) fn open(option: &'static str, path: &Path) -> Result<RecordFile, CommandError> {
        let unusable = |error| CommandError::usage(option, format!("{}: {error}", path.display()));
        refuse_dash(option, path)?;
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
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let locked = Locked::new(&file);
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
    fn new(file: &File) -> Locked<'_> {
        let _ = flock(file, FlockOperation::LockExclusive);
        Locked(file)
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
