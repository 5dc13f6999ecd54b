//! TLS: certificates that are right or wrong, and the network's faults with TLS.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rabbit_work::{
    Broker, Error, Inspector, Outcome, Producer, Queue, Task, Tls, TlsCause, Worker,
};
use rustls::version::{TLS12, TLS13};
use tempfile::TempDir;

use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::{Command, Output, Running};
use crate::support::front::{Demands, Front, Identity};
use crate::support::proxy::{Proxy, Toxic};
use crate::support::scripted::ScriptedBroker;
use crate::support::working::{Working, bodies};

const SOON: Duration = Duration::from_secs(60);
const HOST: &str = "127.0.0.1";

/// Our authority, and the files by which the commands know it.
struct Trust {
    authority: Identity,
    /// A broker's certificate that is its own authority.
    own: Identity,
    folder: TempDir,
}

impl Trust {
    fn new() -> Trust {
        let authority = Identity::authority("our authority");
        let own = Identity::authority_for(HOST);
        let trust = Trust { authority, own, folder: tempfile::tempdir().expect("a folder") };
        // Not the first of its file, as in a bundle.
        let bundle = [trust.own.certificate_pem(), trust.authority.certificate_pem()].concat();
        trust.save("ca.pem", &bundle);
        trust
    }

    /// A front that shows a certificate of our authority.
    fn front(&self) -> Front {
        Front::start(shared_broker().address(), &self.authority.issue(HOST))
    }

    fn save(&self, name: &str, pem: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, pem).expect("the file is written");
        path
    }

    /// The command, to a port with TLS, with our authority.
    fn given_to(&self, command: Command, address: SocketAddr, queue: &str) -> Command {
        let url = format!("amqps://guest:guest@{address}");
        let authority = self.folder.path().join("ca.pem");
        command.args(&["--url", &url, "--queue", queue]).arg("--ca").arg(authority)
    }

    fn worker(&self, address: SocketAddr, queue: &str) -> Running {
        let worker = Command::worker(&["--threads", "2", "--grace", "1s"]);
        let running = self.given_to(worker, address, queue).start();
        wait_until_consuming(&running);
        running
    }
}

fn wait_until_consuming(running: &Running) {
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
}

/// The one line of an end with 2.
fn refusal(output: &Output) -> String {
    output.assert_code(2);
    let errors = output.errors();
    assert_eq!(errors.len(), 1, "{}", output.stderr());
    errors[0].clone()
}

#[test]
fn row_59_with_our_authority_a_task_goes_there_and_back() {
    let (trust, queue) = (Trust::new(), unique_queue("tls"));
    let front = trust.front();

    trust.given_to(Command::producer(&["hello"]), front.address(), &queue).run(SOON).success();
    let running = trust.worker(front.address(), &queue);
    running.wait_for_stdout_line(|line| line == " [x] Received 'hello'", SOON);
    running.signal("INT");

    running.wait(SOON).assert_code(0);
    assert_eq!(shared_broker().client().count(&queue), 0, "the task was acked");
}

#[test]
fn an_authority_can_be_the_only_one() {
    let (trust, queue) = (Trust::new(), unique_queue("tls"));
    let front = trust.front();
    let broker: Broker = format!("amqps://{}", front.address()).parse().expect("a URL");
    let only = |authority: &Identity| Tls::default().only_authority(authority.certificate_pem());
    let publish = |tls| {
        let mut producer = Producer::new(&broker.clone().tls(tls), &Queue::new(&queue));
        producer.publish(Task::new("x"))
    };
    assert!(publish(only(&trust.authority)).is_ok());
    let refused = publish(only(&Identity::authority("another"))).expect_err("not trusted");
    assert!(refused.chain().contains("not trusted"), "{}", refused.chain());
}

#[test]
fn a_pem_that_is_none_is_refused_at_once_also_while_no_broker_can_be_reached() {
    let wrong = Tls::default().authority("no PEM");
    // Nobody listens there.
    let broker: Broker = "amqps://127.0.0.1:1".parse().expect("a URL");
    let (_trigger, shutdown) = rabbit_work::shutdown();
    let worker = Worker::new(&broker.tls(wrong), &Queue::new("q"));
    let ended = worker.run(|_: &rabbit_work::Delivery| Ok(()), &shutdown);
    let cause = TlsCause::InvalidSetting;
    assert!(matches!(ended, Err(Error::Tls { cause: its, .. }) if its == cause), "{ended:?}");

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("wrong.pem");
    fs::write(&file, "no PEM").expect("written");
    let command = Command::producer(&["x", "--url", "amqps://127.0.0.1:1", "--queue", "q"]);
    let text = refusal(&command.arg("--ca").arg(&file).run(SOON));
    assert!(text.contains("authority"), "{text}");
}

