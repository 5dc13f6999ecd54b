//! [`Joblog`]: one line for each run of a command, in the format of GNU parallel's --joblog.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use crate::cli::common::error::CommandError;
use crate::cli::worker::record_file::RecordFile;
use crate::cli::worker::records::Run;

/// The file of --joblog.
#[derive(Debug)]
pub(crate) struct Joblog {
    file: RecordFile,
    /// The program and its arguments.
    command: Vec<OsString>,
    counted: Mutex<Counted>,
}

/// How many lines the start of the file has. Other workers may add to it.
#[derive(Debug, Default)]
struct Counted {
    bytes: u64,
    lines: u64,
}

const HEADING: &[u8] =
    b"Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n";
/// What GNU parallel calls the machine it runs on.
const THIS_MACHINE: &str = ":";
const PLACEHOLDER: &[u8] = b"{}";

impl Joblog {
    pub(crate) fn open(path: &Path, command: &[OsString]) -> Result<Joblog, CommandError> {
        let file = RecordFile::open("--joblog", path)?;
        let counted = Mutex::new(Counted::default());
        let joblog = Joblog { file, command: command.to_vec(), counted };
        joblog.file.append(|file, length| joblog.heading(file, length)).map_err(|error| {
            CommandError::usage("--joblog", format!("{}: {error}", path.display()))
        })?;
        Ok(joblog)
    }

    /// Adds a line.
    pub(crate) fn add(&self, run: &Run<'_>) -> io::Result<()> {
        self.file.append(|file, length| {
            let mut record = self.heading(file, length)?;
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            counted.count_to(file, length)?;
            record.extend(self.line(counted.lines.max(1), run));
            Ok(record)
        })
    }

    /// The heading if the file has none; an error if it has another first line.
    fn heading(&self, file: &File, length: u64) -> io::Result<Vec<u8>> {
        let mut start = vec![0; HEADING.len()];
        if length == 0 {
            return Ok(HEADING.to_vec());
        }
        match file.read_exact_at(&mut start, 0) {
            Ok(()) if start == HEADING => Ok(Vec::new()),
            _ => Err(io::Error::other(
                "its first line is not the heading of a job log; take another file",
            )),
        }
    }

    /// GNU parallel counts as sent what a job reads, and as received what it writes, as far as these
    /// pass through its hands.
    fn line(&self, number: u64, run: &Run<'_>) -> Vec<u8> {
        let end = run.end;
        let started = end.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let body = run.delivery.body();
        let sent = if self.command.iter().any(|it| has_placeholder(it)) { 0 } else { body.len() };
        let mut line = format!(
            "{number}\t{THIS_MACHINE}\t{started:.3}\t{:10.3}\t{sent}\t{}\t{}\t{}\t",
            end.elapsed.as_secs_f64(),
            end.output_bytes,
            run.exit_value(),
            end.signal.unwrap_or(0),
        )
        .into_bytes();
        line.extend(command_line(&self.command, body));
        line.push(b'\n');
        line
    }
}

impl Counted {
    /// Counts the lines of the file up to this length, from where it stopped.
    fn count_to(&mut self, file: &File, length: u64) -> io::Result<()> {
        if length < self.bytes {
            *self = Counted::default();
        }
        while self.bytes < length {
            let mut buffer = vec![0; (length - self.bytes).min(64 * 1024) as usize];
            let count = file.read_at(&mut buffer, self.bytes)?;
            if count == 0 {
                break;
            }
            self.lines += buffer[..count].iter().filter(|byte| **byte == b'\n').count() as u64;
            self.bytes += count as u64;
        }
        Ok(())
    }
}

/// The command as a shell would run it, on one line: GNU parallel writes a NUL for a newline.
fn command_line(command: &[OsString], body: &[u8]) -> Vec<u8> {
    let words: Vec<Vec<u8>> = command.iter().map(|word| quoted(&filled_in(word, body))).collect();
    let mut line = words.join(&b' ');
    line.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = 0);
    line
}

fn has_placeholder(word: &OsStr) -> bool {
    word.as_bytes().windows(PLACEHOLDER.len()).any(|it| it == PLACEHOLDER)
}

fn filled_in(word: &OsStr, body: &[u8]) -> Vec<u8> {
    let (mut rest, mut filled) = (word.as_bytes(), Vec::new());
    while let Some(place) = rest.windows(PLACEHOLDER.len()).position(|it| it == PLACEHOLDER) {
        filled.extend_from_slice(&rest[..place]);
        filled.extend_from_slice(body);
        rest = &rest[place + PLACEHOLDER.len()..];
    }
    filled.extend_from_slice(rest);
    filled
}

fn quoted(word: &[u8]) -> Vec<u8> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(byte);
    if !word.is_empty() && word.iter().all(is_plain) {
        return word.to_vec();
    }
    let parts: Vec<&[u8]> = word.split(|byte| *byte == b'\'').collect();
    [b"'".as_slice(), &parts.join(b"'\"'\"'".as_slice()), b"'"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_written_as_a_shell_reads_it() {
        let line = |words: &[&str], body: &str| {
            let words: Vec<OsString> = words.iter().map(Into::into).collect();
            String::from_utf8(command_line(&words, body.as_bytes())).expect("text")
        };
        assert_eq!(line(&["./job", "{}"], "1"), "./job 1");
        assert_eq!(line(&["echo", "a b", "-n{}{}", ""], "x"), "echo 'a b' -nxx ''");
        assert_eq!(line(&["echo", "{}"], "it's\n$HOME"), "echo 'it'\"'\"'s\0$HOME'");
    }
}
