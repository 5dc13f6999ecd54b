//! Walks through the tables and arrays of a frame. It limits their nesting: amiquip parses them by
//! recursion without a limit, and a stack overflow ends the process (amq-protocol-types 1.2.0
//! parsing.rs:50, 54). And it sanitizes text that is not UTF-8, in tables and in the properties
//! around them: amiquip stops parsing there without an error, and all that follows is lost. Pure.

use std::str;

/// How deep tables and arrays may be nested. The client library's thread has a stack of 2 MiB,
/// which some 550 levels use up in a debug build. RabbitMQ's own headers have four levels.
pub(crate) const DEEPEST: usize = 100;

/// Tables and arrays are nested deeper than [`DEEPEST`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooDeep;

/// A value of a table or of an array, and what follows it.
struct Entry<'a> {
    /// Empty in an array.
    name: &'a mut [u8],
    kind: &'a mut u8,
    inside: &'a mut [u8],
    after: &'a mut [u8],
}

const TABLE: u8 = b'F';
const ARRAY: u8 = b'A';
const TEXT: u8 = b'S';
const BYTES: u8 = b'x';

/// How a property is written.
#[derive(Clone, Copy)]
enum Written {
    Text,
    Table,
    Bytes(usize),
}

/// How properties are written, in the order of their flags from the highest on
/// (<https://www.rabbitmq.com/amqp-0-9-1-reference#class.basic>).
const PROPERTIES: [Written; 14] = {
    use Written::{Bytes, Table, Text};
    [
        Text,
        Text,
        Table,
        Bytes(1),
        Bytes(1),
        Text,
        Text,
        Text,
        Text,
        Bytes(8),
        Text,
        Text,
        Text,
        Text,
    ]
};

/// Sanitizes a message's properties.
pub(crate) fn sanitize_properties(properties: &mut [u8]) -> Result<(), TooDeep> {
    let Some((flags, mut left)) = properties.split_first_chunk_mut() else { return Ok(()) };
    let flags = u16::from_be_bytes(*flags);
    for (place, written) in PROPERTIES.into_iter().enumerate() {
        if flags & (1 << 15 >> place) == 0 {
            continue;
        }
        let split = match written {
            Written::Text => short(left),
            Written::Table => long(left),
            Written::Bytes(count) => left.split_at_mut_checked(count),
        };
        let Some((property, after)) = split else { return Ok(()) };
        match written {
            Written::Text => sanitize_text(property),
            Written::Table => sanitize(DEEPEST - 1, TABLE, property)?,
            Written::Bytes(_) => {}
        }
        left = after;
    }
    Ok(())
}

/// Sanitizes the table that is first in these bytes, whose length stays. If it cannot be parsed,
/// the client library does not parse it either.
pub(crate) fn sanitize_table(bytes: &mut [u8]) -> Result<(), TooDeep> {
    long(bytes).map_or(Ok(()), |(table, _)| sanitize(DEEPEST - 1, TABLE, table))
}

/// Sanitizes what is in this table or array, which may be nested by so many levels. Ends at a value
/// that makes no sense: the table around this one continues after it.
fn sanitize(levels: usize, holder: u8, inside: &mut [u8]) -> Result<(), TooDeep> {
    let mut left = inside;
    while let Some(entry) = next(holder, left) {
        sanitize_text(entry.name);
        match *entry.kind {
            kind @ (TABLE | ARRAY) => {
                sanitize(levels.checked_sub(1).ok_or(TooDeep)?, kind, entry.inside)?;
            }
            // Text and bytes have the same layout, and the client library accepts any bytes.
            TEXT if str::from_utf8(entry.inside).is_err() => *entry.kind = BYTES,
            _ => {}
        }
        left = entry.after;
    }
    Ok(())
}

/// A name, or a property, can be nothing but text.
fn sanitize_text(text: &mut [u8]) {
    if str::from_utf8(text).is_err() {
        text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    }
}

/// The first value of a table, where it has a name, or of an array.
fn next(holder: u8, left: &mut [u8]) -> Option<Entry<'_>> {
    let (name, value) = if holder == TABLE { short(left)? } else { left.split_at_mut(0) };
    let (kind, value) = value.split_first_mut()?;
    let (inside, after) = split(*kind, value)?;
    Some(Entry { name, kind, inside, after })
}

/// What is in the value that is first in these bytes, and what follows it.
fn split(kind: u8, bytes: &mut [u8]) -> Option<(&mut [u8], &mut [u8])> {
    let size = match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        TEXT | BYTES | TABLE | ARRAY => return long(bytes),
        _ => return None,
    };
    bytes.split_at_mut_checked(size)
}

/// What is in a value whose size has four bytes, and what follows it.
fn long(bytes: &mut [u8]) -> Option<(&mut [u8], &mut [u8])> {
    let (size, left) = bytes.split_first_chunk_mut()?;
    left.split_at_mut_checked(u32::from_be_bytes(*size) as usize)
}

