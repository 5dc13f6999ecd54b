//! What is written to a broker: the client library's frames, and the publishes of an [`Outbox`],
//! each batch in the place of a mark among those frames. A consume gets its tag.
//!
//! The mark is an ack of everything on a channel that publishes, and that never consumes. It wakes
//! the client library's thread, and keeps the order of the channel's frames.

use std::io::{self, Write};
use std::sync::Arc;

use crate::amqp::client_properties::Opening;
use crate::amqp::consumer_tag::with_tag;
use crate::amqp::outbox::Outbox;

/// Follows the frames that the client library writes.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) opening: Opening,
    pub(crate) outbox: Arc<Outbox>,
    /// How many bytes of the client library's present frame are still to be written.
    rest: usize,
    /// What is written in the place of the frame that comes next: the publishes for a mark, or a
    /// consume; and how much of it is written.
    batch: Vec<u8>,
    written: usize,
    /// The length of that frame, once the batch was taken for it.
    replaces: Option<usize>,
}

/// A frame's type, channel and size, and what follows its payload.
const HEAD: usize = 7;
const AROUND: usize = HEAD + 1;

/// What follows the type and the channel of a mark: its size, class and method; the tag 0 for
/// everything, and the flag for it; the end of the frame.
const MARK: [u8; 18] = [0, 0, 0, 13, 0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xCE];
const METHOD: u8 = 1;
const MARK_LENGTH: usize = 3 + MARK.len();

impl Outgoing {
    /// Writes the next bytes to `line`, and returns how many of them are done. A frame is done when
    /// all that replaces it is written: until then the caller waits for room, and offers it again.
    pub(crate) fn write(&mut self, bytes: &[u8], line: &mut impl Write) -> io::Result<usize> {
        if !self.opening.is_over() {
            return self.opening.write(bytes, line);
        }
        if let Some(replaced) = self.replaced(bytes) {
            self.write_batch(line)?;
            return Ok(replaced);
        }
        let length = line.write(&bytes[..self.before_next_replaced(bytes)])?;
        self.rest = self.rest_after(&bytes[..length], bytes);
        Ok(length)
    }

    /// The length of the frame that these bytes begin with, if it is to be replaced: the mark of a
    /// channel that publishes, or a consume.
    fn replaced(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.rest == 0 && self.replaces.is_none() {
            self.written = 0;
            self.replaces = match marked(bytes) {
                Some(channel) => self.outbox.take(channel, &mut self.batch).then_some(MARK_LENGTH),
                None => with_tag(bytes).map(|(frame, length)| {
                    self.batch = frame;
                    length
                }),
            };
        }
        self.replaces
    }

    fn write_batch(&mut self, line: &mut impl Write) -> io::Result<()> {
        while self.written < self.batch.len() {
            match line.write(&self.batch[self.written..])? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                length => self.written += length,
            }
        }
        self.replaces = None;
        Ok(())
    }

    /// How many bytes come before the next frame that may be replaced. A mark at the beginning is of a
    /// channel that does not publish, and is an ack.
    fn before_next_replaced(&self, bytes: &[u8]) -> usize {
        let mut end = if self.rest > 0 { self.rest } else { frame_length(bytes) };
        while let Some(left) = bytes.get(end..).filter(|left| !left.is_empty()) {
            if marked(left).is_some() || with_tag(left).is_some() {
                return end;
            }
            end += frame_length(left);
        }
        bytes.len()
    }

    /// How much of a frame is left after these bytes of all that were offered.
    fn rest_after(&self, written: &[u8], offered: &[u8]) -> usize {
        let mut end = self.rest;
        while end < written.len() {
            end += frame_length(&offered[end..]);
        }
        end - written.len()
    }
}

/// The channel whose mark is first in these bytes.
fn marked(bytes: &[u8]) -> Option<u16> {
    let [METHOD, high, low, rest @ ..] = bytes else { return None };
    rest.starts_with(&MARK).then(|| u16::from_be_bytes([*high, *low]))
}

