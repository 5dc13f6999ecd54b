//! Property tests of the frame guard, with valid frames and arbitrary bytes.

use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::FrameGuard;

const LARGEST_PAYLOAD: usize = (1 << 20) - 8;
const LARGEST_METHOD: usize = 1 << 10;
const LARGEST_BODY: u64 = 512 << 20;

/// Gives the guard these bytes in two pieces. Returns what it passed on, and whether it took all.
fn inspect(mut bytes: Vec<u8>, cut: usize) -> (Vec<u8>, bool) {
    let mut guard = FrameGuard::new(60);
    let mut passed = Vec::new();
    // One moment for all: nothing takes too long.
    let now = Instant::now();
    let (first, second) = bytes.split_at_mut(cut);
    for mut left in [first, second] {
        while !left.is_empty() {
            let (next, behind) = left.split_at_mut(left.len().min(guard.room()));
            let inspected = guard.inspect(next, now);
            let is_valid = inspected.is_ok();
            let length = inspected.unwrap_or_else(|invalid| invalid.valid_len);
            passed.extend_from_slice(&next[..length]);
            if !is_valid {
                return (passed, false);
            }
            let mut room = [0; 64];
            while let length @ 1.. = guard.release(&mut room) {
                passed.extend_from_slice(&room[..length]);
            }
            left = behind;
        }
    }
    (passed, true)
}

/// The first frame that is larger than the guard may let through.
fn over_the_limits(mut bytes: &[u8]) -> Option<&[u8]> {
    while let Some((&[kind, _, _, a, b, c, d], payload)) = bytes.split_first_chunk() {
        let size = u32::from_be_bytes([a, b, c, d]) as usize;
        let body = payload.get(4..12).map(|it| it.iter().fold(0, |it, &b| it << 8 | u64::from(b)));
        let is_start = payload.starts_with(&[0, 10, 0, 10]);
        let is_method = kind == 1 && size >= 4 && payload.len() >= 12;
        let is_header = kind == 2 && size >= 12;
        if size > LARGEST_PAYLOAD
            || is_method && !is_start && size > LARGEST_METHOD
            || is_header && body.is_some_and(|it| it > LARGEST_BODY)
        {
            return Some(bytes);
        }
        bytes = payload.get(size + 1..)?;
    }
    None
}

fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("a small payload");
    [&[kind, 0, channel][..], &size.to_be_bytes(), payload, &[0xCE]].concat()
}

/// A value of a table, or what looks like one, with others inside.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let plain = (any::<u8>(), vec(any::<u8>(), 0..12))
        .prop_map(|(kind, bytes)| [&[kind], &*bytes].concat());
    plain.prop_recursive(6, 64, 4, |inside| {
        let kinds = select(vec![b'F', b'A', b'S', b'x']);
        (kinds, vec(inside, 0..4), any::<bool>()).prop_map(|(kind, values, named)| {
            let name: &[u8] = if named { b"\x04name" } else { b"" };
            let values = values.iter().map(|it| [name, it].concat()).collect::<Vec<_>>().concat();
            [&[kind], &u32::to_be_bytes(values.len() as u32)[..], &values].concat()
        })
    })
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let methods = [[0, 10, 0, 10], [0, 10, 0, 30], [0, 10, 0, 50], [0, 60, 0, 60], [0, 60, 0, 50]];
    let method = (select(methods.to_vec()), vec(any::<u8>(), 0..40))
        .prop_map(|(method, arguments)| [&method, &*arguments].concat());
    let start = value().prop_map(|table| [&[0, 10, 0, 10, 0, 9][..], &table[1..]].concat());
    let sizes = prop_oneof![0..100_u64, LARGEST_BODY - 1..LARGEST_BODY + 2, any::<u64>()];
    let header = (sizes, any::<[u8; 2]>(), vec(any::<u8>(), 0..20), value()).prop_map(
        |(size, flags, before, table)| {
            [&[0, 60, 0, 0], &size.to_be_bytes()[..], &flags, &before, &table].concat()
        },
    );
    let body = vec(any::<u8>(), 0..2000);
    prop_oneof![
        method.prop_map(|it| frame(1, 0, &it)),
        start.prop_map(|it| frame(1, 0, &it)),
        header.prop_map(|it| frame(2, 1, &it)),
        body.prop_map(|it| frame(3, 1, &it)),
        (any::<u8>(), 0..3_u8, vec(any::<u8>(), 0..30))
            .prop_map(|(kind, channel, payload)| { frame(kind, channel, &payload) }),
    ]
}

/// Frames behind one that may be the first, some of them with a wrong byte.
fn session() -> impl Strategy<Value = Vec<u8>> {
    let wrong = proptest::option::weighted(0.3, any::<(Index, u8)>());
    (vec(any_frame(), 0..6), wrong).prop_map(|(frames, wrong)| {
        let mut bytes =
            [frame(1, 0, b"\0\x0a\0\x0a\0\x09\0\0\0\0\0\0\0\0"), frames.concat()].concat();
        if let Some((index, byte)) = wrong {
            *index.get_mut(&mut bytes) = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn nothing_over_the_limits_passes(bytes in session(), cut in any::<Index>()) {
        let (passed, _) = inspect(bytes.clone(), cut.index(bytes.len()));
        prop_assert_eq!(over_the_limits(&passed), None);
    }

    #[test]
    fn bytes_that_are_no_frames_do_no_harm(bytes in vec(any::<u8>(), 1..100), cut in any::<Index>()) {
        let (passed, _) = inspect(bytes.clone(), cut.index(bytes.len()));
        prop_assert_eq!(over_the_limits(&passed), None);
    }

    #[test]
    fn a_cut_anywhere_changes_nothing(bytes in session(), cut in any::<Index>()) {
        let (whole, whole_is_valid) = inspect(bytes.clone(), bytes.len());
        let (cut, is_valid) = inspect(bytes.clone(), cut.index(bytes.len()));
        prop_assert_eq!(is_valid, whole_is_valid);
        // What came of a frame before its fault may have been passed on.
        prop_assert!(cut.starts_with(&whole), "{:?} after {:?}", cut, whole);
        prop_assert!(!is_valid || cut == whole);
    }

    #[test]
    fn what_is_over_the_limits_is_refused(bytes in session()) {
        let (_, is_valid) = inspect(bytes.clone(), bytes.len());
        prop_assert!(!is_valid || over_the_limits(&bytes).is_none());
    }
}
