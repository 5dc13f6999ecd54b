//! Owns the way through a queue of dead letters: takes each letter once.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use crate::admin::dead_letter_filter::DeadLetterFilter;
use crate::amqp::channel::{Channel, Received, Unsettled};
use crate::amqp::close_reason::CloseReason;
use crate::model::task::Task;

/// A walk over the letters that are there when it begins.
pub(crate) struct Walk<'a> {
    channel: &'a Channel,
    dead: String,
    selection: &'a DeadLetterFilter,
    /// How many letters to take at once, at most and the next time.
    most: u16,
    at_once: u16,
    first: Option<(Unsettled, Received)>,
    /// How many letters there are to take.
    there: u64,
}

/// How many letters are taken at once at most, if a look does no harm: all are in memory together.
pub(crate) const MANY: u16 = 32;

/// How many bytes those may have together, if they are as large as the largest of those before.
const TOGETHER: usize = 4 * 1024 * 1024;

impl<'a> Walk<'a> {
    /// Takes the first letter; `None` when there is none to take.
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
        // After the first, whose answer waits for what others have just given back. A count
        // overtakes that.
        let ready = channel.count(&dead)?.ready;
        if first.is_none() && ready == 0 {
            return Ok(None);
        }
        let there = ready + 1;
        Ok(Some(Walk { channel, dead, selection, most, at_once: 1, first, there }))
    }

    /// Hands over the letters that are meant, in the order of their queue. What is not settled stays taken.
    /// Returns the ids that were asked for and are not there; none if the
    /// walk ended before its end.
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
                    self.there = 0;
                    break;
                }
            }
        }
        Ok(missing.into_iter().cloned().collect())
    }

    /// The next letters; `None` when there are no more.
    fn next(&mut self, selected: u64) -> Result<Option<Vec<(Unsettled, Received)>>, CloseReason> {
        if self.there == 0 || self.selection.left(selected) == 0 {
            return Ok(None);
        }
        let mut letters: Vec<_> = self.first.take().into_iter().collect();
        if letters.is_empty() {
            let now = self.there.min(self.meant(selected)).min(self.at_once.into());
            if let Some(now) = u16::try_from(now).ok().filter(|now| *now > 1) {
                letters = self.channel.take(&self.dead, now)?;
            }
        }
        if letters.is_empty() {
            letters.extend(self.channel.get(&self.dead)?);
        }
        self.there = self.there.saturating_sub(letters.len() as u64);
        Ok(Some(letters).filter(|it| !it.is_empty()))
    }

    /// How many more are meant if each is.
    fn meant(&self, selected: u64) -> u64 {
        if self.selection.is_choosy() { u64::MAX } else { self.selection.left(selected) }
    }

    /// Twice as many as before, as long as there is memory for them.
    fn at_once_after(&self, largest: usize) -> u16 {
        let fitting = u16::try_from(TOGETHER / largest.max(1)).unwrap_or(u16::MAX);
        self.at_once.saturating_mul(2).min(fitting).clamp(1, self.most)
    }
}
