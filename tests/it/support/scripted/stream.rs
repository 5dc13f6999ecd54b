//! The bytes of a connection: frames read and written, damaged, cut off and withheld.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::panic;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use super::{Damage, Event, PATIENCE, Session, TestIsOver, Unfinished, is_stopped, is_timeout};
use crate::support::wire::{BODY, Call, Frame, HEADER, HEARTBEAT, METHOD, Method};

impl Session {
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Tells the test something.
    pub(crate) fn report(&self, text: impl Into<String>) {
        let _ = self.events.send(Event::Reported(text.into()));
    }

    /// The next method, a publish with its content; `None` when the peer has closed the socket.
    pub(crate) fn next_method(&mut self) -> Option<Method> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let frame = self.next_frame(deadline)?;
            if let Some(method) = self.assemble(frame) {
                return Some(method);
            }
        }
    }

    pub(crate) fn damage(&mut self, damage: Damage) {
        self.damage = Some(damage);
    }

    /// How many bytes were sent so far.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// Sends bytes, whatever they are. That the peer has left shows when it is read from.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let bytes = self.damaged(bytes);
        let Some(mut stream) = self.stream.as_deref() else {
            return;
        };
        let _ = stream.set_write_timeout(Some(PATIENCE));
        match stream.write_all(&bytes) {
            Err(error) if is_timeout(error.kind()) => {
                panic!("the client read nothing for {PATIENCE:?}")
            }
            _ => {}
        }
    }

    /// The bytes to be sent next, as they are to arrive.
    fn damaged(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        if let Some(Damage { position, bits }) = self.damage {
            let byte = position.checked_sub(self.sent).and_then(|place| bytes.get_mut(place));
            byte.into_iter().for_each(|byte| *byte ^= bits);
        }
        self.sent += bytes.len();
        bytes
    }

    /// Neither reads nor writes until the test is over; the connection stays open.
    pub(crate) fn stay_silent(&mut self) {
        let _ = self.stop.recv();
    }

    /// Reads, says nothing, and gives what came until the peer closed the socket.
    pub(crate) fn read_until_closed(&mut self) -> Vec<Method> {
        let deadline = Instant::now() + PATIENCE;
        let mut methods = Vec::new();
        while let Some(frame) = self.next_frame(deadline) {
            methods.extend(self.assemble(frame));
        }
        methods
    }

    /// Answers heartbeats with heartbeats, and nothing else, until the peer closed the socket.
    pub(crate) fn beat_until_closed(&mut self) {
        while let Some(frame) = self.next_frame(Instant::now() + PATIENCE) {
            if frame.kind == HEARTBEAT {
                self.heartbeat();
            }
        }
    }

    /// Answers heartbeats with heartbeats, and nothing else, until nothing was heard for so long.
    pub(crate) fn beat_until_silent(&mut self, silence: Duration) {
        while self.hears_within(silence) {
            let frame = self.next_frame(Instant::now() + PATIENCE);
            let frame = frame.expect("the client left while the script waited for its silence");
            if frame.kind == HEARTBEAT {
                self.heartbeat();
            }
        }
    }

    /// Closes the socket without a word.
    pub(crate) fn hang_up(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Resets the connection.
    pub(crate) fn reset(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = set_socket_linger(&*stream, Some(Duration::ZERO));
        }
    }

    fn assemble(&mut self, frame: Frame) -> Option<Method> {
        match frame.kind {
            METHOD => {
                let method = Method::read(frame.channel, &frame.payload);
                let Call::Publish(publish) = method.call else {
                    return Some(method);
                };
                let unfinished = Unfinished { publish: *publish, size: None };
                self.unfinished.insert(frame.channel, unfinished);
                None
            }
            HEADER | BODY => self.add_content(&frame),
            HEARTBEAT => None,
            other => panic!("the client sent a frame of type {other}"),
        }
    }

    fn add_content(&mut self, frame: &Frame) -> Option<Method> {
        let unfinished = self.unfinished.get_mut(&frame.channel);
        let unfinished = unfinished.expect("the client sent content without a publish");
        match frame.kind {
            HEADER => unfinished.size = Some(unfinished.publish.read_header(&frame.payload)),
            _ => unfinished.publish.body.extend(&frame.payload),
        }
        if unfinished.size != Some(unfinished.publish.body.len()) {
            return None;
        }
        let finished = self.unfinished.remove(&frame.channel)?;
        Some(Method { channel: frame.channel, call: Call::Publish(Box::new(finished.publish)) })
    }

    fn hears_within(&self, limit: Duration) -> bool {
        let stream = self.stream.as_deref().expect("the script has not hung up");
        let _ = stream.set_read_timeout(Some(limit));
        let silent = |error: std::io::Error| is_timeout(error.kind());
        !self.unread.is_empty() || !stream.peek(&mut [0]).is_err_and(silent)
    }

    fn next_frame(&mut self, deadline: Instant) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::take(&mut self.unread) {
                return Some(frame);
            }
            if !self.read_more(deadline, "a frame") {
                return None;
            }
        }
    }

    /// Says whether the peer is still there.
    pub(super) fn read_more(&mut self, deadline: Instant, wanted: &str) -> bool {
        let Some(mut stream) = self.stream.as_deref() else {
            return false;
        };
        let mut buffer = [0; 16 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {wanted} came for {PATIENCE:?}");
            let _ = stream.set_read_timeout(Some(left));
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.unread.extend(&buffer[..count]);
                    return true;
                }
                Err(error) if is_timeout(error.kind()) => {}
                Err(_) => break,
            }
        }
        if is_stopped(&self.stop) {
            panic::resume_unwind(Box::new(TestIsOver));
        }
        false
    }
}
