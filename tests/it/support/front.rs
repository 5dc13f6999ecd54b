//! A TLS port that relays to a broker's plain port, with certificates made for each test run.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, unbounded};
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    HandshakeError, SslAcceptor, SslAcceptorBuilder, SslMethod, SslStream, SslVerifyMode,
};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509Extension, X509Name};
use rustix::event::{PollFd, PollFlags, poll};

use super::acceptor::Acceptor;

/// A certificate and its key: an authority's, or one end's.
pub(crate) struct Identity {
    certificate: X509,
    key: PKey<Private>,
}

/// A port with TLS before another one. Dropping it takes no new connections.
pub(crate) struct Front {
    acceptor: Acceptor,
    handshakes: Receiver<Result<(), String>>,
}

impl Identity {
    pub(crate) fn authority(name: &str) -> Identity {
        Identity::make(name, None, DAY, |_| BasicConstraints::new().critical().ca().build())
    }

    /// A certificate for a host's address or name.
    pub(crate) fn issue(&self, host: &str) -> Identity {
        self.issue_until(host, DAY)
    }

    /// One that has expired.
    pub(crate) fn issue_expired(&self, host: &str) -> Identity {
        self.issue_until(host, -DAY)
    }

    pub(crate) fn certificate_pem(&self) -> Vec<u8> {
        self.certificate.to_pem().expect("a certificate in PEM")
    }

    pub(crate) fn key_pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem_pkcs8().expect("a key in PEM")
    }

    fn issue_until(&self, host: &str, end: i64) -> Identity {
        Identity::make(host, Some(self), end, |builder| {
            let mut name = SubjectAlternativeName::new();
            match host.parse::<IpAddr>() {
                Ok(_) => name.ip(host),
                Err(_) => name.dns(host),
            };
            name.build(&builder.x509v3_context(None, None))
        })
    }

    fn make(
        name: &str,
        issuer: Option<&Identity>,
        end: i64,
        extension: impl FnOnce(&X509Builder) -> Result<X509Extension, ErrorStack>,
    ) -> Identity {
        let made = Identity::try_make(name, issuer, end, extension);
        made.unwrap_or_else(|error| panic!("no certificate for {name}: {error}"))
    }

    fn try_make(
        name: &str,
        issuer: Option<&Identity>,
        end: i64,
        extension: impl FnOnce(&X509Builder) -> Result<X509Extension, ErrorStack>,
    ) -> Result<Identity, ErrorStack> {
        let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let key = PKey::from_ec_key(EcKey::generate(&curve)?)?;
        let mut subject = X509Name::builder()?;
        subject.append_entry_by_nid(Nid::COMMONNAME, name)?;
        let subject = subject.build();
        let serial = BigNum::from_u32(fastrand::u32(1..))?.to_asn1_integer()?;
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
        let now = i64::try_from(now).expect("a time of this age");

        let mut builder = X509::builder()?;
        builder.set_version(2)?;
        builder.set_serial_number(&serial)?;
        builder.set_subject_name(&subject)?;
        builder.set_issuer_name(issuer.map_or(&subject, |it| it.certificate.subject_name()))?;
        builder.set_pubkey(&key)?;
        builder.set_not_before(&*Asn1Time::from_unix(now - 2 * DAY)?)?;
        builder.set_not_after(&*Asn1Time::from_unix(now + end)?)?;
        let extension = extension(&builder)?;
        builder.append_extension(extension)?;
        builder.sign(issuer.map_or(&key, |it| &it.key), MessageDigest::sha256())?;
        Ok(Identity { certificate: builder.build(), key })
    }
}

impl Front {
    pub(crate) fn start(upstream: SocketAddr, identity: &Identity) -> Front {
        Front::start_with(upstream, identity, |_| Ok(()))
    }

    /// One with further settings.
    pub(crate) fn start_with(
        upstream: SocketAddr,
        identity: &Identity,
        settings: impl FnOnce(&mut SslAcceptorBuilder) -> Result<(), ErrorStack>,
    ) -> Front {
        let tls = tls_acceptor(identity, settings).expect("the settings fit");
        let tls = Arc::new(tls);
        let (tell, handshakes) = unbounded();
        let acceptor = Acceptor::start(0, move |client| {
            let (tls, tell) = (Arc::clone(&tls), tell.clone());
            thread::spawn(move || {
                let accepted = accept(&tls, client);
                let _ = tell.send(accepted.as_ref().map(drop).map_err(String::clone));
                accepted.map(|client| relay(client, upstream))
            });
        });
        Front { acceptor, handshakes }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.acceptor.address()
    }

    /// How the next handshake ended. Nothing is decrypted before, and nothing after a failure.
    pub(crate) fn next_handshake(&self, within: Duration) -> Result<(), String> {
        let ended = self.handshakes.recv_timeout(within);
        ended.unwrap_or_else(|_| panic!("no handshake ended within {within:?}"))
    }
}

/// The setting that demands a certificate of this authority from clients.
pub(crate) fn demand_of(
    authority: &Identity,
) -> impl FnOnce(&mut SslAcceptorBuilder) -> Result<(), ErrorStack> {
    let certificate = authority.certificate.clone();
    move |builder| {
        builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        builder.cert_store_mut().add_cert(certificate)
    }
}

/// In seconds.
const DAY: i64 = 24 * 60 * 60;

fn tls_acceptor(
    identity: &Identity,
    settings: impl FnOnce(&mut SslAcceptorBuilder) -> Result<(), ErrorStack>,
) -> Result<SslAcceptor, ErrorStack> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder.set_certificate(&identity.certificate)?;
    builder.set_private_key(&identity.key)?;
    settings(&mut builder)?;
    Ok(builder.build())
}

fn accept(tls: &SslAcceptor, client: TcpStream) -> Result<SslStream<TcpStream>, String> {
    tls.accept(client).map_err(|error| {
        let text = error.to_string();
        if let HandshakeError::Failure(failed) = error {
            // What is left unread would reset the connection, and the alert could be lost in it.
            let mut client = failed.get_ref();
            let _ = client.shutdown(Shutdown::Write);
            let _ = io::copy(&mut client, &mut io::sink());
        }
        text
    })
}

/// Passes bytes on until either end has no more.
fn relay(mut client: SslStream<TcpStream>, upstream: SocketAddr) -> io::Result<()> {
    let mut broker = TcpStream::connect(upstream)?;
    broker.set_nodelay(true)?;
    client.get_ref().set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        let (from_client, from_broker) = wait_for_either(client.get_ref(), &broker)?;
        // OpenSSL may hold more of a record than was asked for, of which the socket knows nothing.
        let mut more = from_client;
        while more {
            let length = client.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            broker.write_all(&buffer[..length])?;
            more = client.ssl().pending() > 0;
        }
        if from_broker {
            let length = broker.read(&mut buffer)?;
            if length == 0 {
                let _ = client.shutdown();
                return Ok(());
            }
            client.write_all(&buffer[..length])?;
        }
    }
}

fn wait_for_either(one: &TcpStream, other: &TcpStream) -> io::Result<(bool, bool)> {
    let mut both = [PollFd::new(one, PollFlags::IN), PollFd::new(other, PollFlags::IN)];
    poll(&mut both, None)?;
    let [one, other] = both.map(|it| !it.revents().is_empty());
    Ok((one, other))
}
