//! Validates incoming frames before amiquip parses them, because amiquip limits neither their size
//! nor their nesting: it allocates whatever size a frame announces, and the process ends if there
//! is no memory for it (amiquip 0.4.2 frame_buffer.rs:46, io_loop/content_collector.rs:194). It
//! also stops reading a table at text that is not UTF-8, and waits without a limit for the rest of
//! a frame. Pure.

mod frame;
#[cfg(test)]
mod property;
mod stall;
mod table;

use std::io;
use std::mem;
use std::time::Instant;

use crate::amqp::guard::frame::{
    ARGUMENTS, AROUND, BODY_FRAME, CANCEL_CONSUMER, CLOSE, CLOSE_CHANNEL, FRAME_END, FrameHead,
    HEAD, HEADER_FRAME, INSIDE, METHOD_FRAME, OPEN_CHANNEL_OK, START, START_TABLE, TUNE,
    begins_a_method, body_size_of, channel_of, check_body_size, check_frame_size,
    check_method_size, frame_max_of, not_amqp, read_close, size_of, too_deep,
};
pub(crate) use crate::amqp::guard::frame::{LARGEST_FRAME, LimitExceeded};
use crate::amqp::guard::stall::Unfinished;
use crate::amqp::guard::table::{TooDeep, sanitize_properties, sanitize_table};

/// Follows the frames of one connection through the bytes that come, in pieces of any size. A frame
/// that no broker sends is an error. The content of bodies is not read.
#[derive(Debug)]
pub(crate) struct FrameGuard {
    /// The first bytes of the present frame, as far as they have come.
    head: FrameHead,
    received: usize,
    wanted: usize,
    /// How many bytes of the present frame follow what `head` has of it.
    rest: usize,
    /// What came of the present method, if we read all of it.
    captured: Vec<u8>,
    /// What came of a message's properties in pieces. Only whole properties can be sanitized, and
    /// they are not passed on before.
    buffered: Vec<u8>,
    capture: Capture,
    unfinished: Unfinished,
    /// Whether no frame has passed yet.
    first: bool,
    /// What replaces a proposed heartbeat of zero, in seconds; `None` after the proposal.
    heartbeat: Option<u8>,
    /// What the broker has proposed, with the replacement.
    pub(crate) proposed: Option<Proposal>,
    /// The code and the text with which the broker has closed the connection.
    pub(crate) closed: Option<(u16, String)>,
    /// What it has said of channels, by their numbers.
    pub(crate) channels: Vec<(u16, ChannelChange)>,
}

/// What a broker's frame says of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChannelChange {
    Opened,
    /// With this code and text.
    Closed(u16, String),
    /// Its consumer was cancelled.
    Cancelled,
}

/// What a broker's tune proposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// In seconds.
    pub(crate) heartbeat: u16,
    /// The largest frame; 0 for no limit.
    pub(crate) frame: u32,
}

/// What the rest of the present frame has to be read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Capture {
    Nothing,
    /// The properties of a message.
    Properties,
    /// The broker's own properties, in its start.
    Table,
    /// The code and the text of its close of the connection or of a channel.
    Close,
}

/// Why bytes are not passed on.
#[derive(Debug)]
pub(crate) struct InvalidFrame {
    /// How many of the bytes before it are valid.
    pub(crate) valid_len: usize,
    pub(crate) error: io::Error,
}

impl FrameGuard {
    /// Begins with the first bytes of a connection. If the broker proposes no heartbeat,
    /// `heartbeat` replaces its zero, in seconds and 255 at most: the client library would agree to
    /// none, as if zero were the shortest interval.
    pub(crate) fn new(heartbeat: u16) -> FrameGuard {
        let heartbeat = u8::try_from(heartbeat).unwrap_or(u8::MAX);
        FrameGuard {
            head: [0; HEAD + INSIDE],
            received: 0,
            wanted: HEAD,
            rest: 0,
            captured: Vec::new(),
            buffered: Vec::new(),
            capture: Capture::Nothing,
            unfinished: Unfinished::default(),
            first: true,
            heartbeat: Some(heartbeat),
            proposed: None,
            closed: None,
            channels: Vec::new(),
        }
    }

