//! A connection with TLS: its handshake, and the stream that the client library polls.

use std::io::{self, Read, Write};
use std::mem;

use mio::net::TcpStream;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::amqp::tls_config::Connector;
use crate::amqp::tls_refusal::{refusal, refusal_before_tls};
use crate::model::tls_cause::{TlsCause, TlsFailure};

/// TLS over a socket that does not block.
///
/// Nothing stays in it that the client library does not know of. What has come is read before the
/// socket is, and the client library reads until nothing is there. Bytes are done only when the socket
/// has taken their records: until then the client library waits for room, and offers them again.
#[derive(Debug)]
pub(crate) struct TlsStream {
    connection: ClientConnection,
    socket: TcpStream,
    /// How many of the bytes that are offered next are encrypted already.
    encrypted: usize,
}

/// Why there is no TLS, in words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The socket ended or failed; the next attempt may succeed.
    Lost(String),
    /// One end refused the other.
    Refused(TlsFailure),
}

/// Does the TLS handshake over `socket`, and then reads and writes through what `polled` makes of it,
/// which does not block. Waits for the peer, until something shuts the socket.
pub(crate) fn connect(
    connector: &Connector,
    host: &str,
    mut socket: std::net::TcpStream,
    polled: impl FnOnce(std::net::TcpStream) -> io::Result<TcpStream>,
) -> Result<TlsStream, HandshakeFailure> {
    let mut connection = begin(connector, host)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).map_err(|error| read_failure(&error, &connection))?;
    }
    let socket = polled(socket).map_err(|error| lost(&error))?;
    Ok(TlsStream { connection, socket, encrypted: 0 })
}

fn begin(connector: &Connector, host: &str) -> Result<ClientConnection, HandshakeFailure> {
    let refused = |cause, text| HandshakeFailure::Refused(TlsFailure::new(cause, text));
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        let text = format!("no certificate can be for a host named '{host}'");
        refused(TlsCause::WrongName, text)
    })?;
    let connection = ClientConnection::new(connector.config(), name);
    connection.map_err(|error| refused(TlsCause::Other, format!("it cannot begin: {error}")))
}

fn read_failure(error: &io::Error, connection: &ClientConnection) -> HandshakeFailure {
    let is_before_tls = connection.protocol_version().is_none();
    let before_tls = is_before_tls.then(|| refusal_before_tls(error)).flatten();
    before_tls.or_else(|| refusal(error)).map_or_else(|| lost(error), HandshakeFailure::Refused)
}

fn lost(error: &io::Error) -> HandshakeFailure {
    HandshakeFailure::Lost(format!("TLS: {error}"))
}

