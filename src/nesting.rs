//! Owns the look at how deep a frame's tables and arrays are nested: the client library follows
//! them by calling itself, without a limit, and a stack that is used up ends the process
//! (amq-protocol-types 1.2.0 parsing.rs:50, 54). Pure.

/// So many tables and arrays may be within one another. The client library's thread has a stack of
/// 2 MiB, which some 550 of them use up where nothing is optimized. RabbitMQ's own headers have
/// four.
pub(crate) const DEEPEST: usize = 100;

const TABLE: u8 = b'F';
const ARRAY: u8 = b'A';

/// The places of the properties before the headers, and of the headers, in the flags.
const BEFORE_HEADERS: [u16; 2] = [1 << 15, 1 << 14];
const HEADERS: u16 = 1 << 13;

/// Whether the headers among a message's properties go down too far.
pub(crate) fn properties_are_too_deep(properties: &[u8]) -> bool {
    headers_of(properties).is_some_and(table_is_too_deep)
}

/// Whether the table that is first in these bytes goes down too far. Where it cannot be followed,
/// the client library does not follow it either.
pub(crate) fn table_is_too_deep(bytes: &[u8]) -> bool {
    long(bytes).is_some_and(|(table, _)| goes_below(DEEPEST - 1, TABLE, table))
}

fn headers_of(properties: &[u8]) -> Option<&[u8]> {
    let (flags, mut left) = properties.split_first_chunk()?;
    let flags = u16::from_be_bytes(*flags);
    for property in BEFORE_HEADERS {
        if flags & property != 0 {
            left = short(left)?;
        }
    }
    (flags & HEADERS != 0).then_some(left)
}

/// Whether anything in this table or array is nested deeper than so many levels. Ends where a
/// value makes no sense: what contains this one goes on behind it.
fn goes_below(levels: usize, kind: u8, inside: &[u8]) -> bool {
    let mut left = inside;
    while let Some((kind, value)) = next(kind, left) {
        let Some((inside, after)) = split(kind, value) else { return false };
        if matches!(kind, TABLE | ARRAY) && (levels == 0 || goes_below(levels - 1, kind, inside)) {
            return true;
        }
        left = after;
    }
    false
}

/// The type of the next value of a table, where it has a name, or of an array; and the bytes that
/// the value begins.
fn next(kind: u8, left: &[u8]) -> Option<(u8, &[u8])> {
    let left = if kind == TABLE { short(left)? } else { left };
    left.split_first().map(|(kind, value)| (*kind, value))
}

/// What is in the value that is first in these bytes, and what is behind it.
fn split(kind: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let size = match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        b'S' | b'x' | TABLE | ARRAY => return long(bytes),
        _ => return None,
    };
    bytes.split_at_checked(size)
}

/// What is in a value whose size has four bytes, and what is behind it.
fn long(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, left) = bytes.split_first_chunk()?;
    left.split_at_checked(u32::from_be_bytes(*size) as usize)
}

/// What is behind a string whose size has one byte.
fn short(bytes: &[u8]) -> Option<&[u8]> {
    let (size, left) = bytes.split_first()?;
    left.get(usize::from(*size)..)
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
        let plain = |kind: u8, size| [&[kind][..], &vec![0xFF; size]].concat();
        let sizes = [(b'V', 0), (b't', 1), (b'b', 1), (b'B', 1), (b's', 2), (b'U', 2), (b'u', 2)];
        let more = [(b'I', 4), (b'i', 4), (b'f', 4), (b'D', 5), (b'L', 8), (b'l', 8), (b'd', 8)];
        let plain =
            sizes.into_iter().chain(more).chain([(b'T', 8)]).map(|(kind, size)| plain(kind, size));
        let long = [b'S', b'x', TABLE, ARRAY].map(|kind| [&[kind], &*sized(b"AAAA")].concat());
        let empty = [TABLE, ARRAY].map(|kind| [&[kind], &*sized(b"")].concat());
        for value in plain.chain(long).chain(empty) {
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
}