#[test]
fn a_body_of_a_mebibyte_arrives_byte_for_byte_over_tls() {
    let (trust, queue) = (Trust::new(), unique_queue("tls"));
    let front = trust.front();
    let url = format!("amqps://{}", front.address());
    let tls = Tls::default().authority(trust.authority.certificate_pem());
    let broker = url.parse::<Broker>().expect("a URL").tls(tls);
    let body: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1 << 20).collect();

    let mut producer = Producer::new(&broker, &Queue::new(&queue));
    let mut receipts = producer.send(Task::new(body.clone()));
    receipts.extend(producer.flush());

    assert_eq!(receipts[0].outcome, Outcome::Confirmed, "{receipts:?}");
    let messages = shared_broker().client().get_all(&queue);
    assert!(messages[0].body == body);
}

/// What the socket does not take at once is written when there is room, and what came together is
/// read together, also at the end, when nothing more is written or sent.
#[test]
fn large_bodies_go_there_and_back_over_a_narrow_line() {
    let (trust, queue) = (Trust::new(), unique_queue("tls"));
    let front = trust.front();
    let proxy = Proxy::start(front.address());
    proxy.set_both(Toxic::Bandwidth(16 << 20));
    let tls = Tls::default().only_authority(trust.authority.certificate_pem());
    let url = format!("amqps://{}", proxy.address());
    let broker = url.parse::<Broker>().expect("a URL").tls(tls);
    let queue = Queue::new(&queue);
    let sent: Vec<Vec<u8>> = [12 << 20, 8 << 20]
        .into_iter()
        .map(|size| std::iter::repeat_with(|| fastrand::u8(..)).take(size).collect())
        .collect();

    let mut producer = Producer::new(&broker, &queue);
    let tasks = sent.iter().map(|body| Task::new(body.clone()));
    let mut receipts: Vec<_> = tasks.flat_map(|task| producer.send(task)).collect();
    receipts.extend(producer.flush());
    assert!(receipts.iter().all(|it| it.outcome == Outcome::Confirmed), "{receipts:?}");
    assert_eq!(receipts.len(), sent.len());

    let (told, handler) = bodies();
    let working = Working::start(&Worker::new(&broker, &queue).threads(1).drain(), handler);
    working.wait(SOON).expect("drained");
    let came: Vec<_> = told.iter().collect();
    assert!(came == sent, "{:?}", came.iter().map(Vec::len).collect::<Vec<_>>());
}

#[test]
fn a_key_of_another_certificate_is_refused_before_anything_connects() {
    let trust = Trust::new();
    let [ours, other] = ["ours", "other"].map(|name| trust.authority.issue(name));
    let certificate = trust.save("client.pem", &ours.certificate_pem());
    let key = trust.save("key.pem", &other.key_pem());
    let nobody = "127.0.0.1:1".parse().expect("an address");
    for command in [Command::producer(&["x"]), Command::worker(&[])] {
        let command = trust.given_to(command, nobody, "q");
        let command = command.arg("--cert").arg(&certificate).arg("--key").arg(&key);

        let said = refusal(&command.run(SOON));

        assert!(
            said.contains("--key") && said.contains("not the key of the certificate"),
            "{said}"
        );
    }
}

