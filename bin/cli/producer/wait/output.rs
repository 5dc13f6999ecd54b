//! Prints the standard output of the tasks' commands, in the order of arrival or of the input.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use log::error;
use rabbit_work::{BatchOutcome, TaskOutput};

use crate::cli::common::error::CommandError;
use crate::cli::common::stdio::write_out;

/// What prints the outputs.
pub(super) struct Printer {
    order: Order,
    /// Why nothing more is printed.
    error: Option<io::Error>,
}

enum Order {
    /// Nothing is printed.
    None,
    Arrival,
    Input(Held),
}

/// The outputs of tasks that are not yet at their turn, in an unnamed file.
struct Held {
    next: u64,
    file: File,
    length: u64,
    /// Where each output is, and how long.
    places: BTreeMap<u64, (u64, usize)>,
    /// The numbers of tasks that have no output.
    skipped: BTreeSet<u64>,
}

impl Printer {
    pub(super) fn none() -> Printer {
        Printer { order: Order::None, error: None }
    }

    pub(super) fn in_order_of_arrival() -> Printer {
        Printer { order: Order::Arrival, error: None }
    }

    pub(super) fn in_order_of_input() -> Result<Printer, CommandError> {
        let held = Held::new().map_err(|error| {
            CommandError::usage("--keep-order", format!("cannot create a temporary file: {error}"))
        })?;
        Ok(Printer { order: Order::Input(held), error: None })
    }

    pub(super) fn is_on(&self) -> bool {
        !matches!(self.order, Order::None)
    }

    /// Waits for no output of these tasks.
    pub(super) fn skip(&mut self, numbers: BTreeSet<u64>) {
        if let Order::Input(held) = &mut self.order {
            held.skipped = numbers;
            let printed = held.print_those_at_their_turn(write_out);
            self.keep_error(printed);
        }
    }

    /// Prints an output, or keeps it for its turn.
    pub(super) fn note(&mut self, outcome: &BatchOutcome) {
        let printed = match &mut self.order {
            Order::None => return,
            _ if self.error.is_some() => return,
            Order::Arrival => write_out(&text_of(outcome)),
            Order::Input(held) => held.add(outcome.n, &text_of(outcome), write_out),
        };
        self.keep_error(printed);
    }

    /// Prints what is kept: nothing comes any more that is before it.
    pub(super) fn finish(&mut self) {
        if let (Order::Input(held), None) = (&mut self.order, &self.error) {
            let printed = held.print_all(write_out);
            self.keep_error(printed);
        }
    }

    fn keep_error(&mut self, printed: io::Result<()>) {
        if let Err(error) = printed {
            self.error.get_or_insert(error);
        }
    }

    /// Logs why not all was printed. A reader that went away is no error.
    pub(super) fn has_failed(&self) -> bool {
        match &self.error {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                error!("standard output cannot be written: {error}");
                true
            }
            _ => false,
        }
    }
}

impl Held {
    fn new() -> io::Result<Held> {
        let (places, skipped) = (BTreeMap::new(), BTreeSet::new());
        Ok(Held { next: 1, file: tempfile::tempfile()?, length: 0, places, skipped })
    }

    /// A task that nobody waits for has no turn, and may run all the same.
    fn add(
        &mut self,
        n: u64,
        text: &[u8],
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if n < self.next {
            return write(text);
        }
        if n > self.next {
            self.file.write_all_at(text, self.length)?;
            self.places.insert(n, (self.length, text.len()));
            self.length += text.len() as u64;
            return Ok(());
        }
        write(text)?;
        self.next += 1;
        self.print_those_at_their_turn(write)
    }

    fn print_those_at_their_turn(
        &mut self,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        while self.places.contains_key(&self.next) || self.skipped.contains(&self.next) {
            self.print(self.next, &mut write)?;
            self.skipped.remove(&self.next);
            self.next += 1;
        }
        if self.places.is_empty() && self.length > 0 {
            self.file.set_len(0)?;
            self.length = 0;
        }
        Ok(())
    }

    fn print(&mut self, n: u64, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let Some((place, length)) = self.places.remove(&n) else { return Ok(()) };
        let mut text = vec![0; length];
        self.file.read_exact_at(&mut text, place)?;
        write(&text)
    }

    fn print_all(&mut self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let left: Vec<u64> = self.places.keys().copied().collect();
        left.into_iter().try_for_each(|n| self.print(n, &mut write))
    }
}

/// The output, with a mark if it was cut.
fn text_of(outcome: &BatchOutcome) -> Vec<u8> {
    let Some(TaskOutput { bytes, cut_from, .. }) = &outcome.output else { return Vec::new() };
    let mut text = bytes.clone();
    if let Some(length) = cut_from {
        if text.last() != Some(&b'\n') {
            text.push(b'\n');
        }
        let kept = bytes.len();
        let mark = format!("[task {}: cut after {kept} of {length} bytes]\n", outcome.n);
        text.extend_from_slice(mark.as_bytes());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_come_in_order_without_those_of_tasks_that_are_not_published() {
        let mut held = Held::new().expect("a file");
        let mut printed = Vec::new();
        let mut write = |text: &[u8]| {
            printed.extend_from_slice(text);
            Ok(())
        };
        held.skipped = [1, 4, 6].into();
        held.print_those_at_their_turn(&mut write).expect("printed");
        for (n, text) in [(3, b"3"), (6, b"6"), (2, b"2"), (1, b"1"), (7, b"7"), (5, b"5")] {
            held.add(n, text, &mut write).expect("printed");
        }
        // 1 ran although it has no turn any more.
        assert_eq!(String::from_utf8_lossy(&printed), "231567");
        assert_eq!((held.next, held.places.len(), held.length), (8, 0, 0));
    }
}
