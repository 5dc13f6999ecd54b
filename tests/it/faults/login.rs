//! The way to an open connection: peers that are silent or no broker, refused and cut logins.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(feature = "tls")]
use rabbit_work::TlsCause;
use rabbit_work::{Broker, Error};

use super::{SOON, worker};
use crate::support::broker::shared_broker;
use crate::support::command::Command;
use crate::support::scripted::{ScriptedBroker, Session};
use crate::support::wire::{Call, Field, Table};
use crate::support::working::{Working, bodies};

#[test]
fn row_30_a_peer_that_never_speaks_is_given_up_after_the_handshake_timeout() {
    let silent = ScriptedBroker::start(|session, _| session.stay_silent());
    let broker: Broker = silent.url().parse().expect("a URL");
    let broker = broker.handshake_timeout(Duration::from_millis(500));

    let begun = Instant::now();
    let (_, handler) = bodies();
    let working = Working::start(&worker(&broker, "q").no_reconnect(), handler);
    let ended = working.wait(SOON);

    let Err(Error::Unreachable { attempts, .. }) = ended else { panic!("{ended:?}") };
    assert!(attempts[0].contains("handshake"), "{attempts:?}");
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(400) && took < Duration::from_secs(3), "{took:?}");
}

/// What a worker says whose only try met a peer that acts like this.
fn first_try(
    url: impl Fn(&str) -> String,
    act: impl Fn(&mut Session) + Send + Sync + 'static,
) -> Error {
    let peer = ScriptedBroker::start(move |session, _| act(session));
    let broker: Broker = url(&peer.address().to_string()).parse().expect("a URL");
    let begun = Instant::now();
    let working = Working::start(&worker(&broker, "q").no_reconnect(), bodies().1);
    let ended = working.wait(SOON);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    ended.expect_err("no broker")
}

#[test]
fn a_peer_of_another_protocol_is_known_at_once_by_what_it_answers() {
    for (answer, told) in [
        (&b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"[..], "\"HTTP/1.1 400 Bad Request\""),
        (b"AMQP\0\x01\0\0", "\"AMQP\\x00\\x01\\x00\\x00\""),
        (b"\x15\x03\x03\0\x02\x02\x0a", "amqps://"),
    ] {
        let error = first_try(
            |address| format!("amqp://{address}"),
            |session| {
                session.expect_protocol_header();
                session.raw(answer);
                session.read_until_closed();
            },
        );
        let Error::Unreachable { attempts, .. } = &error else { panic!("{error:?}") };
        assert!(attempts[0].contains("not AMQP 0-9-1"), "{attempts:?}");
        assert!(attempts[0].contains(told), "{attempts:?}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn a_port_without_tls_is_a_lasting_error_of_tls_and_a_cut_is_not() {
    let url = |address: &str| format!("amqps://{address}");
    let plain = first_try(url, |session| {
        session.raw(b"AMQP\0\0\x09\x01");
        session.hang_up();
    });
    assert!(
        matches!(&plain, Error::Tls { cause: TlsCause::NotTls, reason, .. }
            if reason.contains("127.0.0.1")),
        "{plain:?}"
    );

    let cut = first_try(url, Session::hang_up);
    assert!(matches!(cut, Error::Unreachable { .. }), "{cut:?}");
}

#[cfg(feature = "tls")]
#[test]
fn a_refusal_of_tls_says_what_to_do_and_a_fault_of_the_peer_may_pass() {
    let told_of = |answer: &'static [u8]| {
        let url = |address: &str| format!("amqps://{address}");
        first_try(url, |session| {
            session.raw(answer);
            session.read_until_closed();
        })
    };
    // The hello of a broker with TLS 1.0 alone.
    let old = b"\x16\x03\x01\0\x2a\x02\0\0\x26\x03\x01 32 bytes of randomness, or less\0\xc0\x14\0";
    for (answer, cause, wanted) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], TlsCause::NotTls, "write amqp://"),
        (old, TlsCause::Incompatible, "which are 1.2 and 1.3"),
        (b"\x15\x03\x01\0\x02\x02\x46", TlsCause::Incompatible, "which are 1.2 and 1.3"),
        (b"\x15\x03\x03\0\x02\x02\x28", TlsCause::HandshakeRefused, "give --cert and --key"),
        (
            b"\x15\x03\x03\0\x02\x02\x2a",
            TlsCause::ClientCertificateRefused,
            "(--cert); its log says why",
        ),
        (b"\x15\x03\x03\0\x02\x02\x70", TlsCause::WrongName, "no certificate for the host"),
    ] {
        let error = told_of(answer);
        let Error::Tls { cause: its, reason, .. } = &error else { panic!("{error:?}") };
        assert!(*its == cause && reason.contains(wanted), "{error:?}");
    }
    for (name, answer) in [
        ("internal_error", b"\x15\x03\x03\0\x02\x02\x50"),
        ("bad_record_mac", b"\x15\x03\x03\0\x02\x02\x14"),
    ] {
        let error = told_of(answer);
        assert!(matches!(error, Error::Unreachable { .. }), "{name}: {error}");
    }
}

#[test]
fn a_cut_at_the_login_that_comes_at_once_is_no_refusal() {
    let told = failure_of_a_login(Session::hang_up);
    assert!(told.contains("during the login"), "{told}");
}

#[test]
fn the_broker_s_own_words_are_reported_also_where_it_closes_at_the_login() {
    let told = failure_of_a_login(|session| {
        session.close_connection(320, "CONNECTION_FORCED - under maintenance");
        session.read_until_closed();
    });
    assert!(told.contains("320 CONNECTION_FORCED - under maintenance"), "{told}");
}

