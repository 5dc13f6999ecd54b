//! Owns the list of a queue's delays, which is a queue, too: what is entered in it, and how it is
//! read, by one reader at a time. AMQP lists no queues, and a drain has to know them all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use log::warn;

use crate::cause::{Cause, PRECONDITION_FAILED, RESOURCE_LOCKED};
use crate::channel::{Channel, Settlement, Unsettled};
use crate::queue::{Plan, Queue, unused_after};
use crate::task::Task;

/// What a look at the list brought.
pub(crate) enum Listed {
    Delays(BTreeSet<Duration>),
    /// Somebody else reads it just now: readers take the entries out and give them back, so there
    /// is one at a time. The channel is gone.
    Busy,
    /// A queue of that name is there, and it is somebody else's. The channel is gone.
    Unusable,
}

/// An entry for the list.
pub(crate) struct Entry {
    pub(crate) list: String,
    pub(crate) task: Task,
}

/// The content type of the entries. What has another one, or none, is not ours to ack, whatever
/// is in it.
const LIST_ENTRY: &str = "application/vnd.rabbit-work.delay";

/// An entry for `delay` in the list that is declared by this plan.
pub(crate) fn entry_for(delay: Duration, plan: Plan) -> Entry {
    let task = Task::new(delay.as_millis().to_string()).with_content_type(LIST_ENTRY);
    Entry { list: plan.name, task: task.stamped(SystemTime::now()) }
}

/// Reads the list, which must be there. Strikes out what is entered twice, and of the `absent`,
/// whose queues were looked for in vain, those that were entered last so long ago that the queue
/// has expired since. After an error [`unlock`] it.
pub(crate) fn read_list(
    channel: &Channel,
    queue: &Queue,
    absent: &BTreeSet<Duration>,
) -> Result<Listed, Cause> {
    let plan = queue.delays_plan();
    // Before anything is taken: of a queue with a delivery limit, or of a large one, that would
    // be too much already.
    match channel.declare_as(&plan) {
        Err(Cause::ChannelClosed { code: PRECONDITION_FAILED | RESOURCE_LOCKED, text }) => {
            say_once_that_it_is_unusable(queue, &text);
            return Ok(Listed::Unusable);
        }
        declared => declared?,
    }
    match channel.declare_exclusive(&lock_of(queue)) {
        Err(Cause::ChannelClosed { code: RESOURCE_LOCKED, .. }) => return Ok(Listed::Busy),
        declared => declared?,
    }
    let delays = read_entries(channel, &plan.name, absent)?;
    unlock(channel, queue)?;
    Ok(Listed::Delays(delays))
}

/// Lets others read the list. The lock is the connection's, and stays when a channel goes.
pub(crate) fn unlock(channel: &Channel, queue: &Queue) -> Result<(), Cause> {
    channel.delete(&lock_of(queue))
}

/// Once for each list, not for each connection that finds it so.
pub(crate) fn say_once_that_it_is_unusable(queue: &Queue, reason: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let list = queue.delays_plan().name;
    let is_new = SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(list.clone());
    if is_new {
        warn!(
            "'{list}' cannot be used as the list of delays ({reason}): tasks with other than the \
             usual delays are not counted by a status and not waited for by a drain"
        );
    }
}

/// The queue that whoever reads the list holds meanwhile.
fn lock_of(queue: &Queue) -> String {
    format!("{}.lock", queue.delays_plan().name)
}

fn read_entries(
    channel: &Channel,
    list: &str,
    absent: &BTreeSet<Duration>,
) -> Result<BTreeSet<Duration>, Cause> {
    let mut last: BTreeMap<Duration, (Task, Unsettled)> = BTreeMap::new();
    let mut others = Vec::new();
    while let Some((unsettled, received)) = channel.get(list)? {
        let Some(delay) = delay_of(&received.task) else {
            others.push(unsettled);
            continue;
        };
        if let Some((_, earlier)) = last.insert(delay, (received.task, unsettled)) {
            channel.settle(earlier, Settlement::Ack)?;
        }
    }
    for unsettled in others {
        channel.settle(unsettled, Settlement::GiveBack)?;
    }
    let mut delays = BTreeSet::new();
    for (delay, (entry, unsettled)) in last {
        if absent.contains(&delay) && is_outlived(&entry, delay) {
            channel.settle(unsettled, Settlement::Ack)?;
            continue;
        }
        channel.settle(unsettled, Settlement::GiveBack)?;
        delays.insert(delay);
    }
    Ok(delays)
}

/// The delay of an entry; `None` for what is no entry of ours.
fn delay_of(entry: &Task) -> Option<Duration> {
    if entry.content_type() != Some(LIST_ENTRY) {
        return None;
    }
    let millis = std::str::from_utf8(entry.body()).ok()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// Whether the queue of this entry has expired, unless it was used behind our back. Whoever makes
/// the queue anew enters it again, behind this moment.
fn is_outlived(entry: &Task, delay: Duration) -> bool {
    let age = entry.enqueued_at().and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age > unused_after(delay))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_outlived_when_its_queue_was_not_used_for_so_long_that_it_has_expired() {
        let delay = Duration::from_secs(5);
        let entered = |ago: Duration| {
            let entry = Task::new("5000").with_content_type(LIST_ENTRY);
            entry.stamped(SystemTime::now() - ago)
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(delay_of(&entered(hour)), Some(delay));
        assert!(!is_outlived(&entered(unused_after(delay) - hour), delay));
        assert!(is_outlived(&entered(unused_after(delay) + hour), delay));
        assert!(!is_outlived(&Task::new("5000"), delay), "of which nothing is known");
    }

    #[test]
    fn what_is_no_entry_of_ours_has_no_delay() {
        assert_eq!(delay_of(&Task::new("5000")), None);
        assert_eq!(delay_of(&Task::new("5 s").with_content_type(LIST_ENTRY)), None);
    }
}
