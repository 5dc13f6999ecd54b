//! The ledger: what was tried and what became of it, and the verdict Jepsen's total-queue gives.
//!
//! A file of lines, each one write to a descriptor opened for appending, so that it survives the
//! death of the process that wrote it and can be shared by several.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// A set of task ids.
pub(crate) type Ids = BTreeSet<String>;

/// The file, open for appending.
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
}

/// What a ledger's file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub(crate) attempted: Ids,
    pub(crate) confirmed: Ids,
    pub(crate) nacked: Ids,
    pub(crate) returned: Ids,
    pub(crate) started: BTreeMap<String, usize>,
    pub(crate) finished: BTreeMap<String, usize>,
    /// Lines that a death cut short; they record nothing.
    pub(crate) torn: usize,
}

/// What became of every task.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) attempted: Ids,
    pub(crate) confirmed: Ids,
    /// Finished at least once.
    pub(crate) finished: Ids,
    /// Confirmed, but neither finished nor in a queue. Must be empty.
    pub(crate) lost: Ids,
    /// Finished, but never attempted. Must be empty.
    pub(crate) unexpected: Ids,
    /// Finished more than once.
    pub(crate) duplicated: Ids,
    /// Finished, but never confirmed.
    pub(crate) recovered: Ids,
}

impl Ledger {
    /// Opens the file, and makes it if need be.
    pub(crate) fn open(path: &Path) -> Ledger {
        let file =
            OpenOptions::new().create(true).append(true).read(true).open(path).unwrap_or_else(
                |error| panic!("cannot open the ledger {}: {error}", path.display()),
            );
        let mut ledger = Ledger { path: path.to_owned(), file };
        ledger.close_torn_line();
        ledger
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn attempted(&self, id: &str) {
        self.record('A', id);
    }

    pub(crate) fn confirmed(&self, id: &str) {
        self.record('C', id);
    }

    pub(crate) fn nacked(&self, id: &str) {
        self.record('N', id);
    }

    pub(crate) fn returned(&self, id: &str) {
        self.record('R', id);
    }

    pub(crate) fn started(&self, id: &str) {
        self.record('S', id);
    }

    pub(crate) fn finished(&self, id: &str) {
        self.record('F', id);
    }

    pub(crate) fn records(&self) -> Records {
        let text = fs::read(&self.path).expect("the ledger can be read");
        Records::parse(&text)
    }

    /// The verdict, given the ids found in the queue and the dead-letter queue afterwards.
    pub(crate) fn verdict(&self, remaining: &[String]) -> Verdict {
        self.records().verdict(remaining)
    }

    fn record(&self, kind: char, id: &str) {
        let word = !id.is_empty() && !id.contains(char::is_whitespace);
        assert!(word, "a ledger's id is one word, not {id:?}");
        let line = format!("{kind} {id}\n");
        let written = (&self.file).write(line.as_bytes());
        let written = written.expect("the ledger can be written");
        assert_eq!(written, line.len(), "a record is one write");
    }

    /// Keeps a torn line from swallowing the next record, or from passing for a whole one.
    fn close_torn_line(&mut self) {
        let mut text = Vec::new();
        let read = self.file.read_to_end(&mut text);
        read.expect("the ledger can be read");
        if text.last().is_some_and(|last| *last != b'\n') {
            self.file.write_all(b" was torn\n").expect("the ledger can be written");
        }
    }
}

impl Records {
    pub(crate) fn parse(text: &[u8]) -> Records {
        let mut records = Records::default();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            if records.take(line).is_none() {
                records.torn += 1;
            }
        }
        records
    }

    pub(crate) fn verdict(self, remaining: &[String]) -> Verdict {
        let finished: Ids = self.finished.keys().cloned().collect();
        let kept: Ids = finished.iter().chain(remaining).cloned().collect();
        let twice = self.finished.iter().filter(|(_, times)| **times > 1);
        Verdict {
            lost: &self.confirmed - &kept,
            unexpected: &finished - &self.attempted,
            duplicated: twice.map(|(id, _)| id.clone()).collect(),
            recovered: &finished - &self.confirmed,
            attempted: self.attempted,
            confirmed: self.confirmed,
            finished,
        }
    }

