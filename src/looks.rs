//! Owns whether dead letters can be looked at without harm: a look takes them and gives them back,
//! and a quorum queue drops what was given back more often than its delivery limit allows.

use log::warn;

use crate::error::Error;
use crate::inspect::{Comparison, Inspector};
use crate::kind::{Kind, Limit};
use crate::queue::{Queue, Target};
use crate::settling::LIMITED_SINCE;

/// From this version on, giving back does not count
/// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>).
const UNCOUNTED_SINCE: (u32, u32) = (4, 3);

/// That of a quorum queue that was declared without one, from [`LIMITED_SINCE`] on.
const USUAL_LIMIT: &str = "20";

/// Refuses dead letters that looks would destroy. Our own queue of them has no limit; a limit
/// that a policy sets is beyond what a client can see.
pub(crate) fn refuse_harmful_look(inspector: &mut Inspector, queue: &Queue) -> Result<(), Error> {
    let version = inspector.broker_version()?.unwrap_or_default();
    if version >= UNCOUNTED_SINCE || inspector.count(Target::Dead)?.is_none() {
        return Ok(());
    }
    let dead = queue.name_of(Target::Dead);
    match kind_of(inspector, queue, version)? {
        Kind::Quorum(Limit::Usual) if version >= LIMITED_SINCE => Err(harmful(&dead, USUAL_LIMIT)),
        Kind::Quorum(Limit::Declared(limit)) => Err(harmful(&dead, &limit)),
        Kind::Quorum(_) | Kind::Classic | Kind::Stream => Ok(()),
        Kind::Unknown(why) => {
            warn!(
                "cannot tell whether '{dead}' has a delivery limit ({why}); if it has one, each \
                 look counts"
            );
            Ok(())
        }
    }
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
    for plan in queue.plans(Target::Dead) {
        // What we declare without a type can be a quorum queue, too, by the virtual host's default.
        let is_telling = plan.is_replicated() || version < LIMITED_SINCE;
        if is_telling && inspector.compare(&plan)? == Comparison::Same {
            let replicated = plan.is_replicated();
            return Ok(if replicated { Kind::Quorum(Limit::Unlimited) } else { Kind::Classic });
        }
    }
    Kind::of(inspector, &queue.name_of(Target::Dead))
}