/// What is in a string whose size has one byte, and what follows it.
fn short(bytes: &mut [u8]) -> Option<(&mut [u8], &mut [u8])> {
    let (size, left) = bytes.split_first_mut()?;
    left.split_at_mut_checked(usize::from(*size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(bytes: &[u8]) -> Vec<u8> {
        let size = u32::try_from(bytes.len()).expect("a small value");
        [&size.to_be_bytes(), bytes].concat()
    }

    /// A value of so many levels.
    fn nested(kind: u8, levels: usize) -> Vec<u8> {
        let name: &[u8] = if kind == TABLE { b"\x01k" } else { b"" };
        (0..levels)
            .fold(b"V".to_vec(), |inside, _| [&[kind], &*sized(&[name, &inside].concat())].concat())
    }

    /// A table of these values.
    fn table(values: &[&[u8]]) -> Vec<u8> {
        let named = values.iter().map(|value| [b"\x04name", *value].concat());
        sized(&named.collect::<Vec<_>>().concat())
    }

    fn table_is_too_deep(bytes: &[u8]) -> bool {
        sanitize_table(&mut bytes.to_vec()).is_err()
    }

    fn properties_are_too_deep(bytes: &[u8]) -> bool {
        sanitize_properties(&mut bytes.to_vec()).is_err()
    }

    /// Values of every type, and two of each that contains others.
    fn values() -> Vec<Vec<u8>> {
        let plain = |(kind, size)| [&[kind][..], &vec![0xFF; size]].concat();
        let sizes = [(b'V', 0), (b't', 1), (b'b', 1), (b'B', 1), (b's', 2), (b'U', 2), (b'u', 2)];
        let more = [(b'I', 4), (b'i', 4), (b'f', 4), (b'D', 5), (b'L', 8), (b'l', 8), (b'd', 8)];
        let plain = sizes.into_iter().chain(more).chain([(b'T', 8)]).map(plain);
        let long = [TEXT, BYTES, TABLE, ARRAY].map(|kind| long_value(kind, b"AAAA"));
        let empty = [TABLE, ARRAY].map(|kind| long_value(kind, b""));
        plain.chain(long).chain(empty).collect()
    }

    /// A value of these bytes.
    fn long_value(kind: u8, bytes: &[u8]) -> Vec<u8> {
        [&[kind], &*sized(bytes)].concat()
    }

    /// A value at many depths and places, each behind values of every type.
    fn everywhere(value: &[u8]) -> Vec<u8> {
        let behind = |value: &[u8]| [values(), vec![value.to_vec()], values()].concat();
        let listed = long_value(ARRAY, &behind(value).concat());
        let values = behind(&listed);
        let values: Vec<_> = values.iter().map(Vec::as_slice).chain([value]).collect();
        let inner = [&[TABLE], &*table(&values)].concat();
        table(&[value, &long_value(ARRAY, &[&inner, value, &inner].concat()), &inner, value])
    }

    fn sanitized(table: &[u8]) -> Vec<u8> {
        let mut bytes = table.to_vec();
        sanitize_table(&mut bytes).expect("not too deep");
        bytes
    }

    #[test]
    fn a_table_may_be_as_deep_as_the_limit_and_no_deeper() {
        for kind in [TABLE, ARRAY] {
            assert!(!table_is_too_deep(&table(&[&nested(kind, DEEPEST - 1)])));
            assert!(table_is_too_deep(&table(&[&nested(kind, DEEPEST)])));
            assert!(table_is_too_deep(&table(&[&nested(kind, 10_000)])));
        }
    }

    #[test]
    fn what_is_deep_is_found_behind_values_of_every_type() {
        for value in values() {
            assert!(!table_is_too_deep(&table(&[&value, &value])), "{value:?}");
            let deep = nested(ARRAY, DEEPEST);
            assert!(table_is_too_deep(&table(&[&value, &deep])), "{value:?}");
        }
    }

    #[test]
    fn a_string_that_looks_deep_is_not() {
        let text = [b"S", &*sized(&nested(ARRAY, 1000))].concat();
        assert!(!table_is_too_deep(&table(&[&text])));
    }

    #[test]
    fn what_makes_no_sense_ends_its_own_table_and_not_the_one_around_it() {
        let deep = nested(ARRAY, DEEPEST);
        let nonsense = [&b"A"[..], &sized(b"?")].concat();
        assert!(table_is_too_deep(&table(&[&nonsense, &deep])));
        assert!(!table_is_too_deep(&table(&[b"?", &deep])));
        let too_long = [b"A\0\0\xff\xff", &*deep].concat();
        assert!(!table_is_too_deep(&table(&[&too_long])));
    }

    #[test]
    fn headers_are_found_behind_the_properties_before_them() {
        let headers = table(&[&nested(TABLE, DEEPEST)]);
        for (flags, before) in [
            (&[0x20, 0][..], &b""[..]),
            (&[0xA0, 0], b"\x04type"),
            (&[0x60, 0], b"\x08encoding"),
            (&[0xF8, 0], b"\0\x08encoding"),
        ] {
            assert!(properties_are_too_deep(&[flags, before, &headers].concat()), "{flags:?}");
        }
        let none = [&[0x98, 0], &b"\x04type"[..], &headers].concat();
        assert!(!properties_are_too_deep(&none), "no headers");
    }

    #[test]
    fn bytes_cut_short_anywhere_are_not_too_deep_and_no_harm() {
        let deep = table(&[&nested(ARRAY, DEEPEST)]);
        let whole = [&[0xA0, 0], &b"\x04type"[..], &deep].concat();
        for length in 0..whole.len() {
            assert!(!properties_are_too_deep(&whole[..length]), "{length}");
        }
    }

    #[test]
    fn text_that_is_not_utf_8_becomes_bytes_wherever_it_is_and_nothing_else_changes() {
        for text in [&b"caf\xe9"[..], b"\xff", b"\xc3", b"\xed\xa0\x80", &[0x80; 300]] {
            let broken = everywhere(&long_value(TEXT, text));
            assert!(sanitized(&broken) == everywhere(&long_value(BYTES, text)), "{text:?}");
        }
        for text in ["", "plain", "caf\u{e9}", "\u{1f407} and \0", "S\0\0\0\u{1}"] {
            let sound = everywhere(&long_value(TEXT, text.as_bytes()));
            assert!(sanitized(&sound) == sound, "{text:?}");
        }
        let bytes = everywhere(&long_value(BYTES, b"S\0\0\0\x01\xe9"));
        assert!(sanitized(&bytes) == bytes, "what looks like text among bytes is none");
    }

    #[test]
    fn a_name_that_is_not_utf_8_becomes_ascii() {
        let named = |name: &[u8]| {
            let entry = [&[u8::try_from(name.len()).expect("short")], name, b"V"].concat();
            let inner = [&entry, &*entry].concat();
            sized(&[&entry, &b"\x01kF"[..], &sized(&inner), &entry].concat())
        };
        assert_eq!(sanitized(&named(b"caf\xe9 \xff!")), named(b"caf? ?!"));
        assert_eq!(sanitized(&named(b"\xc3\xa9 \xe9")), named(b"?? ?"));
        assert_eq!(sanitized(&named("caf\u{e9}".as_bytes())), named("caf\u{e9}".as_bytes()));
    }

    #[test]
    fn what_is_behind_something_without_sense_stays_as_it_is() {
        let broken = long_value(TEXT, b"\xe9");
        let sanitized_value = long_value(BYTES, b"\xe9");
        let before = table(&[&broken, b"?", &broken]);
        assert_eq!(sanitized(&before), table(&[&sanitized_value, b"?", &broken]));
        for too_long in [b"S\0\0\0\x02\xe9", b"A\0\0\0\x02\xe9"] {
            let only = table(&[too_long]);
            assert_eq!(sanitized(&only), only);
        }
    }

    #[test]
    fn bytes_cut_short_anywhere_are_sanitized_as_far_as_they_make_sense() {
        let whole = table(&[&long_value(ARRAY, &long_value(TEXT, b"caf\xe9")), b"V"]);
        let properties = [&[0xA0, 0], &b"\x04type"[..], &whole].concat();
        for length in 0..properties.len() {
            let mut cut = properties[..length].to_vec();
            assert_eq!(sanitize_properties(&mut cut), Ok(()));
            assert_eq!(cut, properties[..length], "the table is not whole");
        }
        // Tables that are whole and end in the middle of a value.
        for length in 4..whole.len() {
            let cut = sized(&whole[4..length]);
            let array = whole.len() - b"\x04nameV".len();
            let changed = sanitized(&cut) != cut;
            assert_eq!(changed, length >= array, "{length}");
        }
    }

    #[test]
    fn properties_that_are_not_utf_8_become_ascii_wherever_they_are() {
        let with = |kind, text: &[u8]| {
            let headers = table(&[&long_value(kind, b"\xe9")]);
            let text = [&[u8::try_from(text.len()).expect("short")], text].concat();
            let (one, eight) = ([0xE9], [0xE9; 8]);
            let properties: [&[u8]; 14] = [
                &text, &text, &headers, &one, &one, &text, &text, &text, &text, &eight, &text,
                &text, &text, &text,
            ];
            properties.map(<[u8]>::to_vec)
        };
        let (broken, whole) = (with(TEXT, b"caf\xe9"), with(BYTES, b"caf?"));
        let sound = with(BYTES, "caf\u{e9}".as_bytes());
        for flags in (0..1 << 14).map(|some: u16| some << 2) {
            let chosen = |properties: &[Vec<u8>; 14]| {
                let is_there = |place: &usize| flags & (1 << 15 >> place) != 0;
                let there = (0..14).filter(is_there).map(|place| properties[place].clone());
                [&flags.to_be_bytes(), &*there.collect::<Vec<_>>().concat()].concat()
            };
            for (before, after) in [(&broken, &whole), (&sound, &sound)] {
                let mut properties = [&chosen(before), &b"\xce"[..]].concat();
                sanitize_properties(&mut properties).expect("not too deep");
                assert!(properties == [&chosen(after), &b"\xce"[..]].concat(), "{flags:x}");
            }
        }
    }
}
