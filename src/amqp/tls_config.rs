//! What TLS trusts and shows: the certificates and the key of a [`Tls`], or of the files that a URL
//! names, read from PEM.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use log::debug;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, Error as TlsError, RootCertStore};

use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::tls::Tls;
use crate::model::tls_cause::TlsCause;
use crate::model::tls_parameters::TlsParameters;
use crate::model::url::{Address, Transport};

/// Makes the TLS connections of one attempt to connect.
#[derive(Clone, Debug)]
pub(crate) struct Connector(Arc<ClientConfig>);

/// Those for the addresses of a broker.
#[derive(Debug, Default)]
pub(crate) struct Connectors(Vec<(TlsParameters, Connector)>);

impl Connectors {
    /// Reads the certificates anew, because those of the system and of a URL's files change while a
    /// program runs.
    pub(crate) fn for_broker(broker: &Broker) -> Result<Connectors, Error> {
        let mut connectors = Connectors::default();
        for address in broker.addresses_in_turn() {
            if address.transport == Transport::Tls && connectors.of(address).is_none() {
                let tls = with_files(broker.certificates(), &address.tls)?;
                connectors.0.push((address.tls.clone(), Connector::new(&tls)?));
            }
        }
        Ok(connectors)
    }

    /// `None` if the address has no TLS.
    pub(crate) fn of(&self, address: &Address) -> Option<&Connector> {
        let mut same = self.0.iter().filter(|(parameters, _)| *parameters == address.tls);
        same.next().filter(|_| address.transport == Transport::Tls).map(|(_, connector)| connector)
    }
}

/// The certificates, and in their place those in the files that a URL names.
fn with_files(tls: &Tls, parameters: &TlsParameters) -> Result<Tls, Error> {
    let mut tls = tls.clone();
    if let Some(file) = &parameters.authority {
        tls = tls.only_authority(read("cacertfile", file)?);
    }
    if let Some(file) = &parameters.certificate {
        let key = parameters.key.as_ref().map_or(Ok(None), |key| read("keyfile", key).map(Some))?;
        let certificate = read("certfile", file)?;
        tls = tls.identity(certificate.clone(), key.unwrap_or(certificate));
    }
    Ok(tls)
}

fn read(parameter: &str, file: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |error| invalid(format!("{parameter} {} of the URL: {error}", file.display()));
    fs::read(file).map_err(unreadable)
}

impl Connector {
    pub(crate) fn new(tls: &Tls) -> Result<Connector, Error> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("TLS", error))?
            .with_root_certificates(trusted(tls)?);
        let config = match &tls.identity {
            Some((certificate, key)) => config
                .with_client_auth_cert(chain(certificate)?, private_key(key)?)
                .map_err(explain_identity)?,
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
        return Err(invalid(reason.into()));
    }
    Ok(trusted)
}

/// The client certificate and those between it and the authority. rustls itself reads only the first.
fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain = certificates(CERTIFICATE, pem)?;
    for (number, certificate) in (1..).zip(&chain) {
        let reason = || format!("certificate {number} of its PEM cannot be read");
        ParsedCertificate::try_from(certificate).map_err(|_| unusable(CERTIFICATE, reason()))?;
    }
    Ok(chain)
}

const CERTIFICATE: &str = "the client certificate (--cert, certfile)";

const AUTHORITY: &str = "the authority (--ca, cacertfile)";

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

const KEY: &str = "the client certificate's key (--key, keyfile)";

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
            unusable(KEY, "it is not the key of the certificate (--cert, certfile)")
        }
        _ => unusable(KEY, "it is not RSA of 2048 to 8192 bits, ECDSA P-256 or P-384, or Ed25519"),
    }
}

fn unusable(what: &str, why: impl std::fmt::Display) -> Error {
    invalid(format!("{what} cannot be used: {why}"))
}

