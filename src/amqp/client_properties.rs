//! Completes the client properties that amiquip announces in its start-ok, with the connection's name:
//! amiquip 0.4.2 has no setting for them (connection_options.rs:129). Pure but for the writing.

use std::borrow::Cow;
use std::io::{self, Write};

use crate::amqp::guard::LARGEST_FRAME;

/// The start of what is written to a broker: the protocol header, then the start-ok, which gets
/// our properties. All else passes unchanged, and so does a first frame that is not a start-ok.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    /// What RabbitMQ shows as the connection's name.
    pub(crate) name: String,
    stage: Stage,
    /// How much of the header, or of the completed frame, is written.
    written: usize,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Header,
    /// What came of the first frame. It is written after all of it has come.
    Collecting(Vec<u8>),
    /// The first frame as it is to be written, and how many bytes of the caller's it ends with.
    Writing {
        frame: Vec<u8>,
        taken: usize,
    },
    Over,
}

/// The capability that we add. With it, RabbitMQ says in words that it refuses a login
/// (<https://www.rabbitmq.com/docs/access-control>, "authentication failure notifications").
const FAILURE_CLOSE: &[u8] = b"authentication_failure_close";

/// The product that amiquip announces.
const AMIQUIP: &str = "amiquip";

/// The property that RabbitMQ takes for the connection's name
/// (<https://www.rabbitmq.com/docs/connections#client-provided-names>).
const NAME: &[u8] = b"connection_name";

/// "AMQP" and the version.
const HEADER: usize = 8;

/// A frame's type, channel and size.
const HEAD: usize = 7;

/// The type and the channel of a start-ok, and its class and method, which follow the size.
const METHOD_ON_CHANNEL_0: [u8; 3] = [1, 0, 0];
const START_OK: [u8; 4] = [0, 10, 0, 11];

const FRAME_END: u8 = 0xCE;

impl Opening {
    /// Whether all that follows passes unchanged.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// Writes the next bytes to `line`, and returns how many of them are done. The last bytes of the
    /// start-ok are done when all of the completed one is written: the caller does not offer again
    /// what it takes for written.
    pub(crate) fn write(&mut self, bytes: &[u8], line: &mut impl Write) -> io::Result<usize> {
        loop {
            match &mut self.stage {
                Stage::Header => {
                    let length = line.write(&bytes[..bytes.len().min(HEADER - self.written)])?;
                    self.written += length;
                    if self.written == HEADER {
                        (self.stage, self.written) = (Stage::Collecting(Vec::new()), 0);
                    }
                    return Ok(length);
                }
                Stage::Collecting(came) => {
                    let before = came.len();
                    came.extend_from_slice(bytes);
                    let Some(length) = length_of_frame(came) else { return Ok(bytes.len()) };
                    came.truncate(length);
                    let frame = completed(came, &self.name).unwrap_or_else(|| came.clone());
                    self.stage = Stage::Writing { frame, taken: length - before };
                }
                Stage::Writing { frame, taken } => {
                    while self.written < frame.len() {
                        match line.write(&frame[self.written..])? {
                            0 => return Err(io::ErrorKind::WriteZero.into()),
                            length => self.written += length,
                        }
                    }
                    let taken = *taken;
                    self.stage = Stage::Over;
                    return Ok(taken);
                }
                Stage::Over => return line.write(bytes),
            }
        }
    }
}

/// How much of what came belongs to the first frame, once that is whole: all of it, if it is not
/// what a start-ok begins with.
fn length_of_frame(came: &[u8]) -> Option<usize> {
    if !METHOD_ON_CHANNEL_0.iter().zip(came).all(|(wanted, byte)| wanted == byte) {
        return Some(came.len());
    }
    let size = length(came.get(METHOD_ON_CHANNEL_0.len()..HEAD)?)?;
    if size > LARGEST_FRAME as usize {
        return Some(came.len());
    }
    let length = HEAD + size + 1;
    (length <= came.len()).then_some(length)
}

