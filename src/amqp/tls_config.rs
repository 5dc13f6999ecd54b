//! What TLS trusts and shows: the certificates and the key of a [`Tls`], read from PEM.

use std::sync::Arc;

use log::debug;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, Error as TlsError, RootCertStore};

use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::tls::Tls;
use crate::model::url::Transport;

/// Makes the TLS connections of one attempt to connect.
#[derive(Clone, Debug)]
pub(crate) struct Connector(Arc<ClientConfig>);

impl Connector {
    /// Reads the certificates anew, because those of the system change while a program runs. `None` if
    /// no address has TLS.
    pub(crate) fn for_broker(broker: &Broker) -> Result<Option<Connector>, Error> {
        let mut addresses = broker.addresses_in_turn().into_iter();
        let has_tls = addresses.any(|it| it.transport == Transport::Tls);
        has_tls.then(|| Connector::new(broker.certificates())).transpose()
    }

    pub(crate) fn new(tls: &Tls) -> Result<Connector, Error> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("TLS", error))?
            .with_root_certificates(trusted(tls)?);
        let config = match &tls.identity {
            Some((certificate, key)) => {
                let chain = certificates("the client certificate (--cert)", certificate)?;
                config.with_client_auth_cert(chain, private_key(key)?).map_err(explain_identity)?
            }
            None => config.with_no_client_auth(),
        };
        Ok(Connector(Arc::new(config)))
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}

/// The authorities of the system, and the given ones.
fn trusted(tls: &Tls) -> Result<RootCertStore, Error> {
    let mut trusted = RootCertStore::empty();
    if !tls.is_only_authority {
        let of_system = rustls_native_certs::load_native_certs();
        of_system.errors.iter().for_each(|error| debug!("authorities of the system: {error}"));
        // Systems keep a few that no program can read, and work with the others.
        trusted.add_parsable_certificates(of_system.certs);
    }
    if let Some(pem) = &tls.authority {
        for authority in certificates(AUTHORITY, pem)? {
            trusted.add(authority).map_err(|error| unusable(AUTHORITY, error))?;
        }
    }
    if trusted.is_empty() {
        let reason = "no authority is trusted: this system has none; give the broker's with --ca, or \
                      install the system's (Debian, Ubuntu: apt-get install ca-certificates)";
        return Err(Error::Tls { reason: reason.into() });
    }
    Ok(trusted)
}

const AUTHORITY: &str = "the authority (--ca)";

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|error| unusable(what, in_words(&error)))?;
    if read.is_empty() {
        return Err(unusable(what, "its PEM has no certificate in it"));
    }
    Ok(read)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            unusable(KEY, "its PEM has no private key in it, or only one with a passphrase")
        }
        error => unusable(KEY, in_words(&error)),
    })
}

const KEY: &str = "the client certificate's key (--key)";

/// rustls-pki-types shows lines as lists of numbers.
fn in_words(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "its PEM is cut off: an END line is missing",
        pem::Error::IllegalSectionStart { .. } => "its PEM has a BEGIN line that cannot be read",
        pem::Error::Base64Decode(_) => "its PEM has characters that are not Base64",
        _ => "its PEM cannot be read",
    }
}

fn explain_identity(error: TlsError) -> Error {
    match error {
        TlsError::InconsistentKeys(_) => {
            unusable(KEY, "it is not the key of the certificate (--cert)")
        }
        TlsError::InvalidCertificate(error) => unusable("the client certificate (--cert)", error),
        _ => unusable(KEY, "it is not RSA of 2048 to 8192 bits, ECDSA P-256 or P-384, or Ed25519"),
    }
}

fn unusable(what: &str, why: impl std::fmt::Display) -> Error {
    Error::Tls { reason: format!("{what} cannot be used: {why}") }
}
