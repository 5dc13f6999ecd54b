//! [`Tls`]: the certificates of `amqps://` connections.

use std::fmt;

/// The certificates of an `amqps://` connection, each in PEM.
#[derive(Clone, Default)]
pub struct Tls {
    pub(crate) authority: Option<Vec<u8>>,
    pub(crate) is_only_authority: bool,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Trusts the authorities in this PEM, one or several, and the system's.
    #[must_use]
    pub fn authority(mut self, pem: impl Into<Vec<u8>>) -> Tls {
        self.authority = Some(pem.into());
        self.is_only_authority = false;
        self
    }

    /// Trusts the authorities in this PEM, one or several, and none of the system's.
    #[must_use]
    pub fn only_authority(self, pem: impl Into<Vec<u8>>) -> Tls {
        Tls { is_only_authority: true, ..self.authority(pem) }
    }

    /// Shows this certificate to the broker. The PEM may also have the intermediate certificates, after
    /// it. The key is PKCS#8, PKCS#1 or SEC1, without a passphrase.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Tls {
        self.identity = Some((certificate.into(), key.into()));
        self
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("authority", &self.authority.is_some())
            .field("is_only_authority", &self.is_only_authority)
            .field("identity", &self.identity.is_some())
            .finish()
    }
}
