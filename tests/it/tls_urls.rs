//! What an `amqps://` URL says of TLS: its files, and the name that the broker's certificate is for.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rabbit_work::{Broker, Error, Producer, Queue, Task, Tls};
use tempfile::TempDir;

use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output};
use crate::support::front::{Demands, Front, Identity};

const SOON: Duration = Duration::from_secs(60);
const HOST: &str = "127.0.0.1";

struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().expect("a folder"))
    }

    fn save(&self, name: &str, pem: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, pem).expect("the file is written");
        path
    }
}

fn refused(output: &Output, wanted: &str) {
    output.assert_code(2);
    assert!(output.stderr().contains(wanted), "{wanted} in {}", output.stderr());
    assert!(!output.stderr().contains("s3cretword"), "{}", output.stderr());
}

#[test]
fn the_files_of_a_url_are_used_in_the_place_of_the_options() {
    let (authority, other) = (Identity::authority("ours"), Identity::authority("another"));
    let (files, queue) = (Files::new(), unique_queue("tls"));
    let demands = Demands { certificate_of: Some(&authority), ..Demands::default() };
    let front = Front::start_with(shared_broker().address(), &authority.issue(HOST), demands);
    let client = authority.issue("our client");
    let ca = files.save("ca +.pem", &authority.certificate_pem());
    let ca = ca.display().to_string().replace(' ', "%20");
    let certificate = files.save("client.pem", &client.certificate_pem());
    let key = files.save("key.pem", &client.key_pem());
    let both = [client.certificate_pem(), client.key_pem()].concat();
    let both = files.save("both.pem", &both);
    let wrong = files.save("wrong.pem", &other.certificate_pem());
    let publish = |parameters: &str| {
        let url = format!("amqps://guest:guest@{}?{parameters}", front.address());
        let command = Command::producer(&["--url", &url, "--queue", &queue, "x"]);
        command.arg("--ca").arg(&wrong).run(SOON)
    };
    let (certificate, key, both) = (certificate.display(), key.display(), both.display());
    publish(&format!("cacertfile={ca}&certfile={certificate}&keyfile={key}")).assert_code(0);
    publish(&format!("verify=verify_peer&cacertfile={ca}&certfile={both}")).assert_code(0);
    assert_eq!(shared_broker().client().count(&queue), 2);

    refused(&publish(&format!("certfile={both}")), "not trusted");
    refused(&publish(&format!("cacertfile={ca}")), "requires a client certificate");
    let missing = publish(&format!("cacertfile={ca}&certfile=/does/not/exist"));
    refused(&missing, "certfile /does/not/exist of the URL: No such file");
    let no_key = publish(&format!("cacertfile={ca}&certfile={certificate}"));
    refused(&no_key, "its PEM has no private key in it");
    refused(&publish("verify=verify_none"), "verify=verify_none would take any certificate");
    shared_broker().client().delete(&queue);
}

#[test]
fn a_url_names_the_host_that_the_broker_s_certificate_is_for() {
    let (authority, files) = (Identity::authority("ours"), Files::new());
    let front = Front::start(shared_broker().address(), &authority.issue("rabbit.example"));
    let ca = files.save("ca.pem", &authority.certificate_pem());
    let check = |parameters: &str| {
        let url = format!("amqps://{}?cacertfile={}{parameters}", front.address(), ca.display());
        Command::queuectl(&["--url", &url, "--queue", "no such queue", "status"]).run(SOON)
    };
    refused(&check(""), "but for rabbit.example");
    refused(&check("&server_name_indication=other.example"), "but for rabbit.example");
    check("&server_name_indication=rabbit.example").assert_code(1);
    refused(&check("&server_name_indication=disable"), "would take the certificate of any host");
}

#[test]
fn each_address_has_its_own_files_and_they_are_read_at_each_connect() {
    let (first, second) = (Identity::authority("first"), Identity::authority("second"));
    let (files, queue) = (Files::new(), unique_queue("tls"));
    let fronts = [&first, &second].map(|authority| {
        let issued = authority.issue(HOST);
        (authority, Front::start(shared_broker().address(), &issued))
    });
    let urls = fronts.iter().enumerate().map(|(number, (authority, front))| {
        let ca = files.save(&format!("{number}.pem"), &authority.certificate_pem());
        format!("amqps://guest:guest@{}?cacertfile={}", front.address(), ca.display())
    });
    let urls: Vec<_> = urls.collect();
    let publish = |urls: &[String]| {
        let broker = Broker::new(urls)?.in_order().tls(Tls::default().authority("not read"));
        Producer::new(&broker, &Queue::new(&queue)).publish(Task::new("x")).map(drop)
    };
    publish(&urls).expect("the first");
    assert_eq!(fronts[0].1.next_handshake(SOON), Ok(()));
    let broker = Broker::new(&urls[1..]).expect("a URL");
    let mut producer = Producer::new(&broker, &Queue::new(&queue));
    producer.publish(Task::new("x")).expect("the second");

    files.save("1.pem", &first.certificate_pem());
    let mut later = Producer::new(&broker, &Queue::new(&queue));
    let error = later.publish(Task::new("x")).expect_err("another authority").chain();
    assert!(error.contains("not trusted"), "{error}");
    fs::remove_file(files.0.path().join("1.pem")).expect("a file");
    let error = publish(&urls).expect_err("a file is missing");
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    shared_broker().client().delete(&queue);
}
