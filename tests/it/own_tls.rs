//! RabbitMQ's own TLS: a login by the client's certificate, and its refusals.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::broker::PrivateBroker;
use crate::support::command::{Command, Output};
use crate::support::front::Identity;

const SOON: Duration = Duration::from_secs(120);
const HOST: &str = "127.0.0.1";

/// A node that demands certificates, and takes their names for logins.
struct Broker {
    node: PrivateBroker,
    address: SocketAddr,
    authority: Identity,
    folder: TempDir,
}

impl Broker {
    fn start() -> Broker {
        let authority = Identity::authority("our authority");
        let folder = tempfile::tempdir().expect("a folder");
        save(folder.path(), "ca.pem", &authority.certificate_pem());
        let own = authority.issue(HOST);
        save(folder.path(), "broker.pem", &own.certificate_pem());
        save(folder.path(), "broker-key.pem", &own.key_pem());
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|it| it.local_addr());
        let address = free.expect("a free port");
        let node = PrivateBroker::start_with(&settings(folder.path(), address));
        Broker { node, address, authority, folder }
    }

    /// Runs `producer` with the certificate of this client, if there is one.
    fn publish_as(&self, client: Option<&Identity>) -> Output {
        let url = format!("amqps://{}?auth_mechanism=external", self.address);
        let folder = self.folder.path();
        let mut command = Command::producer(&["--url", &url, "--queue", "q", "x"]);
        command = command.arg("--ca").arg(folder.join("ca.pem"));
        if let Some(client) = client {
            save(folder, "client.pem", &client.certificate_pem());
            save(folder, "key.pem", &client.key_pem());
            command = command.arg("--cert").arg(folder.join("client.pem"));
            command = command.arg("--key").arg(folder.join("key.pem"));
        }
        command.run(SOON)
    }
}

fn save(folder: &Path, name: &str, pem: &[u8]) {
    std::fs::write(folder.join(name), pem).expect("the file is written");
}

fn settings(folder: &Path, address: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "listeners.ssl.1 = {address}
ssl_options.cacertfile = {folder}/ca.pem
ssl_options.certfile = {folder}/broker.pem
ssl_options.keyfile = {folder}/broker-key.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = EXTERNAL
auth_mechanisms.2 = PLAIN
"
    )
}

/// What is said of a user that does not exist.
const BY_CERTIFICATE: &str =
    "refused the login by client certificate; the user is the name in the certificate";

#[test]
fn the_login_is_the_name_in_the_client_s_certificate() {
    let broker = Broker::start();
    broker.node.enable_plugin("rabbitmq_auth_mechanism_ssl");
    broker.node.ctl(&["add_user", "mailer", "not used"]);
    broker.node.ctl(&["set_permissions", "mailer", ".*", ".*", ".*"]);

    broker.publish_as(Some(&broker.authority.issue("mailer"))).assert_code(0);

    let strange = Identity::authority("another").issue("mailer");
    for (client, wanted) in [
        (Some(broker.authority.issue("nobody")), BY_CERTIFICATE),
        (Some(strange), "does not trust the authority"),
        (None, "requires a client certificate"),
    ] {
        let refused = broker.publish_as(client.as_ref());
        refused.assert_code(2);
        let stderr = refused.stderr();
        assert!(stderr.contains(wanted) && !stderr.contains("password"), "{wanted} in {stderr}");
    }
    assert_eq!(broker.node.client().count("q"), 1);
}

/// For `tests/package.sh`, which starts a broker for these.
#[test]
#[ignore = "writes files for another test: RW_CERTIFICATES=FOLDER"]
fn certificates_for_other_tests() {
    let folder = std::env::var_os("RW_CERTIFICATES").expect("a folder");
    let authority = Identity::authority("an authority");
    let broker = authority.issue("127.0.0.1");
    save(Path::new(&folder), "ca.pem", &authority.certificate_pem());
    save(Path::new(&folder), "broker.pem", &broker.certificate_pem());
    save(Path::new(&folder), "broker-key.pem", &broker.key_pem());
}
