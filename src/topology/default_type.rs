//! The default queue type of a virtual host, which queues get that are declared without a type
//! (<https://www.rabbitmq.com/docs/vhosts#default-queue-type>).

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use log::{info, warn};

use crate::amqp::close_reason::CloseReason;
use crate::amqp::reply_text::refusing_queue_type;
use crate::model::queue::{Argument, Durability, Queue, QueueDeclaration, Target};
use crate::topology::admin_channel::{AdminChannel, Channels};
use crate::topology::declare::{Comparison, compare};
use crate::topology::queue_type::Kind;

/// The type that a virtual host gives to a queue that is declared without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultType {
    Quorum,
    Stream,
    /// Classic, or not known.
    Other,
}

/// Asks for the default type of the virtual host, and creates no queue.
///
/// It declares `queue`, which does not exist, with two arguments: each type of queue refuses at
/// least one of them, and names itself (measured on RabbitMQ 3.10.8, 4.0.5 and 4.3.6).
pub(crate) fn ask_default_type(
    channel: &mut AdminChannel,
    channels: &dyn Channels,
    queue: &Queue,
) -> Result<DefaultType, CloseReason> {
    let arguments = vec![
        ("x-max-age".into(), Argument::Text("1h".into())),
        ("x-max-priority".into(), Argument::Number(1)),
    ];
    let name = queue.name().into();
    let declaration = QueueDeclaration { name, durability: Durability::Durable, arguments };
    Ok(match compare(channel, channels, &declaration)? {
        Comparison::Refused(text) => read_default_type(&text),
        Comparison::Same | Comparison::Differs { .. } => DefaultType::Other,
    })
}

fn read_default_type(text: &str) -> DefaultType {
    match refusing_queue_type(text) {
        Some("rabbit_quorum_queue") => DefaultType::Quorum,
        Some("rabbit_stream_queue") => DefaultType::Stream,
        _ => DefaultType::Other,
    }
}

/// The declaration to compare with a queue that we have created because the default type is quorum.
/// Without its type, it is the same only in such a virtual host.
pub(crate) fn as_created_here(queue: &Queue) -> QueueDeclaration {
    queue.as_quorum().best_declaration(Target::Main).without_type()
}

/// Logs it once for each queue, not for each connection.
pub(crate) fn log_once_that_it_is_a_quorum_queue(
    name: &str,
    kind: &Kind,
    version: Option<(u32, u32)>,
) {
    match kind.drops_after(version) {
        Some(_) => warn_once_if_it_drops(name, kind, version),
        None if is_first(name) => {
            info!("queue '{name}' is a quorum queue, the virtual host's default type");
        }
        None => {}
    }
}

/// Warns once for each queue whose tasks the broker drops, not for each connection.
pub(crate) fn warn_once_if_it_drops(name: &str, kind: &Kind, version: Option<(u32, u32)>) {
    if let Some(limit) = kind.drops_after(version).filter(|_| is_first(name)) {
        warn!("{}", dropping_quorum_queue(name, limit));
    }
}

/// Whether this is the first time that this queue is named here.
fn is_first(name: &str) -> bool {
    static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    LOGGED.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into())
}

/// What a quorum queue without a dead-letter route does, and the remedy.
pub(crate) fn dropping_quorum_queue(name: &str, limit: &str) -> String {
    let pattern: String = name.chars().map(literal).collect();
    format!(
        "queue '{name}' is a quorum queue, and was declared without a dead-letter route: RabbitMQ \
         drops a task for good after {limit} deliveries that were not acked. Give it the route by a policy: rabbitmqctl set_policy '{name}' '^{pattern}$' \
         '{{\"dead-letter-exchange\":\"\",\"dead-letter-routing-key\":\"{name}.dead\",\
         \"dead-letter-strategy\":\"at-least-once\",\"overflow\":\"reject-publish\"}}' --apply-to \
         queues; then use it with --queue-type quorum --no-declare"
    )
}

/// A character of a name as it stands in a pattern.
fn literal(character: char) -> String {
    match character.is_ascii_punctuation() && !"_-".contains(character) {
        true => format!("\\{character}"),
        false => character.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_type_is_the_one_that_refuses() {
        let refusal = |argument: &str, kind: &str| {
            format!(
                "PRECONDITION_FAILED - invalid arg '{argument}' for queue 'q' in vhost '/' of \
                 queue type {kind}"
            )
        };
        let cases = [
            ("x-max-age", "rabbit_classic_queue", DefaultType::Other),
            ("x-max-age", "rabbit_quorum_queue", DefaultType::Quorum),
            ("x-max-priority", "rabbit_stream_queue", DefaultType::Stream),
        ];
        for (argument, kind, expected) in cases {
            assert_eq!(read_default_type(&refusal(argument, kind)), expected);
        }
        assert_eq!(read_default_type("PRECONDITION_FAILED - something"), DefaultType::Other);
    }

    #[test]
    fn the_remedy_of_a_quorum_queue_matches_its_name_only() {
        let text = dropping_quorum_queue("a.b*", "20");
        assert!(text.contains("'^a\\.b\\*$'"), "{text}");
        assert!(text.contains("\"dead-letter-routing-key\":\"a.b*.dead\""), "{text}");
    }
}
