//! Addresses and logins: bad, missing and second ones; passwords are never printed.

use std::time::{Duration, Instant};

use super::{SOON, errors};
use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::scripted::ScriptedBroker;

#[test]
fn an_empty_url_in_the_environment_is_none_and_an_empty_option_is_wrong() {
    let unset = Command::queuectl(&["check"]).run(SOON);
    let empty = Command::queuectl(&["check"]).env("AMQP_URL", "").run(SOON);
    let option = Command::queuectl(&["--url", "", "check"]).run(SOON);

    // Whatever is at the default address.
    assert_eq!((empty.code, empty.stdout()), (unset.code, unset.stdout()));
    assert!(!empty.stderr().contains("URL"), "{}", empty.stderr());
    option.assert_code(2);
}

#[test]
fn nobody_listening_is_exit_69_after_the_timeout() {
    let begun = Instant::now();
    let output =
        Command::producer(&["--url", "amqp://127.0.0.1:1", "--timeout", "1s", "x"]).run(SOON);

    output.assert_code(69);
    assert_eq!(errors(&output).len(), 1, "{}", output.stderr());
    assert!(errors(&output)[0].contains("127.0.0.1:1"), "{}", output.stderr());
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn the_second_of_two_urls_is_used_when_the_first_is_down() {
    let queue = unique_queue("failover");
    let urls = format!("amqp://127.0.0.1:1,{}", shared_broker().url());

    let producer = ["--url", &urls, "--url-order", "given", "--queue", &queue, "x"];
    let output = Command::producer(&producer).run(SOON);

    output.assert_code(0);
    assert_eq!(shared_broker().client().count(&queue), 1);
}

#[test]
fn row_58_bad_addresses_and_logins_exit_2_in_one_line_without_the_password() {
    let address = shared_broker().address();
    let table = [
        ("http://u:s3cretword@host".to_owned(), "scheme"),
        ("amqp:u:s3cretword@host".to_owned(), "URL"),
        ("amqp:/u:s3cretword@host".to_owned(), "// is missing after the scheme"),
        ("amqp:///u:s3cretword@host".to_owned(), "write two slashes after the scheme, not three"),
        ("amqp://u:s3cretword@host:99999".to_owned(), "port"),
        ("amqp://u:s3cretword@host/a/b".to_owned(), "virtual host"),
        ("amqp://u:s3cretword@host?frame_max=s3cretword".to_owned(), "a parameter is unknown"),
        (format!("amqp://nobody:s3cretword@{address}"), "refused the login of user 'nobody'"),
        (format!("amqp://guest:s3cretword@{address}"), "refused the login of user 'guest'"),
        (format!("amqp://u:s3cretword@{address}?auth_mechanism=external"), "no login by EXTERNAL"),
    ];
    let levels = ["error", "debug", "trace", "amiquip=trace", "s3cretword=,=x"];
    let cases = table.iter().flat_map(|(url, wanted)| levels.map(|level| (url, wanted, level)));

    // All at once: the broker takes three seconds to refuse a login.
    let running = cases.map(|(url, wanted, level)| {
        let command = Command::producer(&["--url", url, "x"]).env("RUST_LOG", level);
        (url, wanted, level, command.start())
    });

    for (url, wanted, level, running) in running.collect::<Vec<_>>() {
        let output = running.wait(SOON);
        output.assert_code(2);
        let said = errors(&output);
        assert_eq!(said.len(), 1, "{url} at {level}: {}", output.stderr());
        assert!(said[0].contains(wanted), "{url}: {said:?}");
        // What is in RUST_LOG itself is quoted where it cannot be read.
        let logged =
            output.stderr().lines().filter(|line| !line.contains("warning: ")).collect::<String>();
        assert!(!logged.contains("s3cretword"), "{url} at {level}: {logged}");
        assert!(!output.stdout().contains("s3cretword"));
    }
}

#[test]
fn row_58_an_unknown_virtual_host_is_exit_2_in_one_line() {
    let url = format!("amqp://guest:guest@{}/no-such-vhost", shared_broker().address());

    let output = Command::producer(&["--url", &url, "x"]).run(SOON);

    output.assert_code(2);
    assert_eq!(errors(&output).len(), 1, "{}", output.stderr());
    assert!(errors(&output)[0].contains("virtual host 'no-such-vhost'"), "{}", output.stderr());
}

#[test]
fn no_password_shows_at_any_level_when_all_goes_well_or_the_connection_is_lost() {
    let broker = ScriptedBroker::start(|session, number| {
        session.handshake();
        let publish = session.read_publish();
        if number == 0 {
            session.close_connection(320, "CONNECTION_FORCED - going");
            session.read_until_closed();
        } else {
            session.ack(publish.channel, 1);
            assert_eq!(session.answer_rpcs(), None);
        }
    });
    let url = format!("amqp://me:s3cretword@{}", broker.address());

    let output = Command::producer(&["--url", &url, "x"]).env("RUST_LOG", "trace").run(SOON);

    output.assert_code(0);
    assert!(output.stderr().contains("320"), "{}", output.stderr());
    assert!(!output.stderr().contains("s3cretword"), "{}", output.stderr());
    broker.finish(SOON);
}

#[test]
fn no_password_shows_when_a_url_is_in_a_wrong_place() {
    let url = "amqp://me:s3cret@word@host,amqp://me:s3cretword@host";
    let commands = [
        Command::worker(&[url]),
        Command::worker(&["--prefetch", url]),
        Command::producer(&["--window", url]),
        Command::queuectl(&[url]),
        Command::queuectl(&["dead", "list", "--limit", url]),
    ];
    for command in commands {
        let output = command.run(SOON);
        output.assert_code(2);
        let said = output.stderr();
        assert!(said.contains("amqp://…@host,amqp://…@host"), "{said}");
        assert!(!said.contains("s3cret") && !said.contains("word"), "{said}");
        assert_eq!(output.stdout(), "");
    }
}