/// The length of the frame that is first in these bytes. The client library offers whole frames: if
/// it did not, the bytes would pass as they are.
fn frame_length(bytes: &[u8]) -> usize {
    let size = bytes.get(HEAD - 4..HEAD).and_then(|size| size.try_into().ok());
    size.map_or(bytes.len(), |size| u32::from_be_bytes(size) as usize + AROUND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::consumer_tag::tests::consume_with_a_tag;
    use crate::amqp::outbox::{Added, Publishes};
    use crate::model::task::{Properties, Task};

    /// Takes so many bytes at a time, and is full after each time.
    struct Line {
        taken: Vec<u8>,
        room: usize,
        is_full: bool,
    }

    impl Write for Line {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.is_full = !self.is_full;
            if !self.is_full {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let length = bytes.len().min(self.room);
            self.taken.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn mark(channel: u16) -> Vec<u8> {
        [&[METHOD], &channel.to_be_bytes()[..], &MARK].concat()
    }

    fn frame(payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).expect("a small payload");
        [&[3, 0, 1], &size.to_be_bytes()[..], payload, &[0xCE]].concat()
    }

    fn task(body: &str) -> Task {
        Task::received(body.into(), Properties::default())
    }

    /// The frames of its publish.
    fn published(body: &str) -> Vec<u8> {
        let outbox = Arc::<Outbox>::default();
        let (publishes, mut frames) = (Publishes::new(&outbox, 4096), Vec::new());
        assert_eq!(publishes.add(1, "q", &task(body)), Added::First);
        assert!(outbox.take(1, &mut frames));
        frames
    }

    fn opened() -> Outgoing {
        let mut outgoing = Outgoing::default();
        let mut line = Line { taken: Vec::new(), room: 1000, is_full: false };
        for start in [&b"AMQP\0\0\x09\x01"[..], &frame(b"no start-ok")] {
            write_all(&mut outgoing, start, &mut line);
        }
        assert!(outgoing.opening.is_over());
        outgoing
    }

    /// Writes as the client library does: what is not done is offered again, with what came since.
    fn write_all(outgoing: &mut Outgoing, mut bytes: &[u8], line: &mut Line) {
        while !bytes.is_empty() {
            match outgoing.write(bytes, line) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[test]
    fn a_batch_replaces_its_mark_however_little_room_the_line_has() {
        // What looks like a mark inside a frame is none.
        let (before, after) = (frame(&mark(1)), frame(b"after"));
        for room in 1..60 {
            let mut outgoing = opened();
            let publishes = Publishes::new(&outgoing.outbox, 4096);
            let _ = publishes.add(1, "q", &task("one"));
            let _ = publishes.add(1, "q", &task("two"));
            let mut line = Line { taken: Vec::new(), room, is_full: false };
            let offered = [&*before, &mark(1), &before, &after, &mark(1), &after].concat();
            write_all(&mut outgoing, &offered, &mut line);
            let batch = [published("one"), published("two")].concat();
            let wanted = [&*before, &batch, &before, &after, &after].concat();
            assert_eq!(line.taken, wanted, "{room}");
        }
    }

    #[test]
    fn what_is_added_while_a_batch_is_written_waits_for_the_next_mark() {
        let mut outgoing = opened();
        let publishes = Publishes::new(&outgoing.outbox, 4096);
        let _ = publishes.add(1, "q", &task("first"));
        let mut line = Line { taken: Vec::new(), room: 3, is_full: false };
        let offered = mark(1);
        assert!(outgoing.write(&offered, &mut line).is_err(), "the line is full");
        assert_eq!(publishes.add(1, "q", &task("second")), Added::First);
        write_all(&mut outgoing, &offered, &mut line);
        assert_eq!(line.taken, published("first"));
        write_all(&mut outgoing, &offered, &mut line);
        assert_eq!(line.taken, [published("first"), published("second")].concat());
    }

    #[test]
    fn a_consume_gets_its_tag_however_little_room_the_line_has() {
        let (asked, tagged) = consume_with_a_tag();
        for room in 1..60 {
            let mut outgoing = opened();
            let publishes = Publishes::new(&outgoing.outbox, 4096);
            let _ = publishes.add(1, "q", &task("one"));
            let mut line = Line { taken: Vec::new(), room, is_full: false };
            // What looks like a consume inside a frame is none.
            let inside = frame(&asked);
            let offered = [&*inside, &asked, &mark(1), &asked, &inside].concat();
            write_all(&mut outgoing, &offered, &mut line);
            let wanted = [&*inside, &tagged, &published("one"), &tagged, &inside].concat();
            assert_eq!(line.taken, wanted, "{room}");
        }
    }

    #[test]
    fn an_ack_of_everything_on_a_channel_that_consumes_passes() {
        let mut outgoing = opened();
        let publishes = Publishes::new(&outgoing.outbox, 4096);
        let _ = publishes.add(1, "q", &task("x"));
        let mut line = Line { taken: Vec::new(), room: 5, is_full: false };
        let offered = [mark(2), frame(b"x"), mark(2), mark(1), mark(2)].concat();
        write_all(&mut outgoing, &offered, &mut line);
        let wanted = [mark(2), frame(b"x"), mark(2), published("x"), mark(2)].concat();
        assert_eq!(line.taken, wanted);
    }
}
