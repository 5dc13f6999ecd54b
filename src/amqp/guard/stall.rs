//! Owns the limit on what a peer has begun: a frame or a message that does not come on holds up
//! what is behind it, and nothing else tells, since heartbeats go on, or are taken for a part of
//! it. Pure.

use std::time::{Duration, Instant};

/// What has begun on one connection and is not complete.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    /// The present frame.
    frame: Option<Stretch>,
    /// The messages that wait for a frame, one at most on each channel.
    messages: Vec<Message>,
    /// The message of the present frame, if it waits for another behind it.
    next: Option<(u16, Awaited)>,
}

/// What came of a frame since this moment.
#[derive(Debug)]
struct Stretch {
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
/// sends a message in one go, and nothing in between.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What comes of a frame within the longest wait: a line of 1 KB/s, which is slow, brings thirty
/// times as much, and heartbeats that are taken for a part of it bring half of it at most.
const STRETCH: usize = 1000;

/// Return, deliver and get-ok of the class basic.
const BRING_A_MESSAGE: [[u8; 4]; 3] = [[0, 60, 0, 50], [0, 60, 0, 60], [0, 60, 0, 71]];

impl Unfinished {
    /// So many bytes came of the present frame, or of the next where there is none.
    pub(crate) fn grow(&mut self, bytes: usize, now: Instant) {
        let stretch = self.frame.get_or_insert(Stretch { since: now, bytes: 0 });
        stretch.bytes += bytes;
        if stretch.bytes >= STRETCH {
            *stretch = Stretch { since: now, bytes: 0 };
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

    /// Says what does not come on.
    pub(crate) fn check(&self, now: Instant) -> Result<(), String> {
        let late = |since: Instant| now.saturating_duration_since(since) > LONGEST_WAIT;
        if self.frame.as_ref().is_some_and(|stretch| late(stretch.since)) {
            return Err(format!(
                "the broker began a frame, of which less than {STRETCH} bytes came in \
                 {LONGEST_WAIT:?}"
            ));
        }
        match self.messages.iter().find(|message| late(message.since)) {
            Some(Message { channel, .. }) => Err(format!(
                "the broker began a message on channel {channel}, of which nothing more came in \
                 {LONGEST_WAIT:?}"
            )),
            None => Ok(()),
        }
    }

    /// What was awaited on this channel, and is no more.
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

        fn frame(&mut self, tell: impl FnOnce(&mut Unfinished)) {
            self.unfinished.grow(20, self.now);
            tell(&mut self.unfinished);
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
                assert!(line.holds_for(LONGEST_WAIT), "before step {last}");
                line.frame(step);
            }
            assert!(line.holds_for(LONGEST_WAIT), "after step {last}");
            assert!(!line.holds_for(SECOND), "after step {last}");
        }
    }

    #[test]
    fn what_is_complete_is_not_waited_for() {
        let mut line = Line::new();
        line.frame(|it| it.method(1, DELIVER));
        line.frame(|it| it.header(1, 30));
        line.frame(|it| it.body(1, 30));
        assert!(line.holds_for(10 * LONGEST_WAIT));

        line.frame(|it| it.method(2, [0, 60, 0, 50]));
        line.frame(|it| it.header(2, 0));
        assert!(line.holds_for(10 * LONGEST_WAIT), "an empty one");

        line.frame(|it| it.method(3, [0, 60, 0, 80]));
        assert!(line.holds_for(10 * LONGEST_WAIT), "an ack");
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
        assert!(line.holds_for(10 * LONGEST_WAIT), "the channel was closed");
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
