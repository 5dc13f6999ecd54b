//! Gives a consumer its tag, which RabbitMQ shows: amiquip 0.4.2 always leaves it to the broker
//! (channel.rs:339), but writes every argument. The tag travels as an argument, and takes its place in
//! the frame when that is written. Pure.

/// The argument that holds the tag. No broker sees it, unless the client library writes another frame
/// than we know; RabbitMQ ignores what it does not know here.
pub(super) const ARGUMENT: &str = "x-rabbit-work-tag";

/// The longest tag: a short string.
const LONGEST: usize = 255;

/// What a consume without a tag begins with, besides its channel, size and queue.
const METHOD: u8 = 1;
const CONSUME: [u8; 4] = [0, 60, 0, 20];

/// A frame's type, channel and size; and class, method and ticket of a consume.
const HEAD: usize = 7;
const BEFORE_QUEUE: usize = HEAD + 6;

const FRAME_END: u8 = 0xCE;

/// The tag of a worker's thread, on a connection of this name. A channel's subscriptions count from 1.
/// No two have the same tag: RabbitMQ counts the prefetch by it, so that an ack of what an earlier
/// subscription received would let a later one receive more.
pub(crate) fn tag_of_thread(name: &str, thread: usize, subscription: usize) -> String {
    let end = match subscription {
        1 => format!(".{thread}"),
        _ => format!(".{thread}.{subscription}"),
    };
    let mut length = name.len().min(LONGEST - end.len());
    while !name.is_char_boundary(length) {
        length -= 1;
    }
    format!("{}{end}", &name[..length])
}

/// The consume that is first in these bytes with its tag in place, and the length of what it replaces.
/// `None` if that is no such consume, or not all of it.
pub(super) fn with_tag(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let size = u32::from_be_bytes(bytes.get(3..HEAD)?.try_into().ok()?);
    let length = usize::try_from(size).ok()?.checked_add(HEAD + 1)?;
    let frame = bytes.get(..length)?.strip_suffix(&[FRAME_END])?;
    if frame[0] != METHOD || !frame[HEAD..].starts_with(&CONSUME) {
        return None;
    }
    let queue = usize::from(*frame.get(BEFORE_QUEUE)?);
    let (before, rest) = frame.split_at_checked(BEFORE_QUEUE + 1 + queue)?;
    // No tag yet; the flags; and the size of the arguments, which are the rest.
    let [0, flags, size @ ..] = rest else { return None };
    let (size, arguments) = size.split_first_chunk()?;
    (u32::from_be_bytes(*size) as usize == arguments.len()).then_some(())?;
    let (arguments, tag) = take_tag(arguments)?;
    let tag_length = u8::try_from(tag.len()).ok()?;
    let size = u32::try_from(arguments.len()).ok()?.to_be_bytes();
    let rest = [&[tag_length], tag, &[*flags], &size, arguments].concat();
    let size = u32::try_from(before.len() - HEAD + rest.len()).ok()?.to_be_bytes();
    Some(([&before[..3], &size, &before[HEAD..], &rest, &[FRAME_END]].concat(), length))
}

