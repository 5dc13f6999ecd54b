//! [`Kept`]: what is kept of a program's output, for the failure's reason and for records.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What is kept of a program's output.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The start of its standard output, and its length, unless that is our own.
    pub(crate) stdout_head: Vec<u8>,
    pub(crate) stdout_bytes: u64,
    /// The end of its standard error.
    pub(crate) stderr_tail: Vec<u8>,
}

/// The files that a program writes its output to.
#[derive(Clone, Copy)]
pub(crate) struct OutputFiles<'a> {
    pub(crate) stdout: &'a File,
    pub(crate) stderr: &'a File,
}

/// How much of the end of standard error is kept.
pub(crate) const TAIL: usize = 4096;

impl Kept {
    /// Reads both files after the program has ended.
    pub(crate) fn of_files(files: OutputFiles<'_>, head_limit: usize) -> io::Result<Kept> {
        let OutputFiles { stdout, stderr } = files;
        let stderr_length = stderr.metadata()?.len();
        Ok(Kept {
            stdout_head: read_at_most(stdout, 0, head_limit)?,
            stdout_bytes: stdout.metadata()?.len(),
            stderr_tail: read_at_most(stderr, stderr_length.saturating_sub(TAIL as u64), TAIL)?,
        })
    }
}

/// Up to `limit` bytes that begin at `start`.
fn read_at_most(file: &File, start: u64, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < limit {
        let before = bytes.len();
        bytes.resize(limit.min(before + 64 * 1024), 0);
        let count = file.read_at(&mut bytes[before..], start + before as u64)?;
        bytes.truncate(before + count);
        if count == 0 {
            break;
        }
    }
    Ok(bytes)
}
