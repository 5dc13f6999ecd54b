//! The layout of AMQP 0-9-1 frames, and the limits on what a broker may send in one. Pure.

use std::fmt;
use std::io;

use crate::amqp::guard::table::{DEEPEST, TooDeep};

/// The largest frame that we agree on with a broker. If we named none, it could be of any size.
pub(crate) const LARGEST_FRAME: u32 = 1 << 20;

/// The largest body that we take: RabbitMQ allows no larger `max_message_size`.
pub(super) const LARGEST_INBOUND_BODY: u64 = 512 << 20;

/// The largest method except start. No other method of a broker has a table, or more than three
/// short strings. A client's methods with a table cannot nest it deep in so few bytes: each level
/// takes five.
const LARGEST_METHOD: u32 = 1 << 10;

/// A frame's type, channel and size (<https://www.rabbitmq.com/amqp-0-9-1-protocol>).
pub(super) const HEAD: usize = 7;

/// How many bytes of the payload we read with the head. A content header begins with as many:
/// class, weight, body size. Tune has as many: class, method, the most channels, the largest frame,
/// the heartbeat.
pub(super) const INSIDE: usize = 12;

/// What a frame has beside its payload: the head, and one byte at its end.
pub(super) const AROUND: u32 = 8;

pub(super) const METHOD_FRAME: u8 = 1;
pub(super) const HEADER_FRAME: u8 = 2;
pub(super) const BODY_FRAME: u8 = 3;
pub(super) const FRAME_END: u8 = 0xCE;

/// Class and number of the methods that we read.
pub(super) const START: [u8; 4] = [0, 10, 0, 10];
pub(super) const TUNE: [u8; 4] = [0, 10, 0, 30];
pub(super) const CLOSE: [u8; 4] = [0, 10, 0, 50];
pub(super) const OPEN_CHANNEL_OK: [u8; 4] = [0, 20, 0, 11];
pub(super) const CLOSE_CHANNEL: [u8; 4] = [0, 20, 0, 40];
pub(super) const CANCEL_CONSUMER: [u8; 4] = [0, 60, 0, 30];

/// What follows the class and the number.
pub(super) const ARGUMENTS: usize = HEAD + 4;

/// The table of start follows its version.
pub(super) const START_TABLE: usize = ARGUMENTS + 2;

/// The largest frame of tune follows the most channels.
const TUNE_FRAME: usize = ARGUMENTS + 2;

/// The first byte of a TLS alert.
const TLS_ALERT: u8 = 0x15;

/// How much of an answer that is not AMQP is shown.
const SHOWN: usize = 40;

/// The first bytes of a frame: its head and the beginning of its payload.
pub(super) type FrameHead = [u8; HEAD + INSIDE];

/// A frame is AMQP, but exceeds a limit of this crate.
#[derive(Debug)]
pub(crate) struct LimitExceeded(String);

impl fmt::Display for LimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LimitExceeded {}

pub(super) fn channel_of(head: &FrameHead) -> u16 {
    u16::from_be_bytes([head[1], head[2]])
}

pub(super) fn size_of(head: &FrameHead) -> u32 {
    u32::from_be_bytes([head[3], head[4], head[5], head[6]])
}

/// The size of the body that a content header announces.
pub(super) fn body_size_of(head: &FrameHead) -> u64 {
    head[HEAD + 4..].iter().fold(0, |size, byte| size << 8 | u64::from(*byte))
}

/// The largest frame that a tune proposes.
pub(super) fn frame_max_of(head: &FrameHead) -> u32 {
    head[TUNE_FRAME..][..4].iter().fold(0, |size, byte| size << 8 | u32::from(*byte))
}

/// The code and the text of a close.
pub(super) fn read_close(arguments: &[u8]) -> Option<(u16, String)> {
    let (code, left) = arguments.split_first_chunk()?;
    let (length, left) = left.split_first()?;
    let text = left.get(..usize::from(*length))?;
    Some((u16::from_be_bytes(*code), String::from_utf8_lossy(text).into_owned()))
}

pub(super) fn check_frame_size(size: u32) -> io::Result<()> {
    if size > LARGEST_FRAME - AROUND {
        return Err(limit_exceeded(format!(
            "the broker sent an invalid frame, or one of {size} bytes (limit {LARGEST_FRAME})"
        )));
    }
    Ok(())
}

pub(super) fn check_method_size(method: [u8; 4], size: u32) -> io::Result<()> {
    if method != START && size > LARGEST_METHOD {
        return Err(limit_exceeded(format!(
            "the broker sent a method of {size} bytes (limit {LARGEST_METHOD})"
        )));
    }
    Ok(())
}

pub(super) fn check_body_size(size: u64) -> io::Result<()> {
    if size > LARGEST_INBOUND_BODY {
        return Err(limit_exceeded(format!(
            "the broker announced a message of {size} bytes (limit {LARGEST_INBOUND_BODY})"
        )));
    }
    Ok(())
}

pub(super) fn too_deep(TooDeep: TooDeep) -> io::Error {
    limit_exceeded(format!("the broker sent headers that are nested deeper than {DEEPEST} levels"))
}

fn limit_exceeded(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, LimitExceeded(text))
}

/// Whether these may be the first bytes of a method on channel 0, as far as they have come.
pub(super) fn begins_a_method(head: &[u8]) -> bool {
    let begins = [METHOD_FRAME, 0, 0].iter().zip(head).all(|(wanted, byte)| wanted == byte);
    let size = head.get(3..HEAD).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes);
    begins && size.is_none_or(|size| size <= LARGEST_FRAME - AROUND)
}

/// The error for a first answer that is not AMQP.
pub(super) fn not_amqp(answer: &[u8]) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, describe(answer))
}

fn describe(answer: &[u8]) -> String {
    let what = "this is not AMQP 0-9-1: it answered";
    if answer.first() == Some(&TLS_ALERT) {
        return format!("{what} in TLS; for a TLS port, write amqps:// in the URL");
    }
    let line = answer.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let shown = &line[..line.len().min(SHOWN)];
    let more = if shown.len() < line.len() { "..." } else { "" };
    format!("{what} \"{}{more}\"", shown.escape_ascii())
}
