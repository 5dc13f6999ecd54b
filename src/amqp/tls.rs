//! A connection with TLS: its handshake, and the stream that the client library polls.

use std::io::{self, Read, Write};
use std::mem;

use mio::net::TcpStream;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::amqp::tls_config::Connector;
use crate::amqp::tls_refusal::{refusal, refusal_before_tls};

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
    Refused(String),
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
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        HandshakeFailure::Refused(format!("no certificate can be for a host named '{host}'"))
    })?;
    let connection = ClientConnection::new(connector.config(), name);
    connection.map_err(|error| HandshakeFailure::Refused(error.to_string()))
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
