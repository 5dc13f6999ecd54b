//! What a program asks the broker, and waits for, to do one task: each answer takes a round trip.

use std::time::Duration;

use crate::support::command::Command;
use crate::support::scripted::ScriptedBroker;
use crate::support::wire::Call;

const SOON: Duration = Duration::from_secs(60);

/// What a client waits for the answer to; `None` if it does not wait.
fn awaited(call: &Call) -> Option<&'static str> {
    match call {
        Call::ChannelOpen => Some("open"),
        Call::QueueDeclare { passive: true, .. } => Some("find"),
        Call::QueueDeclare { .. } => Some("declare"),
        Call::ConfirmSelect { no_wait: true } | Call::ChannelCloseOk => None,
        Call::Publish(_) => Some("publish"),
        Call::ConnectionClose { .. } => Some("close"),
        _ => Some("something else"),
    }
}

#[test]
fn a_producer_of_one_task_waits_for_no_answer_that_it_does_not_need() {
    let broker = ScriptedBroker::start(|session, _| {
        session.handshake();
        let mut asked = Vec::new();
        while let Some(method) = session.next_method() {
            asked.extend(awaited(&method.call));
            let closes = matches!(method.call, Call::ConnectionClose { .. });
            session.serve_method(method);
            if closes {
                session.report(asked.join(" "));
                return;
            }
        }
    });

    let output = Command::producer(&["--url", &broker.url(), "--queue", "q", "x"]).run(SOON);

    output.assert_code(0);
    broker.wait("open find declare declare publish close", SOON);
}
