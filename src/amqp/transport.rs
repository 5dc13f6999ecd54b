//! The stream that the client library reads and writes: a socket, with or without TLS, whose
//! incoming frames pass the guard first.

use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use amiquip::IoStream;
use mio::net::TcpStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};

use crate::amqp::ended_channels::EndedChannels;
use crate::amqp::guard::{FrameGuard, InvalidFrame, Proposal};
use crate::amqp::heartbeat::Heartbeat;
use crate::amqp::outbox::Outbox;
use crate::amqp::outgoing::Outgoing;
#[cfg(feature = "tls")]
use crate::amqp::tls::{self, HandshakeFailure, TlsStream};
#[cfg(feature = "tls")]
use crate::amqp::tls_config::Connector;

/// A connected socket, and what its peer has sent so far.
#[derive(Debug)]
pub(crate) struct Stream {
    line: MaybeTlsStream,
    inbound: InboundFilter,
    outgoing: Outgoing,
    /// Whether the thread that reads has its name.
    is_named: bool,
}

#[derive(Debug)]
enum MaybeTlsStream {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    // Its buffers make it large.
    Tls(Box<TlsStream>),
}

/// Passes on what comes from a broker, as far as it is valid.
#[derive(Debug)]
struct InboundFilter {
    guard: FrameGuard,
    /// What the next read fails with, after all that came before it was read.
    failure: Option<io::Error>,
    peer_state: Arc<PeerState>,
    heartbeat: Heartbeat,
}

/// What the broker said that the client library does not report, or loses.
#[derive(Debug, Default)]
pub(crate) struct PeerState {
    /// The largest frame that it accepts; 0 for no limit.
    pub(crate) frame: OnceLock<u32>,
    /// The code and the text with which it has closed the connection.
    pub(crate) closed: OnceLock<(u16, String)>,
    /// Set when it has answered our close.
    pub(crate) closed_in_order: OnceLock<()>,
    pub(crate) ended_channels: EndedChannels,
}

impl PeerState {
    /// Whether the broker knows that the connection has ended, and holds no tasks for it.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get().is_some() || self.closed_in_order.get().is_some()
    }
}

/// After this long without traffic the system probes the peer, in addition to AMQP's heartbeats.
const KEEPALIVE: Duration = Duration::from_secs(30);

impl Stream {
    /// If the broker proposes no heartbeat, `heartbeat` replaces it, in seconds.
    pub(crate) fn plain(socket: std::net::TcpStream, heartbeat: u16) -> io::Result<Stream> {
        Ok(Stream::over(MaybeTlsStream::Plain(polled(socket)?), heartbeat))
    }

    /// Does the TLS handshake. Waits for the peer, until something shuts the socket. The client
    /// library does not do it: nothing could inspect the frames that come out of its own TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn tls(
        socket: std::net::TcpStream,
        connector: &Connector,
        host: &str,
        heartbeat: u16,
    ) -> Result<Stream, HandshakeFailure> {
        let stream = tls::connect(connector, host, socket, polled)?;
        Ok(Stream::over(MaybeTlsStream::Tls(Box::new(stream)), heartbeat))
    }

    fn over(line: MaybeTlsStream, heartbeat: u16) -> Stream {
        let inbound = InboundFilter::new(heartbeat);
        Stream { line, inbound, outgoing: Outgoing::default(), is_named: false }
    }

    /// Sets the name that the connection announces.
    pub(crate) fn set_name(&mut self, name: String) {
        self.outgoing.opening.name = name;
    }

    pub(crate) fn peer_state(&self) -> Arc<PeerState> {
        Arc::clone(&self.inbound.peer_state)
    }

    pub(crate) fn heartbeat(&self) -> Heartbeat {
        self.inbound.heartbeat.clone()
    }

    /// Where publishes are put to be written.
    pub(crate) fn outbox(&self) -> Arc<Outbox> {
        Arc::clone(&self.outgoing.outbox)
    }

    fn socket(&self) -> &TcpStream {
        match &self.line {
            MaybeTlsStream::Plain(socket) => socket,
            #[cfg(feature = "tls")]
            MaybeTlsStream::Tls(line) => line.socket(),
        }
    }
}

fn polled(socket: std::net::TcpStream) -> io::Result<TcpStream> {
    let socket = TcpStream::from_stream(socket)?;
    socket.set_keepalive(Some(KEEPALIVE))?;
    Ok(socket)
}

/// The client library calls its thread `amiquip-io`. Names serve whoever lists the threads, so a
/// failure changes nothing.
fn name_thread() {
    #[cfg(all(target_os = "linux", feature = "command"))]
    let _ = rustix::thread::set_name(c"rw-io");
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.is_named {
            name_thread();
            self.is_named = true;
        }
        match &mut self.line {
            MaybeTlsStream::Plain(socket) => self.inbound.read(socket, buffer),
            #[cfg(feature = "tls")]
            MaybeTlsStream::Tls(line) => self.inbound.read(line, buffer),
        }
    }
}

