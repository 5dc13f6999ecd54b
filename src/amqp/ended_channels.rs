//! The channels of a connection that the broker has ended, known as soon as its frame arrives: the
//! thread of such a channel may be in a handler.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::amqp::close_reason::CloseReason;
use crate::amqp::guard::ChannelChange;

/// The ended channels of one connection, by number.
#[derive(Debug)]
pub(crate) struct EndedChannels {
    reasons: Mutex<HashMap<u16, CloseReason>>,
    notice: Sender<()>,
    noticed: Receiver<()>,
}

impl Default for EndedChannels {
    fn default() -> EndedChannels {
        let (notice, noticed) = bounded(1);
        EndedChannels { reasons: Mutex::default(), notice, noticed }
    }
}

impl EndedChannels {
    pub(crate) fn note(&self, channel: u16, change: ChannelChange) {
        let reason = match change {
            ChannelChange::Opened => return drop(self.lock().remove(&channel)),
            ChannelChange::Closed(code, text) => CloseReason::channel_closed_with(code, &text),
            ChannelChange::Cancelled => CloseReason::ConsumerCancelled,
        };
        self.lock().insert(channel, reason);
        // Full: its receiver has not come to the last one yet.
        let _ = self.notice.try_send(());
    }

    /// Receives after a channel has ended; once for several of them.
    pub(crate) fn noticed(&self) -> &Receiver<()> {
        &self.noticed
    }

    /// Why the channel with this number has ended, if it is not open again.
    pub(crate) fn reason(&self, channel: u16) -> Option<CloseReason> {
        self.lock().get(&channel).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u16, CloseReason>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_has_ended_until_its_number_is_opened_again() {
        let ended = EndedChannels::default();
        ended.note(1, ChannelChange::Opened);
        ended.note(1, ChannelChange::Closed(404, "gone".into()));
        ended.note(2, ChannelChange::Cancelled);
        let closed = CloseReason::ChannelClosed { code: 404, text: "gone".into() };
        assert_eq!(ended.reason(1), Some(closed));
        assert_eq!(ended.reason(2), Some(CloseReason::ConsumerCancelled));
        ended.note(1, ChannelChange::Opened);
        assert_eq!(ended.reason(1), None);
        assert_eq!((ended.noticed().len(), ended.reason(3)), (1, None));
    }
}
