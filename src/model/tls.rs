//! [`Tls`]: the certificates of `amqps://` connections.

use std::fmt;

/// The certificates of an `amqps://` connection, each in PEM.
#[derive(Clone, Default)]
pub struct Tls {
    pub(crate) authority: Option<Vec<u8>>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Trusts this authority's certificate too, or every one where the PEM has several.
    #[must_use]
    pub fn authority(mut self, pem: impl Into<Vec<u8>>) -> Tls {
        self.authority = Some(pem.into());
        self
    }

    /// Shows this certificate to the broker; the key is PKCS#8.
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
            .field("identity", &self.identity.is_some())
            .finish()
    }
}
