//! Owns the look at the frames that a peer sends, before the client library believes them: it
//! makes room for whatever size a frame announces, and where there is none, the process ends
//! (amiquip 0.4.2 frame_buffer.rs:46, io_loop/content_collector.rs:194). It follows tables as deep
//! as they go, ends them where text is not UTF-8, and waits for whatever has begun, too. Pure.

pub(crate) mod stall;
pub(crate) mod table;

use std::fmt;
use std::io;
use std::mem;
use std::time::Instant;

use crate::amqp::guard::stall::Unfinished;
use crate::amqp::guard::table::{DEEPEST, TooDeep, mend_properties, mend_table};

/// Follows the frames of one connection through the bytes that come, whatever pieces they come
/// in. What no broker sends is an error; what is in the bodies is passed over unseen.
#[derive(Debug)]
pub(crate) struct Frames {
    /// The first bytes of the present frame, as far as they have come and as far as they count.
    head: [u8; HEAD + INSIDE],
    came: usize,
    wanted: usize,
    /// How many bytes of the present frame are left behind its head.
    rest: usize,
    /// What is kept of a table of the broker's until all of it is there.
    kept: Vec<u8>,
    /// What came of a message's properties in pieces. It can be mended once all of it is there, and
    /// is not passed on before.
    withheld: Vec<u8>,
    keeps: Keeps,
    unfinished: Unfinished,
    /// Whether no frame has passed yet.
    first: bool,
    /// What is put for a heartbeat of none, until the broker has proposed one, in seconds.
    heartbeat: Option<u8>,
    /// What the broker then has proposed, or seems to have.
    pub(crate) proposed: Option<Proposal>,
    /// With what words it has closed the connection.
    pub(crate) closed: Option<(u16, String)>,
}

/// What a broker's tune says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// In seconds.
    pub(crate) heartbeat: u16,
    /// The largest frame; 0 where it sets no limit.
    pub(crate) frame: u32,
}

/// What may be nested in a frame, or in need of mending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeps {
    Nothing,
    /// The properties of a message.
    Properties,
    /// What the broker says of itself.
    Table,
    /// What it closes the connection with.
    Close,
}

/// Why what came is not passed on.
#[derive(Debug)]
pub(crate) struct Objection {
    /// How many of the bytes came before.
    pub(crate) sound: usize,
    pub(crate) error: io::Error,
}

/// What is a frame, but larger or deeper than any that this crate takes.
#[derive(Debug)]
pub(crate) struct Excessive(String);

/// The largest frame that is agreed upon with a broker; without a word of ours it may be any.
pub(crate) const LARGEST_FRAME: u32 = 1 << 20;

/// The largest body: RabbitMQ allows no larger `max_message_size`.
const LARGEST_BODY: u64 = 512 << 20;

/// A frame's type, channel and size (<https://www.rabbitmq.com/amqp-0-9-1-protocol>).
const HEAD: usize = 7;

/// How far a content header is looked at: class, weight, body size. Tune is as long: class,
/// method, the most channels, the largest frame, the heartbeat.
const INSIDE: usize = 12;

const START: [u8; 4] = [0, 10, 0, 10];
const TUNE: [u8; 4] = [0, 10, 0, 30];
const CLOSE: [u8; 4] = [0, 10, 0, 50];

/// What follows the class and the method.
const ARGUMENTS: usize = HEAD + 4;

/// The table of start follows its version.
const START_TABLE: usize = ARGUMENTS + 2;

/// The largest frame of tune follows the most channels.
const TUNE_FRAME: usize = ARGUMENTS + 2;

/// The largest method but start. No other that a broker sends has more than three short strings,
/// and none has a table. Those of a client's that have one cannot go down far in so few bytes:
/// each level takes five.
const LARGEST_METHOD: u32 = 1 << 10;

/// What a frame has beside its payload: the head, and one byte at its end.
const AROUND: u32 = 8;

const FRAME_END: u8 = 0xCE;

const METHOD_FRAME: u8 = 1;
const HEADER_FRAME: u8 = 2;
const BODY_FRAME: u8 = 3;

/// The first byte of a TLS alert.
const TLS_ALERT: u8 = 0x15;

/// How much of a wrong answer is shown.
const SHOWN: usize = 40;