/// The start-ok with our properties; `None` if the frame is not one of amiquip's, or has our capability.
fn completed(frame: &[u8], name: &str) -> Option<Vec<u8>> {
    let frame = frame.strip_prefix(&METHOD_ON_CHANNEL_0)?.strip_suffix(&[FRAME_END])?;
    let (payload, []) = split_sized(frame)? else { return None };
    let (properties, rest) = split_sized(payload.strip_prefix(&START_OK)?)?;
    let mut properties = read_table(properties)?;
    properties.contains(&(b"product", text(AMIQUIP))).then_some(())?;
    let (_, capabilities) = properties.iter_mut().find(|(name, _)| *name == b"capabilities")?;
    *capabilities = with_capabilities(capabilities)?.into();
    properties.retain(|(name, _)| ![NAME, b"product", b"version"].contains(name));
    properties.push((NAME, text(name)));
    properties.push((b"product", text("rabbit-work")));
    properties.push((b"version", text(env!("CARGO_PKG_VERSION"))));
    let payload = [&START_OK, &*write_table(&properties), rest].concat();
    Some([&METHOD_ON_CHANNEL_0, &*sized(&payload), &[FRAME_END]].concat())
}

fn text(text: &str) -> Cow<'static, [u8]> {
    [b"S", &*sized(text.as_bytes())].concat().into()
}

fn with_capabilities(value: &[u8]) -> Option<Vec<u8>> {
    let (table, _) = split_sized(value.strip_prefix(b"F")?)?;
    let mut table = read_table(table)?;
    table.iter().all(|(name, _)| *name != FAILURE_CLOSE).then_some(())?;
    table.push((FAILURE_CLOSE, b"t\x01"[..].into()));
    Some([b"F", &*write_table(&table)].concat())
}

/// The names of a table, each with its value, which begins with its type.
type Table<'a> = Vec<(&'a [u8], Cow<'a, [u8]>)>;

/// Reads the types of value that amiquip writes here: text, truths and tables.
fn read_table(mut bytes: &[u8]) -> Option<Table<'_>> {
    let mut table = Table::new();
    while let Some((length, rest)) = bytes.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        let size = match rest.first()? {
            b'S' | b'F' => self::length(rest.get(1..5)?)?.checked_add(5)?,
            b't' => 2,
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(size)?;
        table.push((name, value.into()));
        bytes = rest;
    }
    Some(table)
}

fn write_table(table: &Table<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in table {
        bytes.extend(u8::try_from(name.len()));
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
    }
    sized(&bytes)
}

/// What follows a length, as far as that goes, and the rest.
fn split_sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_at_checked(4)?;
    rest.split_at_checked(length(size)?)
}

