//! Owns whether dead letters can be looked at without harm: a look takes them and gives them back,
//! and a quorum queue drops what was given back more often than its delivery limit allows.

use log::warn;

use crate::admin::Inspector;
use crate::model::error::Error;
use crate::model::queue::{Queue, Target};
use crate::topology::declare::Comparison;
use crate::topology::default_type::LIMITED_SINCE;
use crate::topology::queue_type::{Kind, Limit};

/// From this version on, giving back does not count
/// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>).
const UNCOUNTED_SINCE: (u32, u32) = (4, 3);

/// That of a quorum queue that was declared without one, from [`LIMITED_SINCE`] on.
const USUAL_LIMIT: &str = "20";

/// How letters that were looked at are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Return {
    /// By the close of their channel: a moment, however many there are.
    Closing,
    /// By one nack for all: a classic queue takes long if they came to many consumers. From
    /// RabbitMQ 4.3 on a quorum queue counts the other way, but not this.
    Nacking,
}

/// Refuses dead letters that looks would destroy or cannot take, and tells how the others are given back. Our own
/// queue of them has no limit; a limit that a policy sets is beyond what a client can see.
pub(crate) fn refuse_harmful_look(
    inspector: &mut Inspector,
    queue: &Queue,
) -> Result<Return, Error> {
    let version = inspector.broker_version()?.unwrap_or_default();
    if inspector.count(Target::Dead)?.is_none() {
        return Ok(Return::Closing);
    }
    let dead = queue.name_of(Target::Dead);
    let kind = kind_of(inspector, queue, version)?;
    if let Some(objection) = kind.objection() {
        return Err(Error::setting("dead letters", format!("'{dead}': {objection}")));
    }
    let limit = match kind {
        Kind::Quorum(Limit::Usual) if version >= LIMITED_SINCE => USUAL_LIMIT.to_string(),
        Kind::Quorum(Limit::Declared(limit)) => limit,
        Kind::Quorum(_) | Kind::Classic | Kind::Stream => return Ok(Return::Closing),
        Kind::Unknown(_) if version >= UNCOUNTED_SINCE => return Ok(Return::Nacking),
        Kind::Unknown(why) => {
            warn!(
                "cannot tell whether '{dead}' has a delivery limit ({why}); if it has one, each \
                 look counts"
            );
            return Ok(Return::Closing);
        }
    };
    if version >= UNCOUNTED_SINCE { Ok(Return::Nacking) } else { Err(harmful(&dead, &limit)) }
}

fn harmful(dead: &str, limit: &str) -> Error {
    let reason = format!(
        "'{dead}' is a quorum queue with a delivery limit of {limit}; each look counts as a \
         delivery, and what had more is dropped for good. Replay letters without a look: all, or \
         a number of them, not chosen ones"
    );
    Error::setting("dead letters", reason)
}

fn kind_of(inspector: &mut Inspector, queue: &Queue, version: (u32, u32)) -> Result<Kind, Error> {
    for plan in queue.declarations(Target::Dead) {
        // What we declare without a type can be a quorum queue, too, by the virtual host's default.
        let is_telling = plan.is_quorum() || version < LIMITED_SINCE;
        if is_telling && inspector.compare(&plan)? == Comparison::Same {
            let replicated = plan.is_quorum();
            return Ok(if replicated { Kind::Quorum(Limit::Unlimited) } else { Kind::Classic });
        }
    }
    Kind::of(&queue.name_of(Target::Dead), &mut |plan| inspector.compare(plan))
}