impl TlsStream {
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

impl Read for TlsStream {
    /// What came before a failure is read first. An end without a farewell is an end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let processed = self.connection.process_new_packets();
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    processed.map_err(io::Error::other)?;
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            self.connection.read_tls(&mut self.socket)?;
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.encrypted == 0 {
            self.encrypted = self.connection.writer().write(bytes)?;
        }
        self.flush()?;
        Ok(mem::take(&mut self.encrypted))
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut self.socket)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// Says farewell, or why not, if the socket takes it at once.
impl Drop for TlsStream {
    fn drop(&mut self) {
        self.connection.send_close_notify();
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use crossbeam_channel::bounded;
    use mio::{Events, Poll, PollOpt, Ready, Token};
    use rustls::crypto::ring;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use crate::model::tls::Tls;

    const SOON: Duration = Duration::from_secs(60);

    type Peer = StreamOwned<ServerConnection, std::net::TcpStream>;

    /// A stream, and what its peer returns.
    fn connected<T: Send + 'static>(
        peer: impl FnOnce(Peer) -> T + Send + 'static,
    ) -> (TlsStream, thread::JoinHandle<T>) {
        let made = rcgen::generate_simple_self_signed(["localhost".into()]).expect("a certificate");
        let tls = Tls::default().only_authority(made.cert.pem());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.into()], made.signing_key.into())
            .expect("a certificate and its key");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let peer = thread::spawn(move || {
            let (socket, _) = listener.accept().expect("a client");
            let tls = ServerConnection::new(Arc::new(config)).expect("a configuration");
            peer(StreamOwned::new(tls, socket))
        });
        let socket = std::net::TcpStream::connect(address).expect("a server");
        let connector = Connector::new(&tls).expect("an authority");
        let stream = connect(&connector, "localhost", socket, TcpStream::from_stream);
        (stream.expect("TLS"), peer)
    }

    /// Waits as the client library does.
    struct Waiter(Poll);

    impl Waiter {
        fn new(stream: &TlsStream) -> Waiter {
            let poll = Poll::new().expect("a poll");
            let both = Ready::readable() | Ready::writable();
            poll.register(stream.socket(), Token(0), both, PollOpt::edge()).expect("registered");
            Waiter(poll)
        }

        fn wait(&self, wanted: Ready) {
            let mut events = Events::with_capacity(1);
            while !events.iter().any(|it| it.readiness().contains(wanted)) {
                let came = self.0.poll(&mut events, Some(SOON)).expect("polled");
                assert!(came > 0, "nothing within {SOON:?}");
            }
        }
    }

    fn read_to_the_end(peer: &mut Peer) -> Vec<u8> {
        let mut read = Vec::new();
        while !read.ends_with(b"end") {
            let mut buffer = [0; 4096];
            let length = peer.read(&mut buffer).expect("what was sent");
            assert!(length > 0, "{} bytes, and the end", read.len());
            read.extend_from_slice(&buffer[..length]);
        }
        read
    }

    /// Calls `stuck` whenever the socket takes no more at present.
    fn write_all(
        stream: &mut TlsStream,
        waiter: &Waiter,
        mut left: &[u8],
        mut stuck: impl FnMut(),
    ) {
        while !left.is_empty() {
            match stream.write(left) {
                Ok(length) => {
                    assert!(!stream.connection.wants_write(), "the socket has all of it");
                    left = &left[length..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stuck();
                    waiter.wait(Ready::writable());
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn bytes_that_are_done_arrive_without_a_further_write() {
        let (go, may_read) = bounded::<()>(1);
        let (report, reported) = bounded(1);
        let (mut stream, peer) = connected(move |mut peer| {
            // Until then the buffers of the sockets fill.
            peer.flush().expect("the handshake");
            may_read.recv().expect("the client is stuck");
            report.send(read_to_the_end(&mut peer)).expect("the test waits");
        });
        let waiter = Waiter::new(&stream);
        let (mut sent, mut is_stuck) = (Vec::new(), false);
        for number in 0_u32.. {
            let is_last = is_stuck;
            let piece = number.to_be_bytes().repeat(10_000);
            let piece = if is_last { b"end".to_vec() } else { piece };
            write_all(&mut stream, &waiter, &piece, || {
                if !is_stuck {
                    go.send(()).expect("the peer waits");
                }
                is_stuck = true;
            });
            sent.extend_from_slice(&piece);
            if is_last {
                break;
            }
        }

        let arrived = reported.recv_timeout(SOON).expect("all of it arrives");
        assert!(arrived == sent, "{} of {}", arrived.len(), sent.len());
        peer.join().expect("the peer");
    }

    #[test]
    fn all_records_that_came_are_read_before_the_socket_is_waited_for_again() {
        for says_farewell in [false, true] {
            let (mut stream, peer) = connected(move |mut peer| {
                let records: Vec<_> = (0..100_u8).map(|it| vec![it; 1000]).collect();
                records.iter().for_each(|it| peer.write_all(it).expect("sent"));
                if says_farewell {
                    peer.conn.send_close_notify();
                }
                peer.flush().expect("sent");
                records.concat()
            });
            let waiter = Waiter::new(&stream);
            let sent = peer.join().expect("the peer");
            let mut read = Vec::new();
            loop {
                let mut buffer = [0; 7];
                match stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => read.extend_from_slice(&buffer[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        waiter.wait(Ready::readable());
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(read == sent, "{} of {}", read.len(), sent.len());
        }
    }
}