impl Frames {
    /// Begins with what came first. Where the broker proposes no heartbeat, `heartbeat` is put in
    /// its place, in seconds and 255 at most, unless that is none, too: the client library would
    /// agree to none, as if zero were the shortest interval.
    pub(crate) fn new(heartbeat: u16) -> Frames {
        let heartbeat = u8::try_from(heartbeat).unwrap_or(u8::MAX);
        Frames {
            head: [0; HEAD + INSIDE],
            came: 0,
            wanted: HEAD,
            rest: 0,
            kept: Vec::new(),
            withheld: Vec::new(),
            keeps: Keeps::Nothing,
            unfinished: Unfinished::default(),
            first: true,
            heartbeat: Some(heartbeat),
            proposed: None,
            closed: None,
        }
    }

    /// How many bytes may come next: where some are withheld, no more than may join them.
    pub(crate) fn room(&self) -> usize {
        if self.withheld.is_empty() { usize::MAX } else { self.rest }
    }

    /// Looks at the bytes that came next, which is now. Says how many of them to pass on: the
    /// others are withheld.
    pub(crate) fn look(&mut self, bytes: &mut [u8], now: Instant) -> Result<usize, Objection> {
        let (mut seen, mut sound) = (0, 0);
        while seen < bytes.len() {
            let unseen = &mut bytes[seen..];
            let came = if self.rest > 0 { self.pass(unseen) } else { self.gather(unseen) };
            let came = came.map_err(|error| Objection { sound, error })?;
            self.unfinished.grow(came, now);
            if self.has_ended() {
                self.unfinished.end_frame(now);
            }
            seen += came;
            if self.withheld.is_empty() {
                sound = seen;
            }
        }
        self.unfinished.check(now).map_err(|text| {
            let error = io::Error::new(io::ErrorKind::InvalidData, text);
            Objection { sound, error }
        })?;
        Ok(sound)
    }

    /// Passes on what was withheld, once it is whole, as far as there is room for it. Says how
    /// much that is.
    pub(crate) fn release(&mut self, room: &mut [u8]) -> usize {
        if self.rest > 0 {
            return 0;
        }
        let length = room.len().min(self.withheld.len());
        room[..length].copy_from_slice(&self.withheld[..length]);
        self.withheld.drain(..length);
        length
    }

    fn pass(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (passed, _) = bytes.split_at_mut(bytes.len().min(self.rest));
        self.rest -= passed.len();
        self.first &= self.rest > 0;
        let mended = match self.keeps {
            Keeps::Nothing => Ok(()),
            Keeps::Properties => self.withhold(passed),
            Keeps::Table | Keeps::Close => self.keep(passed),
        };
        if self.rest == 0 {
            self.keeps = Keeps::Nothing;
        }
        mended.map_err(too_deep)?;
        Ok(passed.len())
    }

    /// Mends what came, or withholds it for as long as more belongs to it.
    fn withhold(&mut self, passed: &mut [u8]) -> Result<(), TooDeep> {
        if self.rest == 0 && self.withheld.is_empty() {
            return mend_properties(passed);
        }
        self.withheld.extend_from_slice(passed);
        if self.rest > 0 {
            return Ok(());
        }
        mend_properties(&mut self.withheld).inspect_err(|TooDeep| self.withheld.clear())
    }

    /// Keeps what came, and looks at it before the end of the frame is passed on. Nobody publishes
    /// it again, so that it need not be mended.
    fn keep(&mut self, passed: &[u8]) -> Result<(), TooDeep> {
        self.kept.extend_from_slice(passed);
        if self.rest > 0 {
            return Ok(());
        }
        let mut kept = mem::take(&mut self.kept);
        match self.keeps {
            Keeps::Close if kept.pop() == Some(FRAME_END) => self.closed = read_close(&kept),
            Keeps::Table => return mend_table(&mut kept),
            _ => {}
        }
        Ok(())
    }

    /// Whether the last byte of a frame was the last that came.
    fn has_ended(&self) -> bool {
        self.rest == 0 && self.came == 0
    }

    fn gather(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (taken, left) = bytes.split_at_mut(bytes.len().min(self.wanted - self.came));
        self.head[self.came..][..taken.len()].copy_from_slice(taken);
        self.came += taken.len();
        let head = &self.head[..self.came];
        if self.first && !begins_a_method(head) {
            let answer = [head, &*left].concat();
            return Err(io::Error::new(io::ErrorKind::InvalidData, describe(&answer)));
        }
        if self.came == self.wanted {
            self.read_head(taken)?;
        }
        Ok(taken.len())
    }

