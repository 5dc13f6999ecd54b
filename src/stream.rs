//! Owns what the client library reads and writes: a socket, with TLS around it or without, whose
//! frames are looked at before it sees them.

use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};

use crate::frames::{Frames, Objection};
use crate::pulse::Pulse;

/// A connected socket, and what its peer has sent so far.
#[derive(Debug)]
pub(crate) struct Stream {
    line: Line,
    frames: Frames,
    /// What the next read fails with: what came before is read first.
    objection: Option<io::Error>,
    begun: Arc<OnceLock<Instant>>,
    pulse: Pulse,
}

#[derive(Debug)]
enum Line {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(native_tls::TlsStream<Socket>),
}

/// What is below TLS: waits in the handshake, and no longer behind it.
#[cfg(feature = "tls")]
#[derive(Debug)]
enum Socket {
    Waiting(std::net::TcpStream),
    Polled(TcpStream),
}

/// After this long without traffic the system probes the peer, beside AMQP's own heartbeats.
const KEEPALIVE: Duration = Duration::from_secs(30);

impl Stream {
    /// Where the broker proposes no heartbeat, this one is put in its place, in seconds.
    pub(crate) fn plain(socket: std::net::TcpStream, heartbeat: u16) -> io::Result<Stream> {
        Ok(Stream::over(Line::Plain(polled(socket)?), heartbeat))
    }

    /// Shakes hands for TLS. Waits for the peer, until something shuts the socket. It is not left
    /// to the client library, above whose TLS nothing could look at the frames.
    #[cfg(feature = "tls")]
    pub(crate) fn tls(
        socket: std::net::TcpStream,
        connector: &native_tls::TlsConnector,
        host: &str,
        heartbeat: u16,
    ) -> Result<Stream, TlsRefusal> {
        let after = socket.try_clone()?;
        let mut line = connector.connect(host, Socket::Waiting(socket))?;
        *line.get_mut() = Socket::Polled(polled(after)?);
        Ok(Stream::over(Line::Tls(line), heartbeat))
    }

    fn over(line: Line, heartbeat: u16) -> Stream {
        Stream {
            line,
            frames: Frames::new(heartbeat),
            objection: None,
            begun: Arc::default(),
            pulse: Pulse::new(heartbeat),
        }
    }

    /// Has the moment, once there is one, at which the broker's start is here: the next word,
    /// which is the login, is ours.
    pub(crate) fn begun(&self) -> Arc<OnceLock<Instant>> {
        Arc::clone(&self.begun)
    }

    pub(crate) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    fn socket(&self) -> io::Result<&TcpStream> {
        match &self.line {
            Line::Plain(socket) => Ok(socket),
            #[cfg(feature = "tls")]
            Line::Tls(line) => match line.get_ref() {
                Socket::Polled(socket) => Ok(socket),
                Socket::Waiting(_) => Err(io::ErrorKind::NotConnected.into()),
            },
        }
    }
}

/// Why there is no TLS.
#[cfg(feature = "tls")]
#[derive(Debug)]
pub(crate) enum TlsRefusal {
    Socket(io::Error),
    Handshake(native_tls::Error),
}

#[cfg(feature = "tls")]
impl From<io::Error> for TlsRefusal {
    fn from(error: io::Error) -> TlsRefusal {
        TlsRefusal::Socket(error)
    }
}

#[cfg(feature = "tls")]
impl<S> From<native_tls::HandshakeError<S>> for TlsRefusal {
    fn from(error: native_tls::HandshakeError<S>) -> TlsRefusal {
        match error {
            native_tls::HandshakeError::Failure(error) => TlsRefusal::Handshake(error),
            native_tls::HandshakeError::WouldBlock(_) => {
                TlsRefusal::Socket(io::ErrorKind::WouldBlock.into())
            }
        }
    }
}

fn polled(socket: std::net::TcpStream) -> io::Result<TcpStream> {
    let socket = TcpStream::from_stream(socket)?;
    socket.set_keepalive(Some(KEEPALIVE))?;
    Ok(socket)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.objection.take() {
            return Err(error);
        }
        let length = match &mut self.line {
            Line::Plain(socket) => socket.read(buffer),
            #[cfg(feature = "tls")]
            Line::Tls(line) => line.read(buffer),
        }?;
        self.pulse.beat(length)?;
        let now = Instant::now();
        let looked = self.frames.look(&mut buffer[..length], now);
        if let Some(proposed) = self.frames.proposed.take() {
            self.pulse.agree(proposed);
        }
        if self.frames.has_begun() && self.begun.get().is_none() {
            let _ = self.begun.set(now);
        }
        match looked {
            Ok(()) => Ok(length),
            Err(Objection { sound: 0, error }) => Err(error),
            Err(Objection { sound, error }) => {
                self.objection = Some(error);
                Ok(sound)
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.line {
            Line::Plain(socket) => socket.write(bytes),
            #[cfg(feature = "tls")]
            Line::Tls(line) => line.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.line {
            Line::Plain(socket) => socket.flush(),
            #[cfg(feature = "tls")]
            Line::Tls(line) => line.flush(),
        }
    }
}

impl Evented for Stream {
    fn register(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        options: PollOpt,
    ) -> io::Result<()> {
        self.socket()?.register(poll, token, interest, options)
    }

    fn reregister(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        options: PollOpt,
    ) -> io::Result<()> {
        self.socket()?.reregister(poll, token, interest, options)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.socket()?.deregister(poll)
    }
}

#[cfg(feature = "tls")]
impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Waiting(socket) => socket.read(buffer),
            Socket::Polled(socket) => socket.read(buffer),
        }
    }
}

#[cfg(feature = "tls")]
impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Waiting(socket) => socket.write(bytes),
            Socket::Polled(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Socket::Waiting(socket) => socket.flush(),
            Socket::Polled(socket) => socket.flush(),
        }
    }
}