fn invalid(reason: String) -> Error {
    Error::Tls { cause: TlsCause::InvalidSetting, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{CertificateParams, Issuer, KeyPair};

    /// A key for tests, as `openssl genrsa -traditional` writes one: PKCS#1.
    const RSA: &str = include_str!("../../tests/it/support/rsa_key.pem");

    /// What comes before PKCS#1 in the PKCS#8 of such a key, and before SEC1 in that of an ECDSA key.
    const RSA_HEAD: &[u8] =
        b"\x30\x82\x04\xbc\x02\x01\x00\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\
        \x01\x05\x00\x04\x82\x04\xa6";
    const ECDSA_HEAD: usize = 29;

    fn pem(label: &str, der: &[u8]) -> Vec<u8> {
        let text = STANDARD.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let lines = lines.join("\n");
        format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n").into_bytes()
    }

    fn made() -> (String, KeyPair) {
        let made = rcgen::generate_simple_self_signed(["x".into()]).expect("a certificate");
        (made.cert.pem(), made.signing_key)
    }

    fn refused(tls: &Tls) -> String {
        let text = Connector::new(tls).map(drop).expect_err("refused").to_string();
        assert!(!text.contains('\n') && !text.contains("-----"), "{text}");
        text
    }

    fn trusting() -> Tls {
        Tls::default().only_authority(made().0)
    }

    #[test]
    fn a_key_in_each_of_its_forms_is_taken() {
        let (certificate, key) = made();
        let der = key.serialize_der();
        for form in [pem("PRIVATE KEY", &der), pem("EC PRIVATE KEY", &der[ECDSA_HEAD..])] {
            let shown = trusting().identity(&*certificate, form);
            assert!(Connector::new(&shown).is_ok());
        }

        let PrivateKeyDer::Pkcs1(rsa) = private_key(RSA.as_bytes()).expect("a key") else {
            panic!("not PKCS#1");
        };
        let pkcs8 = [RSA_HEAD, rsa.secret_pkcs1_der()].concat();
        let key = KeyPair::try_from(&*pkcs8).expect("a key");
        let params = CertificateParams::new(["x".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        for form in [RSA.as_bytes(), &*pem("PRIVATE KEY", &pkcs8)] {
            assert!(Connector::new(&trusting().identity(&*certificate, form)).is_ok());
        }
    }

    #[test]
    fn a_key_that_does_not_fit_is_refused_by_its_option() {
        let ((certificate, key), (_, other)) = (made(), made());
        let key = key.serialize_pem();
        let cut = &key[..key.len() - 30];
        let odd = key.replacen('M', "*", 1);
        for (key, wanted) in [
            (
                other.serialize_pem(),
                "(--key, keyfile) cannot be used: it is not the key of the certificate",
            ),
            (certificate.clone(), "(--key, keyfile) cannot be used: its PEM has no private key"),
            (key.replace("PRIVATE", "ENCRYPTED PRIVATE"), "or only one with a passphrase"),
            (cut.into(), "(--key, keyfile) cannot be used: its PEM is cut off"),
            (odd, "(--key, keyfile) cannot be used: its PEM has characters that"),
            (RSA.replace("RSA", "EC"), "(--key, keyfile) cannot be used: it is not RSA of 2048"),
        ] {
            let text = refused(&trusting().identity(&*certificate, key));
            assert!(text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn certificates_that_cannot_be_read_are_refused_by_their_option() {
        let (certificate, key) = made();
        let (cut, key) = (&certificate[..200], key.serialize_pem());
        let garbled = pem("CERTIFICATE", b"no certificate");
        for (pem, wanted) in [
            (&b""[..], "its PEM has no certificate in it"),
            (key.as_bytes(), "its PEM has no certificate in it"),
            (cut.as_bytes(), "its PEM is cut off"),
            (b"-----BEGIN CERTIFICATE\n", "its PEM has a BEGIN line"),
            (&garbled, "cannot be used"),
        ] {
            let text = refused(&Tls::default().authority(pem));
            assert!(
                text.contains("the authority (--ca, cacertfile)") && text.contains(wanted),
                "{text}"
            );
            let text = refused(&trusting().identity(pem, &*key));
            assert!(
                text.contains("certificate (--cert, certfile)") && text.contains(wanted),
                "{text}"
            );
        }
    }

    #[test]
    fn the_only_authority_replaces_those_of_the_system() {
        let (certificate, _) = made();
        let only = Tls::default().only_authority(&*certificate);
        assert_eq!(trusted(&only).expect("one").len(), 1);
        let of_system = rustls_native_certs::load_native_certs().certs.len();
        let beside = trusted(&only.authority(&*certificate)).expect("them, and one").len();
        assert!(beside > of_system / 2, "{beside} of {of_system}");
    }

    /// Those between ours and the authority's come along.
    #[test]
    fn a_chain_is_shown_as_a_whole() {
        let (middle_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate());
        let key = key.expect("a key");
        let params = CertificateParams::new(["x".to_owned()]).expect("a name");
        let middle = params.self_signed(&middle_key).expect("a certificate");
        let issuer = Issuer::from_params(&params, &middle_key);
        let leaf = params.signed_by(&key, &issuer).expect("a certificate");
        let chain = [leaf.pem(), middle.pem()].concat();
        let shown = Connector::new(&trusting().identity(&*chain, key.serialize_pem()));
        assert!(shown.is_ok());
        assert_eq!(super::chain(chain.as_bytes()).expect("two").len(), 2);
        let garbled = [leaf.pem().as_bytes(), &pem("CERTIFICATE", b"no certificate")].concat();
        let told = refused(&trusting().identity(garbled, key.serialize_pem()));
        assert!(told.contains("(--cert, certfile) cannot be used: certificate 2 of its"), "{told}");
        let wrong_way_round = [middle.pem(), leaf.pem()].concat();
        let text = refused(&trusting().identity(wrong_way_round, key.serialize_pem()));
        assert!(text.contains("not the key of the certificate"), "{text}");
    }
}