    /// Takes a line in; `None` if it is not a whole record.
    fn take(&mut self, line: &[u8]) -> Option<()> {
        let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
        let (kind, id) = line.split_once(' ')?;
        if id.is_empty() || id.contains(char::is_whitespace) {
            return None;
        }
        let id = id.to_owned();
        match kind {
            "A" => drop(self.attempted.insert(id)),
            "C" => drop(self.confirmed.insert(id)),
            "N" => drop(self.nacked.insert(id)),
            "R" => drop(self.returned.insert(id)),
            "S" => *self.started.entry(id).or_default() += 1,
            "F" => *self.finished.entry(id).or_default() += 1,
            _ => return None,
        }
        Some(())
    }
}

impl Verdict {
    /// Nothing confirmed is lost, and nothing was done that nobody asked for.
    pub(crate) fn is_valid(&self) -> bool {
        self.lost.is_empty() && self.unexpected.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "valid={}", self.is_valid())?;
        for (name, ids) in [
            ("attempted", &self.attempted),
            ("confirmed", &self.confirmed),
            ("finished", &self.finished),
        ] {
            write!(f, " {name}={}", ids.len())?;
        }
        for (name, ids) in [
            ("lost", &self.lost),
            ("unexpected", &self.unexpected),
            ("duplicated", &self.duplicated),
            ("recovered", &self.recovered),
        ] {
            write!(f, " {name}={}", ids.len())?;
            if !ids.is_empty() {
                let shown: Vec<&str> = ids.iter().take(5).map(String::as_str).collect();
                let more = if ids.len() > 5 { " …" } else { "" };
                write!(f, "{{{}{more}}}", shown.join(" "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(words: &str) -> Ids {
        words.split_whitespace().map(str::to_owned).collect()
    }

    fn list(words: &str) -> Vec<String> {
        words.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn each_equation_names_its_own_ids() {
        let text = b"A 1\nA 2\nA 3\nA 4\nA 5\nC 1\nC 2\nC 3\nC 5\nF 1\nF 1\nF 4\nF 9\n";
        let verdict = Records::parse(text).verdict(&list("3 8"));
        assert_eq!(verdict.lost, ids("2 5"));
        assert_eq!(verdict.unexpected, ids("9"));
        assert_eq!(verdict.duplicated, ids("1"));
        assert_eq!(verdict.recovered, ids("4 9"));
        assert_eq!(
            verdict.to_string(),
            "valid=false attempted=5 confirmed=4 finished=3 lost=2{2 5} unexpected=1{9} \
             duplicated=1{1} recovered=2{4 9}"
        );
    }

    #[test]
    fn nothing_lost_is_valid() {
        let text = b"A 1\nC 1\nS 1\nF 1\nA 2\nN 2\nA 3\nR 3\n";
        let records = Records::parse(text);
        assert_eq!(records.nacked, ids("2"));
        assert_eq!(records.returned, ids("3"));
        let verdict = records.verdict(&[]);
        assert!(verdict.is_valid(), "{verdict}");
    }

    #[test]
    fn a_start_alone_finishes_nothing() {
        let verdict = Records::parse(b"A 1\nC 1\nS 1\n").verdict(&[]);
        assert_eq!(verdict.lost, ids("1"));
    }

    #[test]
    fn a_torn_last_line_records_nothing() {
        // "C 1" may be the beginning of "C 12".
        let records = Records::parse(b"A 12\nC 1");
        assert_eq!((records.confirmed.len(), records.torn), (0, 1));
    }

    #[test]
    fn a_torn_line_swallows_no_later_record() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger");
        for torn in ["F", "F ", "F 1", "C 12"] {
            fs::write(&path, format!("A 1\n{torn}")).expect("written");
            Ledger::open(&path).confirmed("2");
            let records = Ledger::open(&path).records();
            assert_eq!(records.torn, 1, "{torn:?}");
            assert_eq!(records.confirmed, ids("2"), "{torn:?}");
            assert!(records.finished.is_empty(), "{torn:?}");
        }
    }

    #[test]
    fn two_writers_share_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger");
        let (one, other) = (Ledger::open(&path), Ledger::open(&path));
        for number in 0..100 {
            one.attempted(&number.to_string());
            other.finished(&number.to_string());
        }
        let verdict = one.verdict(&[]);
        assert_eq!(verdict.finished.len(), 100);
        assert!(verdict.is_valid(), "{verdict}");
    }
}
