//! Decides whether dead letters can be read without harm: a peek takes them and requeues them, and a
//! quorum queue drops what was requeued more often than its delivery limit allows.

use log::warn;

use crate::admin::Inspector;
use crate::model::error::Error;
use crate::model::queue::{Queue, Target};
use crate::topology::declare::Comparison;
use crate::topology::queue_type::{Kind, LIMITED_SINCE, Limit};

/// From this version on, a requeue does not count
/// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>).
const UNCOUNTED_SINCE: (u32, u32) = (4, 3);

/// How letters that were read are requeued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequeueBy {
    /// The close of their channel: fast, however many there are.
    ChannelClose,
    /// One nack for all: slow on a classic queue if they came to many consumers. From RabbitMQ 4.3
    /// on, a quorum queue counts a requeue by close, and not one by nack.
    Nack,
}

/// Refuses dead letters that a peek would destroy or cannot take, and returns how to requeue others.
/// A dead-letter queue of ours has no limit; a client cannot see a limit that a policy sets.
pub(crate) fn refuse_harmful_peek(
    inspector: &mut Inspector,
    queue: &Queue,
) -> Result<RequeueBy, Error> {
    let version = inspector.broker_version()?.unwrap_or_default();
    if inspector.count(Target::Dead)?.is_none() {
        return Ok(RequeueBy::ChannelClose);
    }
    let dead = queue.name_of(Target::Dead);
    let kind = kind_of(inspector, queue, version)?;
    if let Some(objection) = kind.objection() {
        return Err(Error::setting("dead letters", format!("'{dead}': {objection}")));
    }
    let is_uncounted = version >= UNCOUNTED_SINCE;
    match (&kind, kind.delivery_limit(Some(version))) {
        (_, Some(_)) | (Kind::Unknown(_), None) if is_uncounted => Ok(RequeueBy::Nack),
        (_, Some(limit)) => Err(harmful(&dead, limit)),
        (Kind::Unknown(why), None) => {
            warn!(
                "cannot find out whether '{dead}' has a delivery limit ({why}); if it has one, each \
                 read counts as a delivery"
            );
            Ok(RequeueBy::ChannelClose)
        }
        (_, None) => Ok(RequeueBy::ChannelClose),
    }
}

fn harmful(dead: &str, limit: &str) -> Error {
    let reason = format!(
        "'{dead}' is a quorum queue with a delivery limit of {limit}; each read counts as a delivery, \
         and the broker drops a letter that exceeds the limit. Replay or purge letters without \
         reading them: all, or the first N, not by id, reason or age"
    );
    Error::setting("dead letters", reason)
}

fn kind_of(inspector: &mut Inspector, queue: &Queue, version: (u32, u32)) -> Result<Kind, Error> {
    for plan in queue.declarations(Target::Dead) {
        // What we declare without a type can be a quorum queue: the virtual host's default type.
        let is_conclusive = plan.is_quorum() || version < LIMITED_SINCE;
        if is_conclusive && inspector.compare(&plan)? == Comparison::Same {
            let is_quorum = plan.is_quorum();
            let quorum = Kind::Quorum { limit: Limit::Unlimited, has_route: false };
            return Ok(if is_quorum { quorum } else { Kind::Classic });
        }
    }
    Kind::of(&queue.name_of(Target::Dead), &mut |plan| inspector.compare(plan))
}
