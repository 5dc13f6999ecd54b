//! The lines of the file of --outcomes: of which batch it is, what is published, what has ended. Pure.

use rabbit_work::BatchOutcome;
use serde_json::{Value, json};

/// One line.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// The first: whose outcomes follow.
    Batch {
        batch: String,
        queue: String,
    },
    Published(Published),
    Ended(Box<BatchOutcome>),
}

/// Tasks that the broker has confirmed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Published {
    /// Their numbers, from and to.
    pub(super) numbers: Vec<(u64, u64)>,
    pub(super) position: Position,
}

/// How much of the input was read, and what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// How many tasks.
    pub(super) read: u64,
    /// Of their bodies; see [`Position::add`].
    digest: u64,
}

/// How the first line begins.
const HEADER: &[u8] = b"{\"batch\":\"";

const BATCH: &str = "rabbit-work.batch";
const PUBLISHED: &str = "rabbit-work.published";

impl Line {
    /// `None` if it is no line of such a file.
    pub(super) fn parse(line: &[u8]) -> Option<Line> {
        if let Some(outcome) = BatchOutcome::from_json(line) {
            return Some(Line::Ended(Box::new(outcome)));
        }
        let object: Value = serde_json::from_slice(line).ok()?;
        match object.get("type")?.as_str()? {
            BATCH => Some(Line::Batch {
                batch: object.get("batch")?.as_str()?.into(),
                queue: object.get("queue")?.as_str()?.into(),
            }),
            PUBLISHED => {
                let ranges = object.get("numbers")?.as_array()?;
                let numbers = ranges.iter().map(range).collect::<Option<_>>()?;
                let read = object.get("read")?.as_u64()?;
                let digest = u64::from_str_radix(object.get("digest")?.as_str()?, 16).ok()?;
                Some(Line::Published(Published { numbers, position: Position { read, digest } }))
            }
            _ => None,
        }
    }

    pub(super) fn to_json(&self) -> String {
        match self {
            Line::Batch { batch, queue } => {
                json!({ "type": BATCH, "batch": batch, "queue": queue }).to_string()
            }
            Line::Published(Published { numbers, position: Position { read, digest } }) => {
                let numbers: Vec<_> = numbers.iter().map(|(from, to)| json!([from, to])).collect();
                let digest = format!("{digest:016x}");
                json!({ "type": PUBLISHED, "numbers": numbers, "read": read, "digest": digest })
                    .to_string()
            }
            Line::Ended(outcome) => outcome.to_json(),
        }
    }
}

impl Position {
    pub(super) const START: Position = Position { read: 0, digest: 0xcbf2_9ce4_8422_2325 };

    /// Adds the next body: FNV-1a over its length and its bytes, which differs for another input
    /// that was given by mistake.
    pub(super) fn add(&mut self, body: &[u8]) {
        self.read += 1;
        for byte in (body.len() as u64).to_le_bytes().iter().chain(body) {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Whether a crash can have left this of the first line.
pub(super) fn is_cut_header(line: &[u8]) -> bool {
    line.starts_with(HEADER) || HEADER.starts_with(line)
}

fn range(value: &Value) -> Option<(u64, u64)> {
    let [from, to] = value.as_array()?.as_slice() else { return None };
    let (from, to) = (from.as_u64()?, to.as_u64()?);
    // No input is longer: a damaged line must not keep us counting.
    (0 < from && from <= to && to - from < 1 << 32).then_some((from, to))
}

/// The same numbers as ranges.
pub(super) fn ranges(mut numbers: Vec<u64>) -> Vec<(u64, u64)> {
    numbers.sort_unstable();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for n in numbers {
        match ranges.last_mut() {
            Some((_, to)) if n <= *to + 1 => *to = n,
            _ => ranges.push((n, n)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were() {
        let position = Position { read: 12, digest: 0xab };
        for line in [
            Line::Batch { batch: "ab".into(), queue: "q \"x\"".into() },
            Line::Published(Published { numbers: vec![(1, 3), (7, 7)], position }),
        ] {
            assert_eq!(Line::parse(line.to_json().as_bytes()), Some(line));
        }
        let ended = r#"{"type":"rabbit-work.outcome","n":3,"outcome":"dead","attempts":1}"#;
        assert!(matches!(Line::parse(ended.as_bytes()), Some(Line::Ended(it)) if it.n == 3));
    }

    #[test]
    fn each_beginning_of_a_first_line_is_one() {
        let line = Line::Batch { batch: "ab".into(), queue: "q".into() }.to_json();
        assert!((0..line.len()).all(|end| is_cut_header(&line.as_bytes()[..end])), "{line}");
        for other in ["word", "{}", "[", "{\"b\":1"] {
            assert!(!is_cut_header(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn other_lines_are_none() {
        for line in [
            "",
            "word",
            "{}",
            r#"{"type":"rabbit-work.batch"}"#,
            r#"{"type":"rabbit-work.published","numbers":[[3,1]],"read":1,"digest":"0"}"#,
            r#"{"type":"rabbit-work.published","numbers":[[1,1e18]],"read":1,"digest":"0"}"#,
            r#"{"type":"rabbit-work.published","numbers":[[1,99999999999]],"read":1,"digest":"0"}"#,
            r#"{"type":"rabbit-work.outcome","n":0,"outcome":"dead","attempts":1}"#,
        ] {
            assert_eq!(Line::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn numbers_become_ranges() {
        assert_eq!(ranges(vec![5, 1, 2, 9, 3, 2]), [(1, 3), (5, 5), (9, 9)]);
        assert_eq!(ranges(Vec::new()), []);
    }

    #[test]
    fn a_position_distinguishes_inputs() {
        let after = |bodies: &[&[u8]]| {
            let mut position = Position::START;
            bodies.iter().for_each(|body| position.add(body));
            position
        };
        assert_eq!(after(&[b"a", b"b"]), after(&[b"a", b"b"]));
        assert_ne!(after(&[b"a", b"b"]), after(&[b"b", b"a"]));
        assert_ne!(after(&[b"ab", b""]), after(&[b"a", b"b"]));
        assert_ne!(after(&[b""]), after(&[]));
    }
}
