//! Detects a frame or a message that a peer has begun and does not continue. It holds up all that
//! follows it, and heartbeats do not reveal it: they go on, or are taken for a part of it. Pure.

use std::time::{Duration, Instant};

/// What has begun on one connection and is not complete.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    /// The present frame.
    frame: Option<Progress>,
    /// The messages that wait for a frame, at most one on each channel.
    messages: Vec<Message>,
    /// The message of the present frame, if another frame of it follows.
    next: Option<(u16, Awaited)>,
}

/// How many bytes of a frame came since this moment.
#[derive(Debug)]
struct Progress {
    since: Instant,
    bytes: usize,
}

#[derive(Debug)]
struct Message {
    channel: u16,
    awaited: Awaited,
    since: Instant,
}

/// What comes next of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Header,
    /// So many bytes of its body.
    Body(u64),
}

/// How long a message may wait for its next frame, and a frame for its next kilobyte. RabbitMQ
/// sends the frames of a message one after the other, with nothing between them.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How many bytes of a frame have to come within the stall timeout. A slow line of 1 KB/s brings
/// thirty times as much; heartbeats that are taken for a part of the frame bring at most half.
const LEAST_PROGRESS: usize = 1000;

/// Return, deliver and get-ok of the class basic.
const BRING_A_MESSAGE: [[u8; 4]; 3] = [[0, 60, 0, 50], [0, 60, 0, 60], [0, 60, 0, 71]];

impl Unfinished {
    /// So many bytes came of the present frame, or of the next if there is none.
    pub(crate) fn grow(&mut self, bytes: usize, now: Instant) {
        let progress = self.frame.get_or_insert(Progress { since: now, bytes: 0 });
        progress.bytes += bytes;
        if progress.bytes >= LEAST_PROGRESS {
            *progress = Progress { since: now, bytes: 0 };
        }
    }

    /// The present frame is a method, with its class and number.
    pub(crate) fn method(&mut self, channel: u16, method: [u8; 4]) {
        self.take(channel);
        self.next = BRING_A_MESSAGE.contains(&method).then_some((channel, Awaited::Header));
    }

    /// The present frame is a header that announces a body of this size.
    pub(crate) fn header(&mut self, channel: u16, body: u64) {
        self.take(channel);
        self.next = (body > 0).then_some((channel, Awaited::Body(body)));
    }

    /// The present frame is a part of a body, with so many bytes.
    pub(crate) fn body(&mut self, channel: u16, size: u32) {
        let Some(Awaited::Body(awaited)) = self.take(channel) else { return };
        let left = awaited.saturating_sub(size.into());
        self.next = (left > 0).then_some((channel, Awaited::Body(left)));
    }

    /// The present frame is complete.
    pub(crate) fn end_frame(&mut self, now: Instant) {
        self.frame = None;
        let next = self.next.take();
        let next = next.map(|(channel, awaited)| Message { channel, awaited, since: now });
        self.messages.extend(next);
    }

    /// Reports what has stalled.
    pub(crate) fn check(&self, now: Instant) -> Result<(), String> {
        let late = |since: Instant| now.saturating_duration_since(since) > STALL_TIMEOUT;
        if self.frame.as_ref().is_some_and(|progress| late(progress.since)) {
            return Err(format!(
                "the broker stalled in a frame: fewer than {LEAST_PROGRESS} bytes in {STALL_TIMEOUT:?}"
            ));
        }
        match self.messages.iter().find(|message| late(message.since)) {
            Some(Message { channel, .. }) => Err(format!(
                "the broker stalled in a message on channel {channel}: nothing in {STALL_TIMEOUT:?}"
            )),
            None => Ok(()),
        }
    }

    /// Ends the wait on this channel, and returns what was awaited.
    fn take(&mut self, channel: u16) -> Option<Awaited> {
        let place = self.messages.iter().position(|message| message.channel == channel)?;
        Some(self.messages.swap_remove(place).awaited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELIVER: [u8; 4] = [0, 60, 0, 60];
    const SECOND: Duration = Duration::from_secs(1);

    /// Frames of this many bytes each, which come at once.
    struct Line {
        unfinished: Unfinished,
        now: Instant,
    }

    impl Line {
        fn new() -> Line {
            Line { unfinished: Unfinished::default(), now: Instant::now() }
        }

        fn frame(&mut self, note: impl FnOnce(&mut Unfinished)) {
            self.unfinished.grow(20, self.now);
            note(&mut self.unfinished);
            self.unfinished.end_frame(self.now);
        }

        /// Whether all is well after so much more time, in which heartbeats come.
        fn holds_for(&mut self, time: Duration) -> bool {
            let end = self.now + time;
            while self.now < end {
                self.now = end.min(self.now + SECOND);
                self.frame(|_| {});
            }
            self.unfinished.check(self.now).is_ok()
        }
    }

    #[test]
    fn a_message_is_waited_for_between_its_frames_and_no_longer() {
        let steps: [&dyn Fn(&mut Unfinished); 4] =
            [&|it| it.method(1, DELIVER), &|it| it.header(1, 30), &|it| it.body(1, 10), &|it| {
                it.body(1, 15)
            }];
        for last in 0..steps.len() {
            let mut line = Line::new();
            for step in &steps[..=last] {
                assert!(line.holds_for(STALL_TIMEOUT), "before step {last}");
                line.frame(step);
            }
            assert!(line.holds_for(STALL_TIMEOUT), "after step {last}");
            assert!(!line.holds_for(SECOND), "after step {last}");
        }
    }

    #[test]
    fn what_is_complete_is_not_waited_for() {
        let mut line = Line::new();
        line.frame(|it| it.method(1, DELIVER));
        line.frame(|it| it.header(1, 30));
        line.frame(|it| it.body(1, 30));
        assert!(line.holds_for(10 * STALL_TIMEOUT));

        line.frame(|it| it.method(2, [0, 60, 0, 50]));
        line.frame(|it| it.header(2, 0));
        assert!(line.holds_for(10 * STALL_TIMEOUT), "an empty one");

        line.frame(|it| it.method(3, [0, 60, 0, 80]));
        assert!(line.holds_for(10 * STALL_TIMEOUT), "an ack");
    }

    #[test]
    fn a_message_is_waited_for_on_its_own_channel() {
        let mut line = Line::new();
        line.frame(|it| it.method(7, DELIVER));
        for _ in 0..30 {
            assert!(line.holds_for(SECOND));
            line.frame(|it| it.method(1, DELIVER));
            line.frame(|it| it.header(1, 1));
            line.frame(|it| it.body(1, 1));
        }
        assert!(!line.holds_for(SECOND));
        let error = line.unfinished.check(line.now).expect_err("late");
        assert!(error.contains("channel 7"), "{error}");

        line.frame(|it| it.method(7, [0, 20, 0, 40]));
        assert!(line.holds_for(10 * STALL_TIMEOUT), "the channel was closed");
    }

    #[test]
    fn a_frame_may_take_long_while_it_grows() {
        let mut line = Line::new();
        for _ in 0..10_000 {
            line.unfinished.grow(34, line.now);
            line.now += SECOND;
            assert!(line.unfinished.check(line.now).is_ok(), "a slow line");
        }
    }

    #[test]
    fn heartbeats_are_no_growth() {
        let mut line = Line::new();
        line.unfinished.grow(5000, line.now);
        for _ in 0..30 {
            line.now += SECOND;
            line.unfinished.grow(2 * 8, line.now);
            assert!(line.unfinished.check(line.now).is_ok(), "not late yet");
        }
        line.now += SECOND;
        assert!(line.unfinished.check(line.now).is_err());
    }
}