    /// How many bytes may come next: after buffered ones, only those that belong to them.
    pub(crate) fn room(&self) -> usize {
        if self.buffered.is_empty() { usize::MAX } else { self.rest }
    }

    /// Inspects the bytes that have just come. Returns how many of them to pass on: the others are
    /// buffered.
    pub(crate) fn inspect(
        &mut self,
        bytes: &mut [u8],
        now: Instant,
    ) -> Result<usize, InvalidFrame> {
        let (mut inspected, mut valid_len) = (0, 0);
        while inspected < bytes.len() {
            let left = &mut bytes[inspected..];
            let length = if self.rest > 0 { self.read_rest(left) } else { self.read_head(left) };
            let length = length.map_err(|error| InvalidFrame { valid_len, error })?;
            self.unfinished.grow(length, now);
            if self.has_ended() {
                self.unfinished.end_frame(now);
            }
            inspected += length;
            if self.buffered.is_empty() {
                valid_len = inspected;
            }
        }
        self.unfinished.check(now).map_err(|text| {
            let error = io::Error::new(io::ErrorKind::InvalidData, text);
            InvalidFrame { valid_len, error }
        })?;
        Ok(valid_len)
    }

    /// Passes on what was buffered, once it is whole, as far as there is room for it. Returns how
    /// much that is.
    pub(crate) fn release(&mut self, room: &mut [u8]) -> usize {
        if self.rest > 0 {
            return 0;
        }
        let length = room.len().min(self.buffered.len());
        room[..length].copy_from_slice(&self.buffered[..length]);
        self.buffered.drain(..length);
        length
    }

    fn read_rest(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (taken, _) = bytes.split_at_mut(bytes.len().min(self.rest));
        self.rest -= taken.len();
        self.first &= self.rest > 0;
        let sanitized = match self.capture {
            Capture::Nothing => Ok(()),
            Capture::Properties => self.buffer(taken),
            Capture::Table | Capture::Close => self.capture(taken),
        };
        if self.rest == 0 {
            self.capture = Capture::Nothing;
        }
        sanitized.map_err(too_deep)?;
        Ok(taken.len())
    }

    /// Sanitizes what came, or buffers it until all of it is here.
    fn buffer(&mut self, taken: &mut [u8]) -> Result<(), TooDeep> {
        if self.rest == 0 && self.buffered.is_empty() {
            return sanitize_properties(taken);
        }
        self.buffered.extend_from_slice(taken);
        if self.rest > 0 {
            return Ok(());
        }
        sanitize_properties(&mut self.buffered).inspect_err(|TooDeep| self.buffered.clear())
    }

    /// Captures what came, and checks it before the end of the frame is passed on. Nobody publishes
    /// it again, so that a sanitized copy is not needed.
    fn capture(&mut self, taken: &[u8]) -> Result<(), TooDeep> {
        self.captured.extend_from_slice(taken);
        if self.rest > 0 {
            return Ok(());
        }
        let mut captured = mem::take(&mut self.captured);
        match self.capture {
            Capture::Close if captured.pop() == Some(FRAME_END) => {
                self.note_close(read_close(&captured));
            }
            Capture::Table => return sanitize_table(&mut captured),
            _ => {}
        }
        Ok(())
    }

    /// Notes the code and the text of a close, which is of a channel or of the whole connection.
    fn note_close(&mut self, close: Option<(u16, String)>) {
        match channel_of(&self.head) {
            0 => self.closed = close,
            channel => {
                let change = close.map(|(code, text)| ChannelChange::Closed(code, text));
                self.channels.extend(change.map(|change| (channel, change)));
            }
        }
    }

