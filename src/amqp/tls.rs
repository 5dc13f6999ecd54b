//! Makes TLS connections, and explains OpenSSL's errors.

use std::error::Error as _;
use std::io::{self, Read, Write};

use mio::net::TcpStream;
use native_tls::{Certificate, HandshakeError, Identity, TlsConnector, TlsStream};

use crate::model::error::Error;
use crate::model::tls::Tls;

/// The socket below TLS: it blocks during the handshake, and not after it.
#[derive(Debug)]
pub(crate) enum Socket {
    Blocking(std::net::TcpStream),
    NonBlocking(TcpStream),
}

/// Why there is no TLS, in words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The socket ended or failed; the next attempt may succeed.
    Lost(String),
    /// One end refused the other.
    Refused(String),
}

/// A connector that trusts the authority of `tls` and shows its certificate.
pub(crate) fn connector(tls: &Tls) -> Result<TlsConnector, Error> {
    let unusable = |what: &str, error: native_tls::Error| Error::Tls {
        reason: format!("{what} cannot be used: {error}"),
    };
    let mut builder = TlsConnector::builder();
    if let Some(pem) = &tls.authority {
        let authorities = Certificate::stack_from_pem(pem);
        let authorities = authorities.map_err(|error| unusable("the authority", error))?;
        if authorities.is_empty() {
            let reason = "the authority's PEM has no certificate in it".into();
            return Err(Error::Tls { reason });
        }
        for authority in authorities {
            builder.add_root_certificate(authority);
        }
    }
    if let Some((certificate, key)) = &tls.identity {
        let identity = Identity::from_pkcs8(certificate, key);
        builder.identity(identity.map_err(|e| unusable("the certificate or its key", e))?);
    }
    builder.build().map_err(|error| unusable("TLS", error))
}

/// Does the TLS handshake over `socket`, and then reads and writes through `polled`, a clone of it
/// that does not block. Waits for the peer, until something shuts the socket.
pub(crate) fn connect(
    connector: &TlsConnector,
    host: &str,
    socket: std::net::TcpStream,
    polled: impl FnOnce(std::net::TcpStream) -> io::Result<TcpStream>,
) -> Result<TlsStream<Socket>, HandshakeFailure> {
    let lost = |error: io::Error| HandshakeFailure::Lost(format!("TLS: {error}"));
    let after = socket.try_clone().map_err(lost)?;
    let mut stream =
        connector.connect(host, Socket::Blocking(socket)).map_err(|error| match error {
            HandshakeError::Failure(error) => read_failure(&error),
            HandshakeError::WouldBlock(_) => lost(io::ErrorKind::WouldBlock.into()),
        })?;
    *stream.get_mut() = Socket::NonBlocking(polled(after).map_err(lost)?);
    Ok(stream)
}

fn read_failure(error: &native_tls::Error) -> HandshakeFailure {
    let text = error.to_string();
    let is_of_socket = error.source().is_some_and(|source| source.is::<io::Error>());
    if is_of_socket || text.to_lowercase().contains("unexpected eof") {
        return HandshakeFailure::Lost(format!("TLS: {text}"));
    }
    HandshakeFailure::Refused(explain(&text))
}

/// Whether the peer ended TLS with a reason, in OpenSSL's words. In TLS 1.3 the peer checks our
/// certificate after our side of the handshake is over, so that its refusal comes with the next
/// read.
pub(crate) fn is_alert(error: &io::Error) -> bool {
    error.to_string().contains("SSL alert number")
}

/// OpenSSL's words, after what a person can do if the words do not say it.
pub(crate) fn explain(text: &str) -> String {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["wrong version number"]) {
        format!("the answer is not TLS; for a port without it, write amqp:// in the URL ({text})")
    } else if says(&["local issuer", "self-signed", "self signed"]) {
        format!(
            "the broker's certificate is not trusted here; give its authority with --ca ({text})"
        )
    } else if says(&["certificate required"]) {
        format!("the broker requires a client certificate; give --cert and --key ({text})")
    } else {
        text.to_owned()
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Blocking(socket) => socket.read(buffer),
            Socket::NonBlocking(socket) => socket.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Blocking(socket) => socket.write(bytes),
            Socket::NonBlocking(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Socket::Blocking(socket) => socket.flush(),
            Socket::NonBlocking(socket) => socket.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts are OpenSSL 3's.
    #[test]
    fn an_error_of_openssl_is_explained_and_kept() {
        for (text, begins) in [
            ("error:0A00010B:SSL routines::wrong version number", "the answer is not TLS"),
            ("certificate verify failed: (self-signed certificate)", "the broker's certificate"),
            ("unable to get local issuer certificate", "the broker's certificate"),
            ("tlsv13 alert certificate required: SSL alert number 116", "the broker requires"),
            ("something else", "something else"),
        ] {
            let explained = explain(text);
            assert!(explained.starts_with(begins) && explained.contains(text), "{explained}");
        }
    }

    #[test]
    fn an_alert_is_known_by_its_number() {
        let is_alert = |text: &str| is_alert(&io::Error::other(text));
        assert!(is_alert("tlsv13 alert certificate required: SSL alert number 116"));
        assert!(!is_alert("connection reset by peer"));
    }
}
