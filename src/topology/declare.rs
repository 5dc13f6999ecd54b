//! Declares queues, and compares existing queues with declarations. No other code does.

use std::fmt;

use log::info;

use crate::amqp::close_reason::{CloseReason, PRECONDITION_FAILED};
use crate::amqp::reply_text::{is_invalid_argument, is_mismatch, read_mismatch};
use crate::model::queue::{
    Argument, Arguments, Durability, Queue, QueueDeclaration, QueueType, Target,
};
use crate::topology::admin_channel::{AdminChannel, Channels};

/// What came of declaring a queue that can be used now.
pub(crate) enum Declared {
    /// The broker has it by this declaration, and refused the better ones.
    By { declaration: QueueDeclaration, refusals: Vec<CloseReason> },
    /// The broker refused the declaration, but the queue exists.
    UsedAsItIs { refusal: CloseReason },
}

/// Why a queue cannot be declared.
pub(crate) struct NotDeclared {
    /// Why the best declaration was refused; or why the connection is lost.
    pub(crate) cause: CloseReason,
    /// Why the other declarations were refused.
    others: Vec<CloseReason>,
}

/// What the broker answers to a declaration of a queue that exists.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Same,
    /// One argument that differs, and its value in the existing queue.
    Differs {
        argument: String,
        there: String,
    },
    /// Something else, in the broker's words.
    Refused(String),
}

/// The argument for how long a queue stays unused, in milliseconds, from 1
/// (<https://www.rabbitmq.com/docs/ttl#queue-ttl>).
const EXPIRES: &str = "x-expires";

/// Declares the queue of `target` in the best way that the broker takes. A dead-letter queue that
/// exists is used as it is: any queue can hold dead letters.
pub(crate) fn declare(
    channel: &mut AdminChannel,
    channels: &dyn Channels,
    queue: &Queue,
    target: Target,
) -> Result<Declared, NotDeclared> {
    let mut refusals = Vec::new();
    for declaration in queue.declarations(target) {
        match channel.ask(channels, |channel| channel.declare(&declaration)) {
            Ok(()) => return Ok(Declared::By { declaration, refusals }),
            Err(refusal) if refusal.is_channel_error() => refusals.push(refusal),
            Err(lost) => return Err(lost.into()),
        }
    }
    let best = refusals.remove(0);
    if target == Target::Dead && exists(channel, channels, &queue.name_of(target))? {
        return Ok(Declared::UsedAsItIs { refusal: best });
    }
    Err(NotDeclared { cause: best, others: refusals })
}

/// Whether a queue exists that this user may use.
fn exists(
    channel: &mut AdminChannel,
    channels: &dyn Channels,
    name: &str,
) -> Result<bool, CloseReason> {
    match channel.count(channels, name) {
        Ok(count) => Ok(count.is_some()),
        Err(refusal) if refusal.is_channel_error() => Ok(false),
        Err(lost) => Err(lost),
    }
}

impl Declared {
    /// Logs that the queue of this name is used as it is, if it is.
    pub(crate) fn log_use(&self, name: &str) {
        if let Declared::UsedAsItIs { refusal } = self {
            info!("'{name}' cannot be declared: {refusal}; the existing queue is used as it is");
        }
    }
}

impl From<CloseReason> for NotDeclared {
    fn from(cause: CloseReason) -> NotDeclared {
        NotDeclared { cause, others: Vec::new() }
    }
}

impl From<NotDeclared> for CloseReason {
    fn from(not_declared: NotDeclared) -> CloseReason {
        not_declared.cause
    }
}

impl fmt::Display for NotDeclared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)?;
        self.others.iter().try_for_each(|other| write!(f, "; {other}"))
    }
}

/// Checks whether this user may declare a queue, and creates none: the declaration has an expiry of
/// 0. RabbitMQ checks the permission first. Then it refuses the expiry, or finds that the queue
/// exists with other arguments.
pub(crate) fn check_may_declare(
    channel: &mut AdminChannel,
    channels: &dyn Channels,
    name: &str,
    mut arguments: Arguments,
) -> Result<(), CloseReason> {
    arguments.push((EXPIRES.into(), Argument::Number(0)));
    let declaration =
        QueueDeclaration { name: name.into(), durability: Durability::Durable, arguments };
    // RabbitMQ refuses a stream before it reads the expiry.
    let declaration = declaration.with_type(QueueType::Classic);
    match channel.ask(channels, |channel| channel.declare(&declaration)) {
        Err(CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text })
            if is_invalid_argument(&text, EXPIRES) || is_mismatch(&text) =>
        {
            Ok(())
        }
        declared => declared,
    }
}

/// Compares a queue that exists with a declaration.
pub(crate) fn compare(
    channel: &mut AdminChannel,
    channels: &dyn Channels,
    declaration: &QueueDeclaration,
) -> Result<Comparison, CloseReason> {
    match channel.ask(channels, |channel| channel.declare(declaration)) {
        Err(CloseReason::ChannelClosed { code, text }) => Ok(read_comparison(code, text)),
        declared => declared.map(|()| Comparison::Same),
    }
}

fn read_comparison(code: u16, text: String) -> Comparison {
    match read_mismatch(&text).filter(|_| code == PRECONDITION_FAILED) {
        Some((argument, _, there)) => {
            Comparison::Differs { argument: argument.into(), there: there.into() }
        }
        None => Comparison::Refused(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(code: u16, text: &str) -> CloseReason {
        CloseReason::ChannelClosed { code, text: text.into() }
    }

    #[test]
    fn all_refusals_are_shown_and_the_best_way_s_refusal_is_the_cause() {
        let cause = closed(406, "no quorum queues");
        let not_declared = NotDeclared { cause, others: vec![closed(403, "no classic queues")] };
        let shown = not_declared.to_string();
        assert!(shown.contains("no quorum queues; "), "{shown}");
        assert!(shown.ends_with("no classic queues"), "{shown}");
        assert_eq!(CloseReason::from(not_declared), closed(406, "no quorum queues"));
    }

    #[test]
    fn only_an_argument_that_differs_is_a_difference() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost \
                    '/': received none but current is the value '7' of type 'signedint'";
        let differs = Comparison::Differs { argument: "x-max-length".into(), there: "7".into() };
        assert_eq!(read_comparison(406, text.into()), differs);
        assert_eq!(read_comparison(405, text.into()), Comparison::Refused(text.into()));
        assert_eq!(read_comparison(406, "other".into()), Comparison::Refused("other".into()));
    }
}