    /// Whether the last byte that came was the last of a frame.
    fn has_ended(&self) -> bool {
        self.rest == 0 && self.received == 0
    }

    fn read_head(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (taken, left) = bytes.split_at_mut(bytes.len().min(self.wanted - self.received));
        self.head[self.received..][..taken.len()].copy_from_slice(taken);
        self.received += taken.len();
        let head = &self.head[..self.received];
        if self.first && !begins_a_method(head) {
            return Err(not_amqp(&[head, &*left].concat()));
        }
        if self.received == self.wanted {
            self.complete_head(taken)?;
        }
        Ok(taken.len())
    }

    /// Reads the head that `last` completes, and prepares for what follows it.
    fn complete_head(&mut self, last: &mut [u8]) -> io::Result<()> {
        let size = size_of(&self.head);
        if self.wanted == HEAD {
            check_frame_size(size)?;
            if self.has_more_to_read() && size > 0 {
                self.wanted += INSIDE.min(size as usize);
                return Ok(());
            }
        }
        self.read_inside(size, last)?;
        self.rest = (size + AROUND) as usize - self.wanted;
        (self.received, self.wanted) = (0, HEAD);
        Ok(())
    }

    fn has_more_to_read(&self) -> bool {
        matches!(self.head[0], METHOD_FRAME | HEADER_FRAME)
    }

    fn read_inside(&mut self, size: u32, last: &mut [u8]) -> io::Result<()> {
        let inside = &self.head[HEAD..self.wanted];
        match (self.head[0], inside.first_chunk()) {
            (METHOD_FRAME, Some(&method)) => self.read_method(method, size, last)?,
            (HEADER_FRAME, _) if inside.len() == INSIDE => self.read_header()?,
            (BODY_FRAME, _) => self.unfinished.body(channel_of(&self.head), size),
            _ => {}
        }
        Ok(())
    }

    fn read_method(&mut self, method: [u8; 4], size: u32, last: &mut [u8]) -> io::Result<()> {
        let channel = channel_of(&self.head);
        self.unfinished.method(channel, method);
        match method {
            START => self.begin_capture(Capture::Table, START_TABLE),
            CLOSE if channel == 0 => self.begin_capture(Capture::Close, ARGUMENTS),
            CLOSE_CHANNEL if channel != 0 => self.begin_capture(Capture::Close, ARGUMENTS),
            OPEN_CHANNEL_OK => self.channels.push((channel, ChannelChange::Opened)),
            CANCEL_CONSUMER => self.channels.push((channel, ChannelChange::Cancelled)),
            _ => {}
        }
        check_method_size(method, size)?;
        if method == TUNE && size as usize >= INSIDE {
            self.read_tune(last);
        }
        Ok(())
    }

    fn begin_capture(&mut self, what: Capture, from: usize) {
        self.capture = what;
        self.captured.extend_from_slice(self.head.get(from..self.wanted).unwrap_or_default());
    }

    fn read_header(&mut self) -> io::Result<()> {
        let body = body_size_of(&self.head);
        check_body_size(body)?;
        self.capture = Capture::Properties;
        self.unfinished.header(channel_of(&self.head), body);
        Ok(())
    }

    /// Replaces a proposed heartbeat of zero. The head ends with the two bytes of the heartbeat, and
    /// `last` ends with the second of them.
    fn read_tune(&mut self, last: &mut [u8]) {
        let Some(ours) = self.heartbeat.take() else { return };
        let [.., high, low] = self.head;
        let mut heartbeat = u16::from_be_bytes([high, low]);
        if let (0, Some(byte)) = (heartbeat, last.last_mut()) {
            *byte = ours;
            heartbeat = ours.into();
        }
        self.proposed = Some(Proposal { heartbeat, frame: frame_max_of(&self.head) });
    }
}

#[cfg(test)]
mod tests;