    /// Reads the head that `last` completes, and says how to go on.
    fn read_head(&mut self, last: &mut [u8]) -> io::Result<()> {
        let size = size_of(&self.head);
        if self.wanted == HEAD {
            check_frame(size)?;
            if self.looks_inside() && size > 0 {
                self.wanted += INSIDE.min(size as usize);
                return Ok(());
            }
        }
        self.read_inside(size, last)?;
        self.rest = (size + AROUND) as usize - self.wanted;
        (self.came, self.wanted) = (0, HEAD);
        Ok(())
    }

    fn looks_inside(&self) -> bool {
        matches!(self.head[0], METHOD_FRAME | HEADER_FRAME)
    }

    fn read_inside(&mut self, size: u32, last: &mut [u8]) -> io::Result<()> {
        let inside = &self.head[HEAD..self.wanted];
        match (self.head[0], inside.first_chunk()) {
            (METHOD_FRAME, Some(&method)) => self.read_method(method, size, last)?,
            (HEADER_FRAME, _) if inside.len() == INSIDE => self.read_header()?,
            (BODY_FRAME, _) => self.unfinished.body(self.channel(), size),
            _ => {}
        }
        Ok(())
    }

    fn read_method(&mut self, method: [u8; 4], size: u32, last: &mut [u8]) -> io::Result<()> {
        self.unfinished.method(self.channel(), method);
        match method {
            START => self.begin_to_keep(Keeps::Table, START_TABLE),
            CLOSE if self.channel() == 0 => self.begin_to_keep(Keeps::Close, ARGUMENTS),
            _ => {}
        }
        if method != START {
            check_method(size)?;
        }
        if method == TUNE && size as usize >= INSIDE {
            self.propose(last);
        }
        Ok(())
    }

    fn begin_to_keep(&mut self, what: Keeps, from: usize) {
        self.keeps = what;
        self.kept.extend_from_slice(self.head.get(from..self.wanted).unwrap_or_default());
    }

    fn read_header(&mut self) -> io::Result<()> {
        let body = self.head[HEAD + 4..].iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
        check_body(body)?;
        self.keeps = Keeps::Properties;
        self.unfinished.header(self.channel(), body);
        Ok(())
    }

    fn channel(&self) -> u16 {
        u16::from_be_bytes([self.head[1], self.head[2]])
    }

    /// Puts ours in its place where tune proposes no heartbeat. It ends with that, and so does
    /// `last`, or with the second of its two bytes.
    fn propose(&mut self, last: &mut [u8]) {
        let Some(ours) = self.heartbeat.take() else { return };
        let [.., high, low] = self.head;
        let mut heartbeat = u16::from_be_bytes([high, low]);
        if let (0, Some(byte)) = (heartbeat, last.last_mut()) {
            *byte = ours;
            heartbeat = ours.into();
        }
        let frame =
            self.head[TUNE_FRAME..][..4].iter().fold(0, |it, byte| it << 8 | u32::from(*byte));
        self.proposed = Some(Proposal { heartbeat, frame });
    }
}

fn size_of(head: &[u8; HEAD + INSIDE]) -> u32 {
    u32::from_be_bytes([head[3], head[4], head[5], head[6]])
}

/// The code and the text, with which a close begins.
fn read_close(arguments: &[u8]) -> Option<(u16, String)> {
    let (code, left) = arguments.split_first_chunk()?;
    let (length, left) = left.split_first()?;
    let text = left.get(..usize::from(*length))?;
    Some((u16::from_be_bytes(*code), String::from_utf8_lossy(text).into_owned()))
}

fn check_frame(size: u32) -> io::Result<()> {
    if size > LARGEST_FRAME - AROUND {
        return Err(excessive(format!(
            "the broker sent what is no AMQP frame, or one of {size} bytes, and {LARGEST_FRAME} \
             were agreed upon"
        )));
    }
    Ok(())
}

fn check_method(size: u32) -> io::Result<()> {
    if size > LARGEST_METHOD {
        return Err(excessive(format!(
            "the broker sent a method of {size} bytes, and {LARGEST_METHOD} are the most that any \
             has"
        )));
    }
    Ok(())
}

fn check_body(size: u64) -> io::Result<()> {
    if size > LARGEST_BODY {
        return Err(excessive(format!(
            "the broker announced a message of {size} bytes, and {LARGEST_BODY} are the most that \
             is taken"
        )));
    }
    Ok(())
}

fn too_deep(TooDeep: TooDeep) -> io::Error {
    excessive(format!(
        "the broker sent headers that are nested deeper than the {DEEPEST} levels that are taken"
    ))
}

fn excessive(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Excessive(text))
}