impl InboundFilter {
    fn new(heartbeat: u16) -> InboundFilter {
        InboundFilter {
            guard: FrameGuard::new(heartbeat),
            failure: None,
            peer_state: Arc::default(),
            heartbeat: Heartbeat::new(heartbeat),
        }
    }

    /// Reads again if all that came was buffered: the client library takes a read of zero bytes for
    /// the end, and reads what is buffered only when the socket has something new.
    fn read(&mut self, line: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let released = self.guard.release(buffer);
            if released > 0 {
                return Ok(released);
            }
            if let Some(error) = self.failure.take() {
                return Err(error);
            }
            let room = buffer.len().min(self.guard.room());
            let length = line.read(&mut buffer[..room])?;
            self.heartbeat.record_read(length)?;
            let valid_len = self.inspect(&mut buffer[..length]);
            let has_ended = length == 0 && self.failure.is_none();
            if valid_len > 0 || has_ended {
                return Ok(valid_len);
            }
        }
    }

    /// Returns how many of the bytes that came to pass on.
    fn inspect(&mut self, bytes: &mut [u8]) -> usize {
        let inspected = self.guard.inspect(bytes, Instant::now());
        if let Some(Proposal { heartbeat, frame }) = self.guard.proposed.take() {
            self.heartbeat.agree(heartbeat);
            let _ = self.peer_state.frame.set(frame);
        }
        if let Some(closed) = self.guard.closed.take() {
            let _ = self.peer_state.closed.set(closed);
        }
        for (channel, change) in self.guard.channels.drain(..) {
            self.peer_state.ended_channels.note(channel, change);
        }
        inspected.unwrap_or_else(|InvalidFrame { valid_len, error }| {
            self.failure = Some(error);
            valid_len
        })
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.line {
            MaybeTlsStream::Plain(socket) => self.outgoing.write(bytes, socket),
            #[cfg(feature = "tls")]
            MaybeTlsStream::Tls(line) => self.outgoing.write(bytes, line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.line {
            MaybeTlsStream::Plain(socket) => socket.flush(),
            #[cfg(feature = "tls")]
            MaybeTlsStream::Tls(line) => line.flush(),
        }
    }
}

impl IoStream for Stream {}

impl Evented for Stream {
    fn register(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        options: PollOpt,
    ) -> io::Result<()> {
        self.socket().register(poll, token, interest, options)
    }

    fn reregister(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        options: PollOpt,
    ) -> io::Result<()> {
        self.socket().reregister(poll, token, interest, options)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.socket().deregister(poll)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Brings pieces, one at a time and never more than there is room for, and then the end; or
    /// nothing yet, once in front of each piece.
    struct Pieces {
        left: VecDeque<Vec<u8>>,
        blocks: bool,
    }

    impl Pieces {
        fn new<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Pieces {
            let left = pieces.into_iter().map(<[u8]>::to_vec).collect();
            Pieces { left, blocks: true }
        }
    }

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if std::mem::take(&mut self.blocks) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let Some(piece) = self.left.front_mut() else { return Ok(0) };
            let length = piece.len().min(buffer.len());
            buffer[..length].copy_from_slice(&piece[..length]);
            piece.drain(..length);
            if piece.is_empty() {
                self.left.pop_front();
                self.blocks = true;
            }
            Ok(length)
        }
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).expect("a small payload");
        [&[kind, 0, 1][..], &size.to_be_bytes(), payload, &[0xCE]].concat()
    }

    fn start() -> Vec<u8> {
        let mut start = frame(1, b"\0\x0a\0\x0a, and what a start says");
        start[2] = 0;
        start
    }

    /// Properties with text of this type in their headers.
    fn properties(kind: u8) -> Vec<u8> {
        let text = [&[kind][..], b"\0\0\0\x04caf\xe9"].concat();
        let list = [b"\x04listA\0\0\0\x09", &*text].concat();
        let sound = b"\x01bS\0\0\0\x02\xc3\xa9\x01c";
        let entries = [b"\x01a", &*text, &list, sound, &text].concat();
        let size = u32::try_from(entries.len()).expect("a small table");
        [b"\xb0\0\x04type", &size.to_be_bytes()[..], &entries, b"\x02"].concat()
    }

    fn header(properties: &[u8]) -> Vec<u8> {
        let body = (properties.len() as u64).to_be_bytes();
        frame(2, &[b"\0\x3c\0\0", &body[..], properties].concat())
    }

    /// A delivery with text of this type in its headers, and what is behind it. Its body looks
    /// like properties, and is none.
    fn message(kind: u8) -> Vec<u8> {
        let body = properties(b'S');
        let (first, second) = body.split_at(body.len() - 1);
        [
            frame(1, DELIVER),
            header(&properties(kind)),
            frame(3, first),
            frame(3, second),
            frame(8, b""),
        ]
        .concat()
    }

    const DELIVER: &[u8] = b"\0\x3c\0\x3c, and what a delivery says";

    /// What comes of a header frame before its properties.
    const HEAD: usize = 19;

    /// What is read as the client library reads: until nothing is there, and again, until the
    /// end or an error.
    fn read_all(mut line: Pieces, size: usize) -> (Vec<u8>, io::Result<()>) {
        let (mut inbound, mut read) = (InboundFilter::new(10), Vec::new());
        let mut buffer = vec![0; size];
        loop {
            match inbound.read(&mut line, &mut buffer) {
                Ok(0) => return (read, Ok(())),
                Ok(length) => read.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert_eq!(inbound.guard.release(&mut [0]), 0, "nothing is left lying");
                }
                Err(error) => return (read, Err(error)),
            }
        }
    }

    const SIZES: [usize; 3] = [1, 7, 4096];

    #[test]
    fn a_message_is_sanitized_whatever_pieces_it_comes_and_is_read_in() {
        let sent = [start(), message(b'S'), message(b'S')].concat();
        let wanted = [start(), message(b'x'), message(b'x')].concat();
        for size in SIZES {
            let (read, ended) = read_all(Pieces::new([&*sent]), size);
            assert!(read == wanted && ended.is_ok(), "whole, by {size}");
            let (read, ended) = read_all(Pieces::new(sent.chunks(1)), size);
            assert!(read == wanted && ended.is_ok(), "in single bytes, by {size}");
            for cut in 1..sent.len() {
                let pieces = [&sent[..cut], &sent[cut..]];
                let (read, ended) = read_all(Pieces::new(pieces), size);
                assert!(read == wanted && ended.is_ok(), "cut at {cut}, by {size}");
            }
        }
    }

    #[test]
    fn what_came_before_an_invalid_frame_is_read_first() {
        let deep = (0..200_u8).fold(b"V".to_vec(), |inside, _| {
            let size = u32::try_from(inside.len()).expect("a small value");
            [b"A", &size.to_be_bytes()[..], &inside].concat()
        });
        let size = u32::try_from(deep.len() + 2).expect("a small table");
        let table = [&size.to_be_bytes()[..], b"\x01k", &deep].concat();
        let too_deep = header(&[&b"\x20\0"[..], &table].concat());
        let sound = [start(), message(b'x')].concat();
        for wrong in [too_deep, b"\x03\0\x01\x70\0\0\0".to_vec()] {
            let sent = [start(), message(b'S'), wrong.clone(), message(b'S')].concat();
            for size in SIZES {
                for cut in 1..sent.len() {
                    let pieces = [&sent[..cut], &sent[cut..]];
                    let (read, ended) = read_all(Pieces::new(pieces), size);
                    let behind = read.strip_prefix(&*sound).expect("all that came before");
                    assert!(
                        wrong.starts_with(behind) && behind.len() < wrong.len(),
                        "{cut} {size}"
                    );
                    assert_eq!(ended.expect_err("reported").kind(), io::ErrorKind::InvalidData);
                }
            }
        }
    }

    #[test]
    fn properties_that_are_whole_are_read_before_another_failure() {
        let before = Instant::now().checked_sub(Duration::from_secs(60));
        let before = before.expect("the system is up for longer");
        let mut stuck = frame(1, DELIVER);
        stuck[2] = 2;
        let header = header(&properties(b'S'));
        for cut in HEAD + 1..header.len() {
            let mut inbound = InboundFilter::new(10);
            let mut begun = [&start(), &stuck, &header[..cut]].concat();
            inbound.guard.inspect(&mut begun, before).expect("AMQP");
            let mut line = Pieces::new([&header[cut..]]);
            line.blocks = false;

            let mut read = [0; 1000];
            let length = inbound.read(&mut line, &mut read).expect("properties");
            assert_eq!(read[..length - 1], properties(b'x'), "{cut}");
            let error = inbound.read(&mut line, &mut read).expect_err("stuck").to_string();
            assert!(error.contains("a message on channel 2"), "{cut}: {error}");
        }
    }

    #[test]
    fn an_end_within_properties_is_an_end() {
        let sent = [start(), message(b'S')].concat();
        let head = start().len() + frame(1, DELIVER).len() + HEAD;
        for size in SIZES {
            for cut in head + 1..head + 30 {
                let (read, ended) = read_all(Pieces::new([&sent[..cut]]), size);
                assert!(read == sent[..head] && ended.is_ok(), "cut at {cut}, by {size}");
            }
        }
    }
}
