//! [`TlsCause`]: why TLS failed, for programs that decide by it.

/// Why TLS failed, in [`Error::Tls`](crate::Error::Tls).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsCause {
    /// An authority, a certificate or a key of this program is missing or cannot be used. Nothing was
    /// sent to the broker.
    InvalidSetting,
    /// The broker's certificate has expired, or this machine's clock is wrong.
    Expired,
    /// The broker's certificate is not valid yet, or this machine's clock is wrong.
    NotYetValid,
    /// The broker has no certificate for the host in the URL.
    WrongName,
    /// The authority of the broker's certificate is not trusted.
    UnknownIssuer,
    /// The broker's certificate is not signed with the key of the authority that it names.
    BadSignature,
    /// The broker's certificate is that of an authority (CA:TRUE).
    IsAuthority,
    /// The broker's certificate cannot be used for another reason.
    UnusableCertificate,
    /// The broker requires a client certificate.
    ClientCertificateRequired,
    /// The broker refused the client certificate.
    ClientCertificateRefused,
    /// The broker refused the handshake, and did not say why. It may require a client certificate.
    HandshakeRefused,
    /// The broker and this program have no version or cipher of TLS in common.
    Incompatible,
    /// The answer is not TLS: the port is one without it.
    NotTls,
    /// Anything else.
    Other,
}

/// Why TLS failed, as a case and in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFailure {
    pub(crate) cause: TlsCause,
    pub(crate) text: String,
}

impl TlsFailure {
    pub(crate) fn new(cause: TlsCause, text: impl Into<String>) -> TlsFailure {
        TlsFailure { cause, text: text.into() }
    }
}