/// What is told of a login that is answered like this.
fn failure_of_a_login(answer: impl Fn(&mut Session) + Send + Sync + 'static) -> String {
    let error = first_try(
        |address| format!("amqp://{address}"),
        move |session| {
            session.expect_protocol_header();
            session.send_start();
            session.expect_method();
            answer(session);
        },
    );
    let Error::Unreachable { attempts, .. } = error else { panic!("{error:?}") };
    attempts[0].clone()
}

#[test]
fn row_31_a_peer_that_drops_the_first_packet_is_given_up_after_the_connect_timeout() {
    let (full, _queued) = full_listener();
    let url = format!("amqp://{full}?connection_timeout=400");

    let begun = Instant::now();
    let output = Command::worker(&["--url", &url, "--no-reconnect"]).run(SOON);

    output.assert_code(69);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(350) && took < Duration::from_secs(3), "{took:?}");
}

/// A listener that accepts nothing and whose queue of connections is full: the system answers
/// no further one.
fn full_listener() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    rustix::net::listen(&listener, 0).expect("a shorter queue");
    let address = listener.local_addr().expect("an address");
    let brief = Duration::from_millis(200);
    let queued = std::iter::from_fn(|| TcpStream::connect_timeout(&address, brief).ok());
    let queued = queued.take(64).collect::<Vec<_>>();
    assert!(queued.len() < 64, "the queue never fills");
    (address, (listener, queued))
}

/// As RabbitMQ says it to clients with `authentication_failure_close`.
const REFUSED: &str = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. \
                       For details see the broker logfile.";

/// How long RabbitMQ holds the cut back after a refusal, about which nothing may be concluded.
const HELD_BACK: Duration = Duration::from_secs(3);

#[test]
fn the_start_ok_announces_that_a_refusal_in_words_is_understood() {
    let broker = ScriptedBroker::start(|session, _| {
        let client = session.handshake();
        let able = |name: &str| capability(&client.properties, name) == Some(&Field::Bool(true));
        assert!(able("authentication_failure_close"), "{:?}", client.properties);
        assert!(able("consumer_cancel_notify"), "what amiquip announces stays");
        assert!(able("connection.blocked"), "what amiquip announces stays");
        let publish = session.read_publish();
        session.ack(publish.channel, 1);
        let _ = session.answer_rpcs();
    });

    Command::producer(&["--url", &broker.url(), "x"]).run(SOON).assert_code(0);
    broker.finish(SOON);
}

fn capability<'a>(properties: &'a Table, name: &str) -> Option<&'a Field> {
    let Field::Table(capabilities) = field(properties, "capabilities")? else { return None };
    field(capabilities, name)
}

fn field<'a>(table: &'a Table, name: &str) -> Option<&'a Field> {
    table.iter().find(|(key, _)| key == name.as_bytes()).map(|(_, value)| value)
}

/// Takes the client up to its login, and leaves that unanswered.
fn take_login(session: &mut Session) {
    session.expect_protocol_header();
    session.send_start();
    let start_ok = session.expect_method();
    assert!(matches!(start_ok.call, Call::StartOk { .. }), "{start_ok:?}");
}

#[test]
fn a_login_that_is_refused_in_words_is_status_2_however_long_the_broker_takes() {
    let running = [0, 700, 5000].map(|millis| {
        let broker = ScriptedBroker::start(move |session, _| {
            take_login(session);
            // A slow directory behind the broker is the case itself.
            thread::sleep(Duration::from_millis(millis));
            session.close_connection(403, REFUSED);
            session.read_until_closed();
        });
        let url = broker.url();
        let producer = Command::producer(&["--url", &url, "x"]).start();
        let worker = Command::worker(&["--url", &url, "--threads", "1"]).start();
        (broker, [producer, worker])
    });

    for (_broker, commands) in running {
        for command in commands {
            let output = command.wait(SOON);
            output.assert_code(2);
            assert!(output.stderr().contains("refused the login of user 'guest'"), "{output:?}");
        }
    }
}

#[test]
fn a_wrong_password_is_status_2_also_where_the_timeout_is_short() {
    let url = format!("amqp://guest:s3cretword@{}", shared_broker().address());
    let producer = ["--url", &url, "--timeout", "2s", "x"];

    // A machine that is busy needs those two seconds to connect.
    let output = Command::producer(&producer).run(SOON);

    output.assert_code(2);
    assert!(output.stderr().contains("refused the login of user 'guest'"), "{output:?}");
    assert!(!output.stderr().contains("s3cretword"), "{output:?}");
}

#[test]
fn a_cut_at_the_login_is_no_refusal_however_late_it_comes() {
    let running = [Duration::ZERO, HELD_BACK].map(|after| {
        let broker = ScriptedBroker::start(move |session, number| {
            if number > 0 {
                return session.serve();
            }
            take_login(session);
            // What was once taken for a refusal: the time that RabbitMQ holds a cut back.
            thread::sleep(after);
            session.hang_up();
        });
        let running = Command::worker(&["--url", &broker.url(), "--threads", "1"]).start();
        (broker, running)
    });

    for (_broker, running) in running {
        running.wait_for_stderr_line(|line| line.contains("cut during the login"), SOON);
        running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
        running.signal("INT");
        running.wait(SOON).assert_code(0);
    }
}

#[test]
fn a_refusal_of_the_virtual_host_is_not_one_of_the_login() {
    let broker = ScriptedBroker::start(|session, _| {
        session.refuse_open(403, "ACCESS_REFUSED - access to vhost 'x' refused");
        session.read_until_closed();
    });

    let output = Command::producer(&["--url", &broker.url(), "x"]).run(SOON);

    output.assert_code(2);
    let said = output.stderr();
    assert!(said.contains("refused the virtual host"), "{said}");
    assert!(!said.contains("refused the login"), "{said}");
}
