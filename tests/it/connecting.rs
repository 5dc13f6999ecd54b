//! Connecting: silent, slow and full brokers, what is logged about them, and which is tried next.

use std::net::TcpListener;
use std::time::Duration;

use crossbeam_channel::bounded;

use crate::support::broker::shared_broker;
use crate::support::client::unique_queue;
use crate::support::command::Command;
use crate::support::scripted::{ScriptedBroker, Tuning};
use crate::support::wire::Call;

const SOON: Duration = Duration::from_secs(60);

/// A host that takes connections, as far as the system does that alone, and never says a word.
struct Silent(TcpListener);

impl Silent {
    fn start() -> Silent {
        Silent(TcpListener::bind("127.0.0.1:0").expect("a port"))
    }

    fn address(&self) -> String {
        self.0.local_addr().expect("its address").to_string()
    }

    fn url(&self) -> String {
        format!("amqp://{}", self.address())
    }
}

#[test]
fn a_producer_reaches_the_healthy_host_behind_three_silent_ones_in_time() {
    let silent = [Silent::start(), Silent::start(), Silent::start()];
    let queue = unique_queue("behind");
    let urls = silent.iter().map(Silent::url).chain([shared_broker().url().to_owned()]);
    let urls = urls.collect::<Vec<_>>().join(",");

    let producer = ["--url", &urls, "--url-order", "given", "--queue", &queue, "hello"];
    let output = Command::producer(&producer).run(SOON);

    output.assert_code(0);
    let stderr = output.stderr();
    for silent in silent {
        let told = format!("skipped {}: no answer within", silent.address());
        assert!(stderr.contains(&told), "{told} in {stderr}");
    }
    assert_eq!(shared_broker().client().count(&queue), 1);
}

#[test]
fn of_silent_hosts_each_that_was_tried_is_named_with_its_own_cause() {
    let silent = [Silent::start(), Silent::start()];
    let [first, second] = [0, 1].map(|place: usize| silent[place].address());
    let urls = format!("{},{}", silent[0].url(), silent[1].url());

    let producer = ["--url", &urls, "--url-order", "given", "--timeout", "6s", "hello"];
    let output = Command::producer(&producer).run(SOON);

    output.assert_code(69);
    let stderr = output.stderr();
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.contains(&format!("no broker reached ({first}: no answer within")), "{stderr}");
    assert!(last.contains(&format!("{second}: no answer in time")), "{stderr}");
}

#[test]
fn a_host_that_does_not_answer_is_named_while_it_is_waited_for_and_when_it_is_passed_over() {
    let silent = Silent::start();
    let queue = unique_queue("silent");
    let urls = format!("{},{}", silent.url(), shared_broker().url());

    let address = silent.address();
    let steps = [
        format!("connecting to {address} takes longer than 2s"),
        format!("skipped {address}: no answer within 5s"),
        "consuming from".to_owned(),
    ];
    let worker = ["--url", &urls, "--url-order", "given", "--queue", &queue];
    let running = Command::worker(&worker).start();
    // A slow machine may tell of other waits between them.
    for step in &steps {
        running.wait_for_stderr_line(|line| line.contains(step), SOON);
    }
    running.signal("INT");

    running.wait(SOON).assert_code(0);
}

/// Holds back the answer to one method until the worker has said `what` takes long.
fn held_back(method: impl Fn(&Call) -> bool + Send + Sync + 'static, what: &str) {
    let (tell, told) = bounded(1);
    let broker = ScriptedBroker::start(move |session, _| {
        session.handshake();
        while let Some(came) = session.next_method() {
            if method(&came.call) {
                let _ = told.recv_timeout(SOON);
            }
            session.answer(&came);
        }
    });

    let running = Command::worker(&["--url", &broker.url(), "--threads", "1"]).start();
    running.wait_for_stderr_line(|line| line.contains(what), SOON);
    tell.send(()).expect("the script waits");
    running.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
    running.signal("INT");
    let _ = running.wait(SOON);
}

#[test]
fn a_channel_that_is_slow_to_open_is_reported() {
    let what = "setting up the channels at 127.0.0.1";
    held_back(|call| matches!(call, Call::ChannelOpen), what);
}

#[test]
fn a_consumer_that_is_slow_to_be_let_in_is_reported() {
    let what = "0 of 1 threads consume at 127.0.0.1";
    held_back(|call| matches!(call, Call::Consume { .. }), what);
}

#[test]
fn a_limit_on_connections_that_is_reached_is_waited_out() {
    let broker = ScriptedBroker::start(|session, number| {
        if number == 0 {
            let text = "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection \
                        limit (1) is reached";
            session.refuse_open(530, text);
            session.read_until_closed();
        } else {
            session.handshake();
            let publish = session.read_publish();
            session.ack(publish.channel, 1);
            let _ = session.answer_rpcs();
        }
    });

    let output = Command::producer(&["--url", &broker.url(), "x"]).run(SOON);

    output.assert_code(0);
    assert!(output.stderr().contains("connection limit (1) is reached"), "{}", output.stderr());
}

#[test]
fn a_broker_that_proposes_no_heartbeat_gets_ours_and_is_noticed_when_it_falls_silent() {
    for (asked, agreed) in [("", 10), ("?heartbeat=1", 1), ("?heartbeat=0", 0)] {
        let broker = ScriptedBroker::start(|session, _| {
            let client = session.handshake_with(Tuning { heartbeat: 0, ..Tuning::default() });
            session.report(format!("agreed upon {}", client.heartbeat));
            let _ = session.answer_rpcs();
        });
        let url = format!("amqp://{}/{asked}", broker.address());

        let running = Command::worker(&["--url", &url, "--threads", "1"]).start();

        broker.wait(&format!("agreed upon {agreed}"), SOON);
        if agreed == 1 {
            running.wait_for_stderr_line(|line| line.contains("missed two heartbeats"), SOON);
        }
    }
}
