//! Walks through a queue of dead letters: takes each letter once.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use crate::admin::dead_letter_filter::DeadLetterFilter;
use crate::amqp::channel::{Channel, Received, Unsettled};
use crate::amqp::close_reason::CloseReason;
use crate::model::task::Task;

/// A walk over the letters that the queue holds when it begins.
pub(crate) struct Walk<'a> {
    channel: &'a Channel,
    dead: String,
    selection: &'a DeadLetterFilter,
    /// How many letters to take at once: at most, and next.
    most: u16,
    at_once: u16,
    first: Option<(Unsettled, Received)>,
    /// How many letters are left.
    left: u64,
}

/// The most letters that are taken at once if a peek does no harm: all are in memory together.
pub(crate) const LETTERS_AT_ONCE: u16 = 32;

/// The most bytes they may have together, estimated by the largest of the letters before.
const MAX_BYTES_TOGETHER: usize = 4 * 1024 * 1024;

impl<'a> Walk<'a> {
    /// Takes the first letter; `None` if there is none.
    pub(crate) fn begin(
        channel: &'a Channel,
        dead: String,
        selection: &'a DeadLetterFilter,
        most: u16,
    ) -> Result<Option<Walk<'a>>, CloseReason> {
        if selection.left(0) == 0 {
            return Ok(None);
        }
        let first = channel.get(&dead)?;
        // Counted after the first letter: its answer waits for letters that are being requeued, and
        // a count does not.
        let ready = channel.count(&dead)?.ready;
        if first.is_none() && ready == 0 {
            return Ok(None);
        }
        Ok(Some(Walk { channel, dead, selection, most, at_once: 1, first, left: ready + 1 }))
    }

    /// Calls `deal` for each selected letter, in the order of their queue. What is not settled stays taken.
    /// Returns the ids of the filter that no letter has; none if the walk ended early.
    pub(crate) fn go(
        mut self,
        mut deal: impl FnMut(Unsettled, Task) -> Result<ControlFlow<()>, CloseReason>,
    ) -> Result<Vec<String>, CloseReason> {
        let (mut selected, mut missing) = (0, self.selection.named().collect::<BTreeSet<_>>());
        while let Some(letters) = self.next(selected)? {
            let largest = letters.iter().map(|(_, it)| it.task.body().len()).max();
            self.at_once = self.at_once_after(largest.unwrap_or(0));
            for (unsettled, Received { task, .. }) in letters {
                if !self.selection.takes(&task) {
                    continue;
                }
                selected += 1;
                task.id().map(|id| missing.remove(&id.to_string()));
                if deal(unsettled, task)?.is_break() || self.selection.left(selected) == 0 {
                    missing = BTreeSet::new();
                    self.left = 0;
                    break;
                }
            }
        }
        Ok(missing.into_iter().cloned().collect())
    }

    /// The next letters; `None` if there are no more.
    fn next(&mut self, selected: u64) -> Result<Option<Vec<(Unsettled, Received)>>, CloseReason> {
        if self.left == 0 || self.selection.left(selected) == 0 {
            return Ok(None);
        }
        let mut letters: Vec<_> = self.first.take().into_iter().collect();
        if letters.is_empty() {
            let now = self.left.min(self.wanted(selected)).min(self.at_once.into());
            if let Some(now) = u16::try_from(now).ok().filter(|now| *now > 1) {
                letters = self.channel.take(&self.dead, now)?;
            }
        }
        if letters.is_empty() {
            letters.extend(self.channel.get(&self.dead)?);
        }
        self.left = self.left.saturating_sub(letters.len() as u64);
        Ok(Some(letters).filter(|it| !it.is_empty()))
    }

    /// How many more letters are wanted if the filter takes each.
    fn wanted(&self, selected: u64) -> u64 {
        if self.selection.needs_content() { u64::MAX } else { self.selection.left(selected) }
    }

    /// Twice as many as before, up to the limits.
    fn at_once_after(&self, largest: usize) -> u16 {
        let fitting = u16::try_from(MAX_BYTES_TOGETHER / largest.max(1)).unwrap_or(u16::MAX);
        self.at_once.saturating_mul(2).min(fitting).clamp(1, self.most)
    }
}
