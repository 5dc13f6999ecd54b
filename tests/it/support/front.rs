//! A TLS port that relays to a broker's plain port, with certificates made for each test run.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, date_time_ymd,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use super::acceptor::Acceptor;

/// A certificate and its key: an authority's, or one end's.
pub(crate) struct Identity {
    params: CertificateParams,
    certificate: Certificate,
    key: KeyPair,
}

/// A port with TLS before another one. Dropping it takes no new connections.
pub(crate) struct Front {
    acceptor: Acceptor,
    handshakes: Receiver<Result<(), String>>,
}

/// What a front asks of its clients.
#[derive(Clone, Copy)]
pub(crate) struct Demands<'a> {
    pub(crate) versions: &'a [&'static SupportedProtocolVersion],
    /// A certificate of this authority.
    pub(crate) certificate_of: Option<&'a Identity>,
}

impl Default for Demands<'_> {
    fn default() -> Self {
        Demands { versions: rustls::ALL_VERSIONS, certificate_of: None }
    }
}

impl Identity {
    pub(crate) fn authority(name: &str) -> Identity {
        Identity::signing_itself(named(name, &[]))
    }

    /// An authority's certificate, which is for a host too.
    pub(crate) fn authority_for(host: &str) -> Identity {
        Identity::signing_itself(named(host, &[host]))
    }

    fn signing_itself(mut params: CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a key");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        Identity { params, certificate, key }
    }

    /// A certificate for a host's address or name.
    pub(crate) fn issue(&self, host: &str) -> Identity {
        self.issue_with(host, |_| {})
    }

    /// One that has expired.
    pub(crate) fn issue_expired(&self, host: &str) -> Identity {
        self.issue_with(host, |params| params.not_after = date_time_ymd(2020, 1, 1))
    }

    /// One that is not valid yet.
    pub(crate) fn issue_early(&self, host: &str) -> Identity {
        self.issue_with(host, |params| params.not_before = date_time_ymd(3000, 1, 1))
    }

    /// One that is not for servers.
    pub(crate) fn issue_for_clients(&self, host: &str) -> Identity {
        let purposes = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue_with(host, |params| params.extended_key_usages = purposes)
    }

    fn issue_with(&self, host: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = named(host, &[host]);
        change(&mut params);
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        Identity { params, certificate, key }
    }

    pub(crate) fn certificate_pem(&self) -> Vec<u8> {
        self.certificate.pem().into_bytes()
    }

    /// In PKCS#8.
    pub(crate) fn key_pem(&self) -> Vec<u8> {
        self.key.serialize_pem().into_bytes()
    }
}

fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<_> = hosts.iter().map(|it| (*it).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("names of hosts");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Front {
    pub(crate) fn start(upstream: SocketAddr, identity: &Identity) -> Front {
        Front::start_with(upstream, identity, Demands::default())
    }

    pub(crate) fn start_with(
        upstream: SocketAddr,
        identity: &Identity,
        demands: Demands<'_>,
    ) -> Front {
        let config = Arc::new(config(identity, demands));
        let (tell, handshakes) = unbounded();
        let acceptor = Acceptor::start(0, move |client| {
            let (config, tell) = (Arc::clone(&config), tell.clone());
            thread::spawn(move || {
                let accepted = accept(config, client);
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

fn config(identity: &Identity, demands: Demands<'_>) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let verifier = match demands.certificate_of {
        Some(authority) => {
            let mut trusted = RootCertStore::empty();
            trusted.add(authority.certificate.der().clone()).expect("an authority");
            let builder = WebPkiClientVerifier::builder_with_provider(
                Arc::new(trusted),
                Arc::clone(&provider),
            );
            builder.build().expect("an authority")
        }
        None => Arc::new(NoClientAuth),
    };
    let key = PrivateKeyDer::Pkcs8(identity.key.serialize_der().into());
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(demands.versions)
        .expect("ciphers for these versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate.der().clone()], key)
        .expect("a certificate and its key")
}

/// One end of TLS, and its socket.
struct Client {
    tls: ServerConnection,
    socket: TcpStream,
}

fn accept(config: Arc<ServerConfig>, mut socket: TcpStream) -> Result<Client, String> {
    let mut tls = ServerConnection::new(config).expect("the configuration fits");
    while tls.is_handshaking() {
        tls.complete_io(&mut socket).map_err(|error| {
            // What is left unread would reset the connection, and the alert could be lost in it.
            let _ = socket.shutdown(Shutdown::Write);
            let _ = io::copy(&mut socket, &mut io::sink());
            error.to_string()
        })?;
    }
    Ok(Client { tls, socket })
}

impl Client {
    /// Passes on what has come. Returns whether more may come.
    fn pass_on(&mut self, broker: &mut TcpStream) -> io::Result<bool> {
        let mut came = Vec::new();
        let read = self.tls.reader().read_to_end(&mut came);
        broker.write_all(&came)?;
        match read {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

/// Passes bytes on until either end has no more.
fn relay(mut client: Client, upstream: SocketAddr) -> io::Result<()> {
    let mut broker = TcpStream::connect(upstream)?;
    broker.set_nodelay(true)?;
    client.socket.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    // Some may have come with the end of the handshake, of which the socket knows nothing more.
    while client.pass_on(&mut broker)? {
        client.flush()?;
        let (from_client, from_broker) = wait_for_either(&client.socket, &broker)?;
        if from_client {
            client.tls.read_tls(&mut client.socket)?;
            client.tls.process_new_packets().map_err(io::Error::other)?;
        }
        if from_broker {
            let length = broker.read(&mut buffer)?;
            if length == 0 {
                client.tls.send_close_notify();
                return client.flush();
            }
            client.tls.writer().write_all(&buffer[..length])?;
        }
    }
    Ok(())
}

fn wait_for_either(one: &TcpStream, other: &TcpStream) -> io::Result<(bool, bool)> {
    let mut both = [PollFd::new(one, PollFlags::IN), PollFd::new(other, PollFlags::IN)];
    poll(&mut both, None)?;
    let [one, other] = both.map(|it| !it.revents().is_empty());
    Ok((one, other))
}
