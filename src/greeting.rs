//! Owns the look at a peer's first bytes. The client library believes the size that the first
//! frame announces, and would wait for a gigabyte from a web server (amiquip 0.4.2
//! frame_buffer.rs:46).

use std::io::{self, Read, Write};

use mio::net::TcpStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};

/// A socket that fails the first read that shows that the peer does not speak AMQP 0-9-1.
#[derive(Debug)]
pub(crate) struct Greeted<S = TcpStream> {
    socket: S,
    /// The first bytes, as far as they have come.
    head: Vec<u8>,
}

/// A frame's type, channel and size (<https://www.rabbitmq.com/amqp-0-9-1-protocol>).
const HEAD: usize = 7;

const METHOD_FRAME: u8 = 1;

/// The first byte of a TLS alert.
const TLS_ALERT: u8 = 0x15;

/// No broker's first frame is as large.
const LARGEST: u32 = 1 << 20;

/// How much of a wrong answer is shown.
const SHOWN: usize = 40;

impl<S> Greeted<S> {
    pub(crate) fn new(socket: S) -> Greeted<S> {
        Greeted { socket, head: Vec::new() }
    }

    fn check(&mut self, came: &[u8]) -> io::Result<()> {
        let missing = HEAD - self.head.len();
        let (head, rest) = came.split_at(missing.min(came.len()));
        self.head.extend_from_slice(head);
        if begins_a_method(&self.head) {
            return Ok(());
        }
        let answer = [&self.head, rest].concat();
        Err(io::Error::new(io::ErrorKind::InvalidData, describe(&answer)))
    }
}

/// Whether these may be the first bytes of a method on channel 0, as far as they have come.
fn begins_a_method(head: &[u8]) -> bool {
    let begins = [METHOD_FRAME, 0, 0].iter().zip(head).all(|(wanted, byte)| wanted == byte);
    let size = head.get(3..HEAD).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes);
    begins && size.is_none_or(|size| size <= LARGEST)
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

impl<S: Read> Read for Greeted<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.socket.read(buffer)?;
        if self.head.len() < HEAD {
            self.check(&buffer[..length])?;
        }
        Ok(length)
    }
}

impl<S: Write> Write for Greeted<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

impl<S: Evented> Evented for Greeted<S> {
    fn register(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        options: PollOpt,
    ) -> io::Result<()> {
        self.socket.register(poll, token, interest, options)
    }

    fn reregister(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        options: PollOpt,
    ) -> io::Result<()> {
        self.socket.reregister(poll, token, interest, options)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.socket.deregister(poll)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &[u8] = b"\x01\0\0\0\0\x01\xf8\0\x0a\0\x0a rest of it";

    fn read_in_pieces(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut greeted = Greeted::new(bytes);
        let (mut got, mut buffer) = (Vec::new(), vec![0; piece]);
        loop {
            match greeted.read(&mut buffer)? {
                0 => return Ok(got),
                length => got.extend_from_slice(&buffer[..length]),
            }
        }
    }

    #[test]
    fn a_broker_s_bytes_pass_unchanged_in_pieces_of_any_size() {
        for piece in 1..=START.len() {
            assert_eq!(read_in_pieces(START, piece).expect("AMQP"), START, "{piece}");
        }
    }

    #[test]
    fn anything_else_is_told_and_cut_short() {
        for (answer, told) in [
            (&b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n"[..], "\"HTTP/1.1 400 Bad Request\""),
            (b"AMQP\0\x01\0\0", "\"AMQP\\x00\\x01\\x00\\x00\""),
            (b"\x01\0\0\xff\xff\xff\xff", "\"\\x01\\x00\\x00\\xff\\xff\\xff\\xff\""),
            (b"\x01\0\x01\0", "\"\\x01\\x00\\x01\\x00\""),
            (b"\x15\x03\x03\0\x02\x02\x0a", "amqps://"),
            (&[b'x'; 100], "xxx...\""),
        ] {
            let error = read_in_pieces(answer, 4096).expect_err(told);
            assert!(error.to_string().ends_with(told) || told == "amqps://", "{error}");
            assert!(error.to_string().contains(told), "{error}");
            assert!(error.to_string().len() < 100, "{error}");
        }
    }

    #[test]
    fn a_wrong_answer_in_single_bytes_is_seen_at_the_first_wrong_one() {
        assert!(read_in_pieces(b"HTTP", 1).is_err());
        assert!(read_in_pieces(b"\x01\0\0\xff\xff\xff\xff", 1).is_err());
    }
}