#[test]
fn row_59_a_wrong_certificate_is_exit_2_in_one_line_and_nothing_is_sent() {
    let (trust, queue) = (Trust::new(), unique_queue("tls"));
    let client = shared_broker().client();
    client.declare(&queue);
    let ours = &trust.authority;
    let table = [
        (
            &Identity::authority("another").issue(HOST),
            TlsCause::UnknownIssuer,
            "is not trusted here",
        ),
        // As when an authority was made anew.
        (
            &Identity::authority("our authority").issue(HOST),
            TlsCause::BadSignature,
            "is not signed with the key",
        ),
        // As `openssl req -x509` makes one; --ca names it.
        (&trust.own, TlsCause::IsAuthority, "that of an authority (CA:TRUE)"),
        (&ours.issue("elsewhere.example"), TlsCause::WrongName, "but for elsewhere.example; write"),
        (&ours.issue_expired(HOST), TlsCause::Expired, "certificate has expired, or"),
        (&ours.issue_early(HOST), TlsCause::NotYetValid, "is not valid yet, or"),
        (&ours.issue_for_clients(HOST), TlsCause::UnusableCertificate, "is not one for servers"),
    ];
    for (identity, cause, wanted) in table {
        let front = Front::start(shared_broker().address(), identity);
        let address = front.address();
        let url = format!("amqps://me:s3cretword@{address}");
        for command in [Command::producer(&["x"]), Command::worker(&[])] {
            let authority = trust.folder.path().join("ca.pem");
            let command = command.args(&["--url", &url, "--queue", &queue]);
            let output = command.arg("--ca").arg(authority).env("RUST_LOG", "trace").run(SOON);

            let said = refusal(&output);
            assert!(said.contains(wanted) && said.contains(&address.to_string()), "{said}");
            assert!(!output.stderr().contains("s3cretword"), "{}", output.stderr());
            assert!(front.next_handshake(SOON).is_err());
        }
        let tls =
            Tls::default().authority(fs::read(trust.folder.path().join("ca.pem")).expect("it"));
        let broker = url.parse::<Broker>().expect("a URL").tls(tls);
        let error = Inspector::new(&broker, &Queue::new(&queue)).status().expect_err("refused");
        assert!(matches!(error, Error::Tls { cause: its, .. } if its == cause), "{error:?}");
    }
    assert_eq!(client.count(&queue), 0);
}

#[test]
fn an_authority_for_addresses_without_tls_is_refused() {
    let trust = Trust::new();
    for command in [Command::producer(&["x"]), Command::worker(&[])] {
        let authority = trust.folder.path().join("ca.pem");
        let output =
            command.args(&["--url", "amqp://localhost:1"]).arg("--ca").arg(authority).run(SOON);

        let said = refusal(&output);
        assert!(said.contains("--ca") && said.contains("nothing would be encrypted"), "{said}");
    }
}

#[test]
fn row_59_a_client_certificate_that_is_demanded_is_shown_and_its_absence_is_reported() {
    let (trust, queue) = (Trust::new(), unique_queue("tls"));
    let ours = trust.authority.issue("our client");
    let strange = Identity::authority("another").issue("a stranger");
    // In the handshake before TLS 1.3, and only after it since.
    for version in [&TLS12, &TLS13] {
        let demands = Demands { versions: &[version], certificate_of: Some(&trust.authority) };
        let identity = trust.authority.issue(HOST);
        let front = Front::start_with(shared_broker().address(), &identity, demands);
        let show = |identity: Option<&Identity>| {
            let mut command = trust.given_to(Command::producer(&["x"]), front.address(), &queue);
            if let Some(identity) = identity {
                let certificate = trust.save("client.pem", &identity.certificate_pem());
                let key = trust.save("key.pem", &identity.key_pem());
                command = command.arg("--cert").arg(certificate).arg("--key").arg(key);
            }
            let begun = Instant::now();
            let output = command.run(SOON);
            (output, begun.elapsed(), front.next_handshake(SOON))
        };

        let (accepted, _, handshake) = show(Some(&ours));
        accepted.assert_code(0);
        assert_eq!(handshake, Ok(()));

        let table = [
            (None, "requires a client certificate"),
            (Some(&strange), "does not trust the authority"),
        ];
        for (wrong, wanted) in table {
            let (refused, after, handshake) = show(wrong);
            let said = refusal(&refused);
            assert!(said.contains("TLS") && said.contains(wanted), "{said}");
            assert!(after < Duration::from_secs(10), "{after:?}");
            assert!(handshake.is_err());
        }
    }
    assert_eq!(shared_broker().client().count(&queue), 2);
}

#[test]
fn an_authority_s_file_without_a_certificate_is_exit_2_in_one_line() {
    let trust = Trust::new();
    let front = trust.front();
    trust.save("ca.pem", b"no certificate\n");

    let output = trust.given_to(Command::producer(&["x"]), front.address(), "q").run(SOON);

    let said = refusal(&output);
    assert!(said.contains("no certificate in it"), "{said}");
}

