//! The file of --outcomes: written so that the same command can go on where it was.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use log::{error, info};
use rabbit_work::BatchOutcome;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::cli::common::error::CommandError;
use crate::cli::producer::input::show;
use crate::cli::producer::wait::record::{Line, Position, Published, is_cut_header, ranges};

/// The file, locked and open for appending.
pub(super) struct OutcomeFile {
    file: File,
    path: PathBuf,
    /// Why it cannot be written any more.
    error: Option<io::Error>,
}

/// Room for an output of which each byte is escaped.
const LONGEST_LINE: u64 = 1024 * 1024;

/// How many ranges of numbers go into a line.
const RANGES_IN_A_LINE: usize = 10_000;

impl OutcomeFile {
    /// Opens the file, and creates it if it does not exist.
    pub(super) fn open(path: &Path) -> Result<OutcomeFile, CommandError> {
        let usage = |error: io::Error| CommandError::usage("--outcomes", show(path, &error));
        let is_new = !path.exists();
        let opened = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = opened.map_err(usage)?;
        let is_file = file.metadata().is_ok_and(|it| it.is_file());
        if !is_file {
            let reason = format!("{}: it is not a regular file; take another one", path.display());
            return Err(CommandError::usage("--outcomes", reason));
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let reason = format!(
                    "{}: another producer uses it; wait for its end, or take another file",
                    path.display()
                );
                return Err(CommandError::usage("--outcomes", reason));
            }
            Err(error) => return Err(usage(error.into())),
        }
        if is_new {
            sync_folder(path).map_err(usage)?;
        }
        Ok(OutcomeFile { file, path: path.into(), error: None })
    }

    /// Calls `take` for each line. Repairs the end of a file whose last line a crash has cut.
    pub(super) fn read(
        &self,
        mut take: impl FnMut(Line) -> Result<(), String>,
    ) -> Result<(), CommandError> {
        let usage = |error: io::Error| CommandError::usage("--outcomes", show(&self.path, &error));
        let (mut whole, mut number, mut line) = (0, 0, Vec::new());
        let mut input = self.reader().map_err(usage)?;
        loop {
            line.clear();
            let next = input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
            let read = next.map_err(usage)? as u64;
            let is_cut = line.last() != Some(&b'\n') && read < LONGEST_LINE;
            let parsed = Line::parse(&line);
            if is_cut && (number > 0 || parsed.is_none() && is_cut_header(&line)) {
                let removed = if read > 0 { self.file.set_len(whole) } else { Ok(()) };
                return removed.map_err(usage);
            }
            (whole, number) = (whole + read, number + 1);
            let parsed = parsed.ok_or_else(|| "it is not a line of an --outcomes file".into());
            if let Err(reason) = parsed.and_then(&mut take) {
                let path = self.path.display();
                let reason = format!("{path}, line {number}: {reason}; take another file");
                return Err(CommandError::usage("--outcomes", reason));
            }
            if is_cut {
                return (&self.file).write_all(b"\n").map_err(usage);
            }
        }
    }

    fn reader(&self) -> io::Result<BufReader<impl Read>> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        Ok(BufReader::new(file))
    }

    /// Writes the first line.
    pub(super) fn begin(&mut self, batch: String, queue: &str) -> Result<(), CommandError> {
        let line = Line::Batch { batch, queue: queue.into() };
        let written = self.append(&[line]).and_then(|()| self.file.sync_data());
        written.map_err(|error| CommandError::usage("--outcomes", show(&self.path, &error)))
    }

    /// Notes confirmed tasks. Not on disk at once: what a crash of the system loses is published
    /// again, under the same ids.
    pub(super) fn note_published(&mut self, numbers: Vec<u64>, position: Position) {
        if numbers.is_empty() || self.error.is_some() {
            return;
        }
        let lines = ranges(numbers)
            .chunks(RANGES_IN_A_LINE)
            .map(|numbers| Line::Published(Published { numbers: numbers.to_vec(), position }))
            .collect::<Vec<_>>();
        let written = self.append(&lines);
        self.keep_error(written);
    }

    /// Writes outcomes to disk. Returns whether they are there.
    pub(super) fn note_ended(&mut self, outcomes: &[BatchOutcome]) -> bool {
        let lines: Vec<_> = outcomes.iter().map(|it| Line::Ended(Box::new(it.clone()))).collect();
        let written = self.append(&lines).and_then(|()| self.file.sync_data());
        self.keep_error(written);
        self.error.is_none()
    }

    fn append(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut text = String::new();
        for line in lines {
            text.push_str(&line.to_json());
            text.push('\n');
        }
        self.file.write_all(text.as_bytes())
    }

    fn keep_error(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            error!("--outcomes cannot be written: {}", show(&self.path, &error));
            self.error.get_or_insert(error);
        }
    }

    pub(super) fn is_writable(&self) -> bool {
        self.error.is_none()
    }

    pub(super) fn log_resumed(&self, published: u64, ended: u64) {
        info!("{}: {published} tasks are published, {ended} have ended", self.path.display());
    }
}

/// A new file is on disk only once its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HEADER: &str = r#"{"batch":"ab","queue":"q","type":"rabbit-work.batch"}"#;
    const ENDED: &str = r#"{"type":"rabbit-work.outcome","n":3,"outcome":"dead","attempts":1}"#;

    /// Reads a file with this content. Returns how many lines it has, or the error, and what is in it
    /// then.
    fn read(content: &str) -> (Result<usize, String>, String) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), content).expect("written");
        let mut lines = 0;
        let read = OutcomeFile::open(file.path()).expect("opened").read(|_| {
            lines += 1;
            Ok(())
        });
        let left = fs::read_to_string(file.path()).expect("read");
        (read.map(|()| lines).map_err(|error| error.to_string()), left)
    }

    #[test]
    fn a_last_line_that_a_crash_has_cut_is_removed() {
        let whole = format!("{HEADER}\n{ENDED}\n");
        for cut in ["", "{", ENDED] {
            assert_eq!(read(&format!("{whole}{cut}")), (Ok(2), whole.clone()), "{cut}");
        }
    }

    #[test]
    fn a_first_line_that_a_crash_has_cut_is_removed_or_completed() {
        for cut in ["", "{", &HEADER[..HEADER.len() - 1]] {
            assert_eq!(read(cut), (Ok(0), String::new()), "{cut}");
        }
        assert_eq!(read(HEADER), (Ok(1), format!("{HEADER}\n")));
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_left_as_it_is() {
        let long = format!("{HEADER}\n{ENDED}\n{}\n{ENDED}\n", "x".repeat(2 << 20));
        for (content, line) in [("word", 1), ("word\n", 1), (&long, 3)] {
            let (read, left) = read(content);
            let error = read.expect_err("refused");
            assert!(
                error.contains(&format!("line {line}: it is not a line of an --outcomes file")),
                "{error}"
            );
            assert_eq!(left, content);
        }
    }
}