/// Whether these may be the first bytes of a method on channel 0, as far as they have come.
fn begins_a_method(head: &[u8]) -> bool {
    let begins = [METHOD_FRAME, 0, 0].iter().zip(head).all(|(wanted, byte)| wanted == byte);
    let size = head.get(3..HEAD).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes);
    begins && size.is_none_or(|size| size <= LARGEST_FRAME - AROUND)
}

fn describe(answer: &[u8]) -> String {
    let what = "this is not AMQP 0-9-1: it answered";
    if answer.first() == Some(&TLS_ALERT) {
        return format!("{what} in TLS; for a TLS port, write amqps:// in the URL");
    }
    let line = answer.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let shown = &line[..line.len().min(SHOWN)];
    let more = if shown.len() < line.len() { "..." } else { "" };
    format!("{what} \"{}{more}\"", shown.escape_ascii())
}

impl fmt::Display for Excessive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Excessive {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).expect("a small payload");
        [&[kind, 0, 0][..], &size.to_be_bytes(), payload, &[0xCE]].concat()
    }

    fn header(body: u64) -> Vec<u8> {
        header_with(body, &[0, 0])
    }

    fn header_with(body: u64, properties: &[u8]) -> Vec<u8> {
        frame(HEADER_FRAME, &[&[0, 60, 0, 0][..], &body.to_be_bytes(), properties].concat())
    }

    /// A table that has so many levels, itself among them.
    fn table(levels: usize) -> Vec<u8> {
        let sized = |bytes: &[u8]| {
            let size = u32::try_from(bytes.len()).expect("a small table");
            [&size.to_be_bytes(), bytes].concat()
        };
        let inside = (1..levels).fold(b"V".to_vec(), |it, _| [b"A", &*sized(&it)].concat());
        sized(&[b"\x01k", &*inside].concat())
    }

    fn start(levels: usize) -> Vec<u8> {
        frame(METHOD_FRAME, &[b"\0\x0a\0\x0a\0\x09", &*table(levels), b"\0\0\0\0"].concat())
    }

    fn headers(levels: usize) -> Vec<u8> {
        header_with(0, &[&[0x20, 0], &*table(levels)].concat())
    }

    /// A start, a tune, a delivery, and what else a broker sends.
    fn session() -> Vec<u8> {
        [
            frame(METHOD_FRAME, b"\0\x0a\0\x0a, and what a start says"),
            frame(METHOD_FRAME, b"\0\x0a\0\x1e\x07\xff\0\x02\0\0\0\x0a"),
            HEARTBEAT.to_vec(),
            frame(METHOD_FRAME, b"\0\x3c\0\x3c, and what a delivery says"),
            header(9),
            frame(3, b"\x02\0\0\xff\xff\xff\xff\xff\xff"),
            header(LARGEST_BODY),
            frame(3, &[0xFF; 5000]),
            frame(HEADER_FRAME, b"too short"),
            frame(METHOD_FRAME, b"\0"),
            frame(METHOD_FRAME, &START),
            headers(DEEPEST),
            start(DEEPEST),
        ]
        .concat()
    }

    const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xCE];

    fn look_in_pieces(bytes: &[u8], piece: usize) -> io::Result<()> {
        passed_on(bytes, piece, 0).map(drop)
    }

    fn passed_on(bytes: &[u8], piece: usize, heartbeat: u16) -> io::Result<Vec<u8>> {
        let (mut frames, mut bytes) = (Frames::new(heartbeat), bytes.to_vec());
        let mut passed = Vec::new();
        for mut left in bytes.chunks_mut(piece) {
            while !left.is_empty() {
                let (next, behind) = left.split_at_mut(left.len().min(frames.room()));
                let sound = frames.look(next, Instant::now()).map_err(|it| it.error)?;
                passed.extend_from_slice(&next[..sound]);
                let mut released = vec![0; frames.withheld.len()];
                let length = frames.release(&mut released);
                passed.extend_from_slice(&released[..length]);
                left = behind;
            }
        }
        Ok(passed)
    }

    #[test]
    fn a_broker_s_frames_pass_in_pieces_of_any_size() {
        for piece in (1..100).chain([4096, 10_000]) {
            let passed = passed_on(&session(), piece, 10);
            let passed = passed.unwrap_or_else(|error| panic!("{piece}: {error}"));
            assert!(passed == session(), "unchanged, {piece}");
        }
    }

    #[test]
    fn a_heartbeat_is_put_where_the_broker_proposes_none() {
        let start = frame(METHOD_FRAME, b"\0\x0a\0\x0a, and what a start says");
        let tune = |heartbeat| {
            let payload = [b"\0\x0a\0\x1e\x07\xff\0\x02\0\0\0", &[heartbeat][..]].concat();
            [&start[..], &frame(METHOD_FRAME, &payload), &session()[start.len()..]].concat()
        };
        for piece in (1..100).chain([4096]) {
            for (asked, put) in [(0, 0), (10, 10), (255, 255), (600, 255)] {
                let passed = passed_on(&tune(0), piece, asked).expect("AMQP");
                assert!(passed == tune(put), "{asked} in pieces of {piece}");
                let passed = passed_on(&tune(7), piece, asked).expect("AMQP");
                assert!(passed == tune(7), "{asked} in pieces of {piece}, and 7 of the broker");
            }
        }
        for (of_the_broker, asked, proposed) in [(0, 0, 0), (0, 10, 10), (0, 600, 255), (7, 10, 7)]
        {
            let mut frames = Frames::new(asked);
            frames
                .look(&mut tune(of_the_broker), Instant::now())
                .map_err(|it| it.error)
                .expect("AMQP");
            let proposal = frames.proposed.expect("a tune");
            assert_eq!(proposal.heartbeat, proposed, "{asked}, and {of_the_broker} of the broker");
            assert_eq!(proposal.frame, 0x0002_0000);
        }
    }

    #[test]
    fn what_the_broker_closes_with_is_read() {
        let close = |text: &str| {
            let length = u8::try_from(text.len()).expect("short");
            let arguments = [&320_u16.to_be_bytes(), &[length][..], text.as_bytes(), &[0; 4]];
            frame(METHOD_FRAME, &[&CLOSE[..], &arguments.concat()].concat())
        };
        for text in ["", "bye", "CONNECTION_FORCED - Node was put into maintenance mode"] {
            for piece in (1..30).chain([4096]) {
                let mut frames = Frames::new(10);
                let mut bytes = [session(), close(text), HEARTBEAT.to_vec()].concat();
                for piece in bytes.chunks_mut(piece) {
                    frames.look(piece, Instant::now()).map_err(|it| it.error).expect("AMQP");
                }
                assert_eq!(frames.closed, Some((320, text.to_string())), "{piece}");
            }
        }
        for cut in 4..12 {
            let cut = &close("bye")[HEAD..][..cut];
            look_in_pieces(&[session(), frame(METHOD_FRAME, cut)].concat(), 7).expect("no harm");
        }
    }

    #[test]
    fn a_frame_that_is_too_large_is_told_where_its_head_ends() {
        let begun = [&session()[..], &[3, 0, 1, 0x70, 0, 0, 0]].concat();
        for piece in 1..100 {
            look_in_pieces(&begun[..begun.len() - 1], piece).expect("not known yet");
            let error = look_in_pieces(&begun, piece).expect_err("too large");
            assert!(error.to_string().contains("1879048192 bytes"), "{piece}: {error}");
        }
    }

    #[test]
    fn a_body_that_is_too_large_is_told_where_its_size_ends() {
        for size in [LARGEST_BODY + 1, 1 << 46, 1 << 63, u64::MAX] {
            let begun = [&session()[..], &header(size)[..HEAD + INSIDE]].concat();
            for piece in 1..100 {
                look_in_pieces(&begun[..begun.len() - 1], piece).expect("not known yet");
                let error = look_in_pieces(&begun, piece).expect_err("too large");
                assert!(error.to_string().contains(&size.to_string()), "{piece}: {error}");
            }
        }
    }

    #[test]
    fn what_is_nested_too_deep_is_told_before_its_frame_ends() {
        for begun in [
            [session(), headers(DEEPEST + 1)].concat(),
            [session(), headers(20_000)].concat(),
            [session(), start(DEEPEST + 1)].concat(),
            start(DEEPEST + 1),
            start(20_000),
        ] {
            for piece in (1..30).chain([4096, 1 << 20]) {
                look_in_pieces(&begun[..begun.len() - 1], piece).expect("not known yet");
                let error = look_in_pieces(&begun, piece).expect_err("too deep");
                assert!(
                    error.to_string().contains("deeper than the 100 levels"),
                    "{piece}: {error}"
                );
            }
        }
    }

    #[test]
    fn what_came_before_an_objection_is_sound() {
        for wrong in [headers(DEEPEST + 1), header(u64::MAX), b"\x03\0\x01\x70\0\0\0".to_vec()] {
            let mut bytes = [session(), wrong.clone()].concat();
            let objection = Frames::new(10).look(&mut bytes, Instant::now());
            let Objection { sound, .. } = objection.expect_err("there is something wrong");
            assert!((session().len()..bytes.len()).contains(&sound), "{sound} before {wrong:?}");
        }
    }

    #[test]
    fn properties_are_withheld_until_they_are_whole() {
        let header = header_with(0, b"\x20\0\0\0\0\x08\x01kS\0\0\0\x01\xe9");
        let properties = HEAD + INSIDE;
        for cut in properties + 1..header.len() {
            let mut frames = Frames::new(10);
            frames.look(&mut session(), Instant::now()).expect("AMQP");
            let (mut begun, mut rest) = (header[..cut].to_vec(), header[cut..].to_vec());
            let mut room = [0; 1000];

            assert_eq!(frames.look(&mut begun, Instant::now()).expect("AMQP"), properties);
            assert_eq!((frames.release(&mut room), frames.room()), (0, rest.len()), "{cut}");
            assert_eq!(frames.look(&mut rest, Instant::now()).expect("AMQP"), 0);
            assert_eq!(frames.release(&mut room), header.len() - properties, "{cut}");
            assert_eq!((frames.release(&mut room), frames.room()), (0, usize::MAX), "{cut}");
        }
    }

    #[test]
    fn a_method_that_is_larger_than_any_is_told_by_its_name() {
        let large = |method: &[u8]| frame(METHOD_FRAME, &[method, &[0; 1021]].concat());
        for piece in [1, 7, 19, 4096] {
            look_in_pieces(&[session(), large(&START)].concat(), piece).expect("start is large");
            let error = look_in_pieces(&[session(), large(&TUNE)].concat(), piece);
            let error = error.expect_err("tune is not").to_string();
            assert!(error.contains("method of 1025 bytes"), "{piece}: {error}");
        }
    }

    #[test]
    fn what_has_begun_and_does_not_come_on_is_told_while_heartbeats_come() {
        let parts = [
            frame(METHOD_FRAME, b"\0\x3c\0\x3c, and what a delivery says"),
            header(6000),
            frame(3, &[0xFF; 1000]),
            frame(3, &[0xFF; 5000]),
        ];
        let ends: Vec<_> = (1..4).map(|count| parts[..count].concat().len()).collect();
        let whole = parts.concat();
        for cut in ends.iter().copied().chain([whole.len() - 1000, whole.len()]) {
            let (mut frames, mut now) = (Frames::new(10), Instant::now());
            frames.look(&mut [&session()[..], &whole[..cut]].concat(), now).expect("it comes on");
            let mut beats = 0..100;
            let stuck = beats.find_map(|_| {
                now += Duration::from_secs(1);
                frames.look(&mut HEARTBEAT.clone(), now).err().map(|it| it.error)
            });
            if cut == whole.len() {
                assert!(stuck.is_none(), "{stuck:?}");
                continue;
            }
            let error = stuck.expect("it does not come on").to_string();
            let what = if ends.contains(&cut) { "a message on channel 0" } else { "a frame" };
            assert!(error.contains(what) && beats.start == 31, "{cut}: {error} {beats:?}");
        }
    }

    #[test]
    fn a_first_answer_of_anything_else_is_told_and_cut_short() {
        for (answer, told) in [
            (&b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n"[..], "\"HTTP/1.1 400 Bad Request\""),
            (b"AMQP\0\x01\0\0", "\"AMQP\\x00\\x01\\x00\\x00\""),
            (b"\x01\0\0\xff\xff\xff\xff", "\"\\x01\\x00\\x00\\xff\\xff\\xff\\xff\""),
            (b"\x01\0\x01\0", "\"\\x01\\x00\\x01\\x00\""),
            (b"\x15\x03\x03\0\x02\x02\x0a", "amqps://"),
            (&[b'x'; 100], "xxx...\""),
        ] {
            let error = look_in_pieces(answer, 4096).expect_err(told);
            assert!(error.to_string().ends_with(told) || told == "amqps://", "{error}");
            assert!(error.to_string().contains(told), "{error}");
            assert!(error.to_string().len() < 100, "{error}");
        }
    }

    #[test]
    fn a_wrong_answer_in_single_bytes_is_seen_at_the_first_wrong_one() {
        assert!(look_in_pieces(b"H", 1).is_err());
        assert!(look_in_pieces(b"\x01\0\0\xff\xff\xff\xff", 1).is_err());
    }
}
