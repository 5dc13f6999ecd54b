//! The frames of publishes on their way to the stream of a connection. They pass by the client
//! library: to encode a single publish it takes longer than all else that we do for it, and it sends
//! it to its thread in three parts (amiquip 0.4.2 serialize.rs:357, io_loop/channel_handle.rs:125).

use std::cell::OnceCell;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::amqp::encode::{Route, write_publish};
use crate::model::task::Task;

/// The frames that wait on one connection, for each channel that publishes.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Those of a channel go with it: once the broker has closed it, no frame of it may follow.
    channels: Mutex<Vec<(u16, Weak<Frames>)>>,
}

/// What one channel publishes with.
#[derive(Debug)]
pub(crate) struct Publishes {
    outbox: Arc<Outbox>,
    /// Those that wait, from the first publish on.
    frames: OnceCell<Arc<Frames>>,
    largest_frame: usize,
}

/// The frames of one channel. Its thread adds to them, and the client library's thread takes them.
#[derive(Debug, Default)]
struct Frames(Mutex<Vec<u8>>);

/// What became of frames that were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// These are the first frames: the other thread must be woken.
    First,
    /// They follow others, of which it knows.
    More,
    /// So many bytes wait already that they were not added.
    Full,
}

/// The most bytes that may wait when more are added. The window of a publisher is smaller: more can
/// only wait if the broker does not read, and tasks were given up meanwhile.
const MOST_WAITING: usize = 16 * 1024 * 1024;

/// A buffer is kept for the next frames up to this size.
const KEPT: usize = 1024 * 1024;

impl Outbox {
    /// Begins with a channel.
    fn open(&self, channel: u16) -> Arc<Frames> {
        let frames = Arc::<Frames>::default();
        let mut channels = lock(&self.channels);
        channels.retain(|(id, frames)| *id != channel && frames.strong_count() > 0);
        channels.push((channel, Arc::downgrade(&frames)));
        frames
    }

    /// Exchanges the frames of a channel for an empty buffer. Returns whether this channel publishes.
    pub(super) fn take(&self, channel: u16, buffer: &mut Vec<u8>) -> bool {
        let frames = lock(&self.channels).iter().find(|(id, _)| *id == channel).cloned();
        let Some(frames) = frames.and_then(|(_, frames)| frames.upgrade()) else { return false };
        buffer.clear();
        buffer.shrink_to(KEPT);
        mem::swap(&mut *lock(&frames.0), buffer);
        true
    }
}

impl Publishes {
    /// For a channel of this outbox's connection, on which frames may be so large.
    pub(super) fn new(outbox: &Arc<Outbox>, largest_frame: usize) -> Publishes {
        Publishes { outbox: Arc::clone(outbox), frames: OnceCell::new(), largest_frame }
    }

    /// Adds the publish of a task to what waits on `channel`, which is always the same.
    pub(super) fn add(&self, channel: u16, queue: &str, task: &Task) -> Added {
        let frames = self.frames.get_or_init(|| self.outbox.open(channel));
        let route = Route { channel, queue, largest_frame: self.largest_frame };
        frames.add(|out| write_publish(out, route, task))
    }
}

impl Frames {
    /// Adds what `write` appends.
    fn add(&self, write: impl FnOnce(&mut Vec<u8>)) -> Added {
        let mut frames = lock(&self.0);
        if frames.len() > MOST_WAITING {
            return Added::Full;
        }
        let added = if frames.is_empty() { Added::First } else { Added::More };
        write(&mut frames);
        added
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(outbox: &Outbox, channel: u16) -> Option<Vec<u8>> {
        let mut buffer = b"old".to_vec();
        outbox.take(channel, &mut buffer).then_some(buffer)
    }

    #[test]
    fn only_the_first_frames_need_a_signal() {
        let outbox = Outbox::default();
        let frames = outbox.open(1);
        assert_eq!(frames.add(|it| it.extend(b"a")), Added::First);
        assert_eq!(frames.add(|it| it.extend(b"b")), Added::More);
        assert_eq!(taken(&outbox, 1).as_deref(), Some(&b"ab"[..]));
        assert_eq!(frames.add(|it| it.extend(b"c")), Added::First);
        assert_eq!(taken(&outbox, 1).as_deref(), Some(&b"c"[..]));
    }

    #[test]
    fn frames_go_with_their_channel_even_if_another_gets_its_number() {
        let outbox = Outbox::default();
        let (old, other) = (outbox.open(1), outbox.open(2));
        old.add(|it| it.extend(b"old"));
        other.add(|it| it.extend(b"other"));
        let new = outbox.open(1);
        old.add(|it| it.extend(b"late"));
        drop(old);
        assert_eq!(taken(&outbox, 1).as_deref(), Some(&b""[..]));
        new.add(|it| it.extend(b"new"));
        assert_eq!(taken(&outbox, 1).as_deref(), Some(&b"new"[..]));
        drop(other);
        assert_eq!(taken(&outbox, 2), None);
    }

    #[test]
    fn what_a_broker_does_not_read_is_limited() {
        let outbox = Outbox::default();
        let frames = outbox.open(1);
        assert_eq!(frames.add(|it| it.resize(MOST_WAITING + 1, 0)), Added::First);
        assert_eq!(frames.add(|it| it.push(1)), Added::Full);
        assert_eq!(taken(&outbox, 1).map(|it| it.len()), Some(MOST_WAITING + 1));
        assert_eq!(frames.add(|it| it.push(1)), Added::First);
    }
}