/// The arguments before the tag, and the tag. It is the last one: amiquip sorts them, and what it
/// writes with them comes earlier in the alphabet.
fn take_tag(arguments: &[u8]) -> Option<(&[u8], &[u8])> {
    let name = ARGUMENT.as_bytes();
    let place = arguments.windows(name.len()).rposition(|it| it == name)?;
    let (before, rest) = arguments.split_at(place);
    let before = before.strip_suffix(&[u8::try_from(name.len()).ok()?])?;
    let (size, tag) = rest[name.len()..].strip_prefix(b"S")?.split_first_chunk()?;
    (u32::from_be_bytes(*size) as usize == tag.len()).then_some((before, tag))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use amq_protocol::frame::{AMQPFrame, gen_frame, parse_frame};
    use amq_protocol::protocol::AMQPClass;
    use amq_protocol::protocol::basic::{AMQPMethod, Consume};
    use amq_protocol::types::{AMQPValue, FieldTable};

    /// As amiquip writes it.
    fn frame(channel: u16, consume: &Consume) -> Vec<u8> {
        let frame =
            AMQPFrame::Method(channel, AMQPClass::Basic(AMQPMethod::Consume(consume.clone())));
        let mut bytes = vec![0; 4096];
        let (_, length) = gen_frame((&mut bytes, 0), &frame).expect("room");
        bytes.truncate(length);
        bytes
    }

    fn consume(queue: &str, tag: &str, arguments: FieldTable) -> Consume {
        Consume {
            ticket: 0,
            queue: queue.into(),
            consumer_tag: tag.into(),
            no_local: false,
            no_ack: true,
            exclusive: false,
            nowait: false,
            arguments,
        }
    }

    fn asking_for(tag: &str, mut others: FieldTable) -> FieldTable {
        others.insert(ARGUMENT.into(), AMQPValue::LongString(tag.into()));
        others
    }

    fn others() -> FieldTable {
        [("x-priority".to_owned(), AMQPValue::LongLongInt(3))].into_iter().collect()
    }

    /// As amiquip writes it, and as it is to be written.
    pub(in crate::amqp) fn consume_with_a_tag() -> (Vec<u8>, Vec<u8>) {
        let asked = frame(1, &consume("q", "", asking_for("tag", others())));
        (asked, frame(1, &consume("q", "tag", others())))
    }

    #[test]
    fn a_tag_names_its_thread_and_a_name_that_is_too_long_is_cut() {
        assert_eq!(tag_of_thread("mail@host #7", 12, 1), "mail@host #7.12");
        assert_eq!(tag_of_thread("mail@host #7", 12, 2), "mail@host #7.12.2");
        let tag = tag_of_thread(&"é".repeat(200), 1, 1);
        assert_eq!(tag, format!("{}.1", "é".repeat(126)));
    }

    #[test]
    fn what_is_no_consume_with_a_tag_of_ours_is_left_alone() {
        let known = frame(1, &consume("q", "", asking_for("tag", others())));
        assert!(with_tag(&known).is_some());
        assert_eq!(with_tag(&frame(1, &consume("q", "", others()))), None);
        assert_eq!(with_tag(&frame(1, &consume("q", "own", asking_for("tag", others())))), None);
        assert_eq!(
            with_tag(&frame(1, &consume("q", "", asking_for(&"x".repeat(256), others())))),
            None
        );
        let later = [("y".to_owned(), AMQPValue::LongLongInt(3))].into_iter().collect();
        assert_eq!(with_tag(&frame(1, &consume("q", "", asking_for("tag", later)))), None);
        for cut in 0..known.len() {
            assert_eq!(with_tag(&known[..cut]), None, "{cut}");
        }
        for (place, other) in [(0, 3), (8, 61), (10, 21), (known.len() - 1, 0)] {
            let mut odd = known.clone();
            odd[place] = other;
            assert_eq!(with_tag(&odd), None, "{place}");
        }
    }

    mod property {
        use super::*;
        use proptest::prelude::*;

        proptest! {
            #[test]
            fn the_tag_alone_changes(
                channel in 1..u16::MAX, queue in "\\PC{0,60}", tag in "\\PC{0,60}", has_others: bool,
                behind in proptest::collection::vec(any::<u8>(), 0..20),
            ) {
                let others = if has_others { others() } else { FieldTable::new() };
                let written = frame(channel, &consume(&queue, "", asking_for(&tag, others.clone())));
                let wanted = frame(channel, &consume(&queue, &tag, others));
                let all = [&*written, &behind].concat();
                prop_assert_eq!(with_tag(&all), Some((wanted.clone(), written.len())));
                prop_assert!(parse_frame(&wanted).is_ok());
            }

            #[test]
            fn any_bytes_are_read(
                bytes in proptest::collection::vec(any::<u8>(), 0..80), place in 0..60_usize, byte: u8,
            ) {
                let _ = with_tag(&bytes);
                let _ = with_tag(&[&[METHOD, 0, 1, 0, 0, 0, 40], &CONSUME[..], &bytes].concat());
                let mut odd = frame(1, &consume("q", "", asking_for("tag", others())));
                odd[place] = byte;
                if let Some((frame, length)) = with_tag(&odd) {
                    prop_assert_eq!(length, odd.len());
                    prop_assert_eq!(frame.len() + 5 + ARGUMENT.len(), length - 1);
                }
            }
        }
    }
}
