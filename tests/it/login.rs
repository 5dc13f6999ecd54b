//! The login: refused in the broker's words, or cut without any, and what becomes of each.

use std::thread;
use std::time::Duration;

use crate::support::broker::shared_broker;
use crate::support::command::Command;
use crate::support::scripted::{ScriptedBroker, Session};
use crate::support::wire::{Call, Field, Table};

const SOON: Duration = Duration::from_secs(60);

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