#[test]
fn row_59_the_broker_s_port_without_tls_is_exit_2_in_one_line() {
    let (trust, plain) = (Trust::new(), shared_broker().address());

    let output = trust.given_to(Command::producer(&["x"]), plain, "q").run(SOON);

    let said = refusal(&output);
    assert!(said.contains("write amqp://") && said.contains(&plain.to_string()), "{said}");
}

#[test]
fn a_connection_with_tls_that_is_cut_or_freezes_is_replaced() {
    let (trust, queue) = (Trust::new(), unique_queue("tls"));
    let front = trust.front();
    let proxy = Proxy::start(front.address());
    let mut client = shared_broker().client();
    let url = format!("amqps://{}?heartbeat=1", proxy.address());
    let worker = Command::worker(&["--url", &url, "--queue", &queue]);
    let running = worker.arg("--ca").arg(trust.folder.path().join("ca.pem")).start();
    wait_until_consuming(&running);

    proxy.cut();
    wait_until_consuming(&running);
    client.publish_id(&queue, "cut");
    running.wait_for_stdout_line(|line| line == " [x] Received 'cut'", SOON);
    proxy.set_both(Toxic::Timeout);
    running.wait_for_stderr_line(|line| line.contains("missed two heartbeats"), SOON);
    proxy.set_both(Toxic::Pass);
    proxy.cut();
    wait_until_consuming(&running);
    client.publish_id(&queue, "frozen");
    running.wait_for_stdout_line(|line| line == " [x] Received 'frozen'", SOON);

    running.signal("INT");
    running.wait(SOON).assert_code(0);
}

#[test]
fn an_absurd_size_ends_the_session_over_tls_too() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        session.accept_consumer();
        session.raw(b"\x03\0\x01\x70\0\0\0xyz");
        session.read_until_closed();
    });
    let trust = Trust::new();
    let front = Front::start(broker.address(), &trust.authority.issue(HOST));

    let running = trust.given_to(Command::worker(&[]), front.address(), "q").start();

    let line = running.wait_for_stderr_line(|line| line.contains("next try in"), SOON);
    assert!(line.contains("one of 1879048192 bytes"), "{line}");
}

#[test]
fn signals_to_a_worker_of_a_frozen_tls_front_end_it_in_bounded_time() {
    for signals in [&["INT"][..], &["TERM", "TERM"]] {
        let (trust, queue) = (Trust::new(), unique_queue("tls"));
        let front = trust.front();
        let proxy = Proxy::start(front.address());
        let mut client = shared_broker().client();
        let running = trust.worker(proxy.address(), &queue);
        client.publish_id(&queue, "long..........");
        running.wait_for_stdout_line(|line| line.contains("Received"), SOON);

        proxy.set_both(Toxic::Timeout);
        running.signal(signals[0]);
        running.wait_for_stderr_line(|line| line.contains("stopping"), SOON);
        let begun = Instant::now();
        signals[1..].iter().for_each(|signal| running.signal(signal));
        let output = running.wait(SOON);

        let limit = if signals.len() == 1 { 6 } else { 2 };
        assert!(begun.elapsed() < Duration::from_secs(limit), "{:?}", begun.elapsed());
        output.assert_code(if signals.len() == 1 { 3 } else { 130 });
        drop(proxy);
        client.wait_for_count(&queue, 1, SOON);
    }
}

#[test]
fn a_tls_handshake_that_is_never_answered_ends_within_its_limit_or_at_a_signal() {
    let (trust, queue) = (Trust::new(), unique_queue("tls"));
    let front = trust.front();
    let proxy = Proxy::start(front.address());
    proxy.set_both(Toxic::Timeout);
    let url = format!("amqps://{}", proxy.address());
    let broker = url.parse::<Broker>().expect("a URL").handshake_timeout(Duration::from_secs(1));
    let once = Worker::new(&broker, &Queue::new(&queue)).no_reconnect();

    let begun = Instant::now();
    let error = Working::start(&once, bodies().1).wait(SOON).expect_err("nobody answers");
    let until_given_up = begun.elapsed();
    let running = trust.given_to(Command::worker(&[]), proxy.address(), &queue).start();
    proxy.wait_for_connections(2, SOON);
    let begun = Instant::now();
    running.signal("TERM");
    let output = running.wait(SOON);

    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("waiting for the handshake"), "{error}");
    assert!(until_given_up < Duration::from_secs(5), "{until_given_up:?}");
    output.assert_code(0);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