fn length(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes.try_into().ok()?)).ok()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTOCOL: &[u8] = b"AMQP\0\0\x09\x01";

    /// The client properties of amiquip 0.4.2, with these capabilities and these last.
    fn properties(capabilities: &[&[u8]], last: &[(&'static [u8], &str)]) -> Vec<u8> {
        let able = capabilities.iter().map(|name| (*name, Cow::from(&b"t\x01"[..])));
        let able = [b"F", &*write_table(&able.collect())].concat();
        let mut table: Table<'_> = vec![
            (b"capabilities", able.into()),
            (b"information", text("client library: amiquip")),
            (b"platform", text("linux / rustc")),
        ];
        table.extend(last.iter().map(|(name, value)| (*name, text(value))));
        write_table(&table)
    }

    fn of_amiquip() -> Vec<u8> {
        properties(&OF_AMIQUIP, &[(b"product", AMIQUIP), (b"version", "0.4.2")])
    }

    const OF_AMIQUIP: [&[u8]; 2] = [b"connection.blocked", b"consumer_cancel_notify"];

    fn start_ok(properties: &[u8]) -> Vec<u8> {
        method(&[&START_OK, properties, b"\x05PLAIN\0\0\0\x04\0u\0p\x05en_US"].concat())
    }

    fn method(payload: &[u8]) -> Vec<u8> {
        [&METHOD_ON_CHANNEL_0, &*sized(payload), &[FRAME_END]].concat()
    }

    fn behind() -> Vec<u8> {
        [method(b"\0\x0a\0\x1f, and what a tune-ok says"), b"\x08\0\0\0\0\0\0\xce".into()].concat()
    }

    fn completed_start_ok() -> Vec<u8> {
        let [first, second] = OF_AMIQUIP;
        let able = [first, second, FAILURE_CLOSE];
        let version = env!("CARGO_PKG_VERSION");
        let ours: [(&'static [u8], &str); 3] =
            [(b"connection_name", "a name"), (b"product", "rabbit-work"), (b"version", version)];
        start_ok(&properties(&able, &ours))
    }

    /// Takes at most so many bytes at a time, and then none for once.
    struct Line {
        room: usize,
        blocks: bool,
        written: Vec<u8>,
    }

    impl Write for Line {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.blocks = !self.blocks;
            if !self.blocks {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let length = self.room.min(bytes.len());
            self.written.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What comes of pieces that are written as amiquip does: what is not taken is offered again,
    /// with what follows, and nothing is once all is taken.
    fn written(pieces: &[&[u8]], room: usize) -> Vec<u8> {
        written_by("a name", pieces, room)
    }

    /// The same on a connection of this name.
    fn written_by(name: &str, pieces: &[&[u8]], room: usize) -> Vec<u8> {
        let mut line = Line { room, blocks: false, written: Vec::new() };
        let mut opening = Opening { name: name.into(), ..Opening::default() };
        let mut left = Vec::new();
        for piece in pieces {
            left.extend_from_slice(piece);
            while !left.is_empty() {
                match opening.write(&left, &mut line) {
                    Ok(length) => drop(left.drain(..length)),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        }
        line.written
    }

    const ROOMS: [usize; 4] = [1, 7, 100, 4096];

    #[test]
    fn a_start_ok_is_completed_whatever_pieces_it_comes_and_is_written_in() {
        let sent = [PROTOCOL, &start_ok(&of_amiquip()), &behind()].concat();
        let wanted = [PROTOCOL, &completed_start_ok(), &behind()].concat();
        for room in ROOMS {
            assert!(written(&[&sent], room) == wanted, "whole, by {room}");
            let bytes: Vec<_> = sent.chunks(1).collect();
            assert!(written(&bytes, room) == wanted, "in single bytes, by {room}");
            for cut in 1..sent.len() {
                let (begun, rest) = sent.split_at(cut);
                assert!(written(&[begun, rest], room) == wanted, "cut at {cut}, by {room}");
            }
        }
    }

    #[test]
    fn a_start_ok_counts_as_written_when_all_of_it_is() {
        let start_ok = start_ok(&of_amiquip());
        let mut line = Line { room: 4096, blocks: false, written: Vec::new() };
        let mut opening = Opening { name: "a name".into(), ..Opening::default() };
        assert_eq!(opening.write(PROTOCOL, &mut line).expect("room"), PROTOCOL.len());
        line.room = start_ok.len();
        line.blocks = false;

        let blocked = opening.write(&start_ok, &mut line).expect_err("it is longer now");
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(opening.write(&start_ok, &mut line).expect("room"), start_ok.len());
        assert!(line.written == [PROTOCOL, &completed_start_ok()].concat());
    }

    #[test]
    fn what_is_not_recognised_is_left_alone() {
        let known = of_amiquip();
        let mut without_end = start_ok(&known);
        *without_end.last_mut().expect("a byte") = 0;
        let mut on_channel_1 = start_ok(&known);
        on_channel_1[2] = 1;
        let product: (&[u8], _) = (b"product", text(AMIQUIP));
        for first in [
            start_ok(&properties(&OF_AMIQUIP, &[(b"product", "another client")])),
            start_ok(&properties(&OF_AMIQUIP, &[])),
            start_ok(&properties(&[FAILURE_CLOSE], &[(b"product", AMIQUIP)])),
            start_ok(&write_table(&vec![product.clone(), (b"more", b"Z"[..].into())])),
            start_ok(&write_table(&vec![product.clone(), (b"capabilities", b"t\x01"[..].into())])),
            start_ok(&write_table(&vec![product])),
            start_ok(&sized(&known[4..known.len() - 1])),
            start_ok(b"\0"),
            method(b"\0\x0a\0\x0b"),
            method(b""),
            method(&[&b"\0\x0a\0\x1f"[..], &known].concat()),
            b"\x01\0\0\xff\xff\xff\xff and more".to_vec(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            without_end,
            on_channel_1,
        ] {
            let sent = [PROTOCOL, &first, &behind()].concat();
            for room in ROOMS {
                assert!(written(&[&sent], room) == sent, "whole, by {room}: {first:?}");
                for cut in 1..sent.len() {
                    let (begun, rest) = sent.split_at(cut);
                    assert!(written(&[begun, rest], room) == sent, "{cut}, by {room}: {first:?}");
                }
            }
        }
    }

    mod property {
        use super::*;
        use amq_protocol::frame::{AMQPFrame, gen_frame, parse_frame};
        use amq_protocol::protocol::AMQPClass;
        use amq_protocol::protocol::connection::{AMQPMethod, StartOk};
        use amq_protocol::types::{AMQPValue, FieldTable};
        use proptest::collection::{btree_map, vec};
        use proptest::prelude::*;

        /// As amiquip writes it.
        fn frame(start_ok: StartOk) -> Vec<u8> {
            let method = AMQPClass::Connection(AMQPMethod::StartOk(start_ok));
            let mut bytes = vec![0; 1 << 16];
            let frame = AMQPFrame::Method(0, method);
            let (_, length) = gen_frame((&mut bytes, 0), &frame).expect("room");
            bytes.truncate(length);
            bytes
        }

        /// What amiquip writes of itself, in the last place, and anything else of the types that it writes.
        fn client_properties() -> impl Strategy<Value = FieldTable> {
            let known = ["connection_name", "version"].map(String::from);
            let name = || prop_oneof!["\\PC{0,40}", prop::sample::select(known.clone().to_vec())];
            let capabilities = btree_map(name(), any::<bool>().prop_map(AMQPValue::Boolean), 0..5);
            let value = prop_oneof![
                "\\PC{0,300}".prop_map(AMQPValue::LongString),
                any::<bool>().prop_map(AMQPValue::Boolean),
                capabilities.clone().prop_map(AMQPValue::FieldTable),
            ];
            (btree_map(name(), value, 0..8), capabilities).prop_map(|(mut table, capabilities)| {
                table.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
                table.insert("product".into(), AMQPValue::LongString(AMIQUIP.into()));
                table
            })
        }

        fn login() -> impl Strategy<Value = StartOk> {
            (client_properties(), "\\PC{0,30}", "\\PC{0,300}", "\\PC{0,30}").prop_map(
                |(client_properties, mechanism, response, locale)| StartOk {
                    client_properties,
                    mechanism,
                    response,
                    locale,
                },
            )
        }

        /// What a broker is to read of it on a connection of this name.
        fn completed(mut start_ok: StartOk, name: &str) -> StartOk {
            let properties = &mut start_ok.client_properties;
            let Some(AMQPValue::FieldTable(able)) = properties.get_mut("capabilities") else {
                panic!("no capabilities");
            };
            let failure_close = String::from_utf8_lossy(FAILURE_CLOSE).into_owned();
            able.insert(failure_close, AMQPValue::Boolean(true));
            for (key, value) in [
                ("connection_name", name),
                ("product", "rabbit-work"),
                ("version", env!("CARGO_PKG_VERSION")),
            ] {
                properties.insert(key.into(), AMQPValue::LongString(value.into()));
            }
            start_ok
        }

        proptest! {
            #[test]
            fn a_broker_reads_the_completed_start_ok_and_what_follows_it(
                start_ok in login(), name in "\\PC{0,255}",
                cuts in vec(any::<prop::sample::Index>(), 0..5), room in 1..500_usize,
            ) {
                let sent = [PROTOCOL, &frame(start_ok.clone()), &behind()].concat();
                let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(sent.len())).collect();
                cuts.extend([0, sent.len()]);
                cuts.sort_unstable();
                let pieces: Vec<_> = cuts.windows(2).map(|ends| &sent[ends[0]..ends[1]]).collect();

                let written = written_by(&name, &pieces, room);

                let written = written.strip_prefix(PROTOCOL).expect("the protocol header");
                let (rest, read) = parse_frame(written).expect("a frame");
                let wanted = completed(start_ok, &name);
                // No name is in it twice.
                prop_assert_eq!(written.len() - rest.len(), frame(wanted.clone()).len());
                let wanted = AMQPMethod::StartOk(wanted);
                prop_assert_eq!(read, AMQPFrame::Method(0, AMQPClass::Connection(wanted)));
                prop_assert_eq!(rest, &behind()[..]);
            }

            #[test]
            fn a_damaged_start_ok_passes_or_waits_and_what_follows_stays(
                start_ok in login(), place: prop::sample::Index, byte: u8,
                cut: prop::sample::Index, room in 1..500_usize,
            ) {
                let mut first = frame(start_ok);
                let place = place.index(first.len());
                first[place] = byte;
                let sent = [PROTOCOL, &first, &behind()].concat();
                let (begun, rest) = sent.split_at(cut.index(sent.len()));
                let written = written(&[begun, rest], room);
                // The frame may be longer now than what came.
                prop_assert!(sent.starts_with(&written) || written.ends_with(&behind()), "{:?}", written);
            }

            #[test]
            fn any_bytes_pass_or_wait(bytes in vec(any::<u8>(), 0..100), is_a_method: bool) {
                let head: &[u8] = if is_a_method { &METHOD_ON_CHANNEL_0 } else { &[] };
                let sent = [PROTOCOL, head, &bytes].concat();
                prop_assert!(sent.starts_with(&written(&[&sent], 7)));
            }
        }
    }
}
