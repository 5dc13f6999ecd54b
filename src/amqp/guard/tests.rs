//! Tests of the frame guard: valid and invalid frames, split at every size.

use std::time::Duration;

use super::frame::LARGEST_INBOUND_BODY;
use super::table::DEEPEST;
use super::*;

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
        header(LARGEST_INBOUND_BODY),
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

fn inspect_in_pieces(bytes: &[u8], piece: usize) -> io::Result<()> {
    passed_on(bytes, piece, 0).map(drop)
}

fn passed_on(bytes: &[u8], piece: usize, heartbeat: u16) -> io::Result<Vec<u8>> {
    let (mut guard, mut bytes) = (FrameGuard::new(heartbeat), bytes.to_vec());
    let mut passed = Vec::new();
    for mut left in bytes.chunks_mut(piece) {
        while !left.is_empty() {
            let (next, behind) = left.split_at_mut(left.len().min(guard.room()));
            let valid_len = guard.inspect(next, Instant::now()).map_err(|it| it.error)?;
            passed.extend_from_slice(&next[..valid_len]);
            let mut released = vec![0; guard.buffered.len()];
            let length = guard.release(&mut released);
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
    for (of_the_broker, asked, proposed) in [(0, 0, 0), (0, 10, 10), (0, 600, 255), (7, 10, 7)] {
        let mut guard = FrameGuard::new(asked);
        guard
            .inspect(&mut tune(of_the_broker), Instant::now())
            .map_err(|it| it.error)
            .expect("AMQP");
        let proposal = guard.proposed.expect("a tune");
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
            let mut guard = FrameGuard::new(10);
            let mut bytes = [session(), close(text), HEARTBEAT.to_vec()].concat();
            for piece in bytes.chunks_mut(piece) {
                guard.inspect(piece, Instant::now()).map_err(|it| it.error).expect("AMQP");
            }
            assert_eq!(guard.closed, Some((320, text.to_string())), "{piece}");
        }
    }
    for cut in 4..12 {
        let cut = &close("bye")[HEAD..][..cut];
        inspect_in_pieces(&[session(), frame(METHOD_FRAME, cut)].concat(), 7).expect("no harm");
    }
}

#[test]
fn what_becomes_of_a_channel_is_noted_in_whatever_pieces_it_comes() {
    let on_channel = |channel: u8, payload: &[u8]| {
        let mut frame = frame(METHOD_FRAME, payload);
        frame[2] = channel;
        frame
    };
    let closed = b"\x00\x14\x00\x28\x01\x94\x04gone\x00\x00\x00\x00";
    let bytes = [
        session(),
        on_channel(2, b"\x00\x14\x00\x0b\x00\x00\x00\x00"),
        on_channel(3, b"\x00\x3c\x00\x1e\x01t\x01"),
        on_channel(2, closed),
    ]
    .concat();
    for size in 1..=bytes.len() {
        let mut guard = FrameGuard::new(10);
        for piece in bytes.clone().chunks_mut(size) {
            guard.inspect(piece, Instant::now()).map_err(|it| it.error).expect("AMQP");
        }
        let expected = [
            (2, ChannelChange::Opened),
            (3, ChannelChange::Cancelled),
            (2, ChannelChange::Closed(404, "gone".into())),
        ];
        assert_eq!((&guard.channels[..], guard.closed), (&expected[..], None), "{size}");
    }
}

#[test]
fn a_frame_that_is_too_large_is_reported_where_its_head_ends() {
    let begun = [&session()[..], &[3, 0, 1, 0x70, 0, 0, 0]].concat();
    for piece in 1..100 {
        inspect_in_pieces(&begun[..begun.len() - 1], piece).expect("not known yet");
        let error = inspect_in_pieces(&begun, piece).expect_err("too large");
        assert!(error.to_string().contains("1879048192 bytes"), "{piece}: {error}");
    }
}

#[test]
fn a_body_that_is_too_large_is_reported_where_its_size_ends() {
    for size in [LARGEST_INBOUND_BODY + 1, 1 << 46, 1 << 63, u64::MAX] {
        let begun = [&session()[..], &header(size)[..HEAD + INSIDE]].concat();
        for piece in 1..100 {
            inspect_in_pieces(&begun[..begun.len() - 1], piece).expect("not known yet");
            let error = inspect_in_pieces(&begun, piece).expect_err("too large");
            assert!(error.to_string().contains(&size.to_string()), "{piece}: {error}");
        }
    }
}

#[test]
fn what_is_nested_too_deep_is_reported_before_its_frame_ends() {
    for begun in [
        [session(), headers(DEEPEST + 1)].concat(),
        [session(), headers(20_000)].concat(),
        [session(), start(DEEPEST + 1)].concat(),
        start(DEEPEST + 1),
        start(20_000),
    ] {
        for piece in (1..30).chain([4096, 1 << 20]) {
            inspect_in_pieces(&begun[..begun.len() - 1], piece).expect("not known yet");
            let error = inspect_in_pieces(&begun, piece).expect_err("too deep");
            assert!(error.to_string().contains("deeper than 100 levels"), "{piece}: {error}");
        }
    }
}

#[test]
fn what_came_before_an_invalid_frame_is_valid() {
    for wrong in [headers(DEEPEST + 1), header(u64::MAX), b"\x03\0\x01\x70\0\0\0".to_vec()] {
        let mut bytes = [session(), wrong.clone()].concat();
        let invalid = FrameGuard::new(10).inspect(&mut bytes, Instant::now());
        let InvalidFrame { valid_len, .. } = invalid.expect_err("there is something wrong");
        assert!(
            (session().len()..bytes.len()).contains(&valid_len),
            "{valid_len} before {wrong:?}"
        );
    }
}

#[test]
fn properties_are_buffered_until_they_are_whole() {
    let header = header_with(0, b"\x20\0\0\0\0\x08\x01kS\0\0\0\x01\xe9");
    let properties = HEAD + INSIDE;
    for cut in properties + 1..header.len() {
        let mut guard = FrameGuard::new(10);
        guard.inspect(&mut session(), Instant::now()).expect("AMQP");
        let (mut begun, mut rest) = (header[..cut].to_vec(), header[cut..].to_vec());
        let mut room = [0; 1000];

        assert_eq!(guard.inspect(&mut begun, Instant::now()).expect("AMQP"), properties);
        assert_eq!((guard.release(&mut room), guard.room()), (0, rest.len()), "{cut}");
        assert_eq!(guard.inspect(&mut rest, Instant::now()).expect("AMQP"), 0);
        assert_eq!(guard.release(&mut room), header.len() - properties, "{cut}");
        assert_eq!((guard.release(&mut room), guard.room()), (0, usize::MAX), "{cut}");
    }
}

#[test]
fn a_method_that_is_larger_than_any_is_reported_by_its_name() {
    let large = |method: &[u8]| frame(METHOD_FRAME, &[method, &[0; 1021]].concat());
    for piece in [1, 7, 19, 4096] {
        inspect_in_pieces(&[session(), large(&START)].concat(), piece).expect("start is large");
        let error = inspect_in_pieces(&[session(), large(&TUNE)].concat(), piece);
        let error = error.expect_err("tune is not").to_string();
        assert!(error.contains("method of 1025 bytes"), "{piece}: {error}");
    }
}

#[test]
fn a_frame_that_stalls_is_reported_while_heartbeats_come() {
    let parts = [
        frame(METHOD_FRAME, b"\0\x3c\0\x3c, and what a delivery says"),
        header(6000),
        frame(3, &[0xFF; 1000]),
        frame(3, &[0xFF; 5000]),
    ];
    let ends: Vec<_> = (1..4).map(|count| parts[..count].concat().len()).collect();
    let whole = parts.concat();
    for cut in ends.iter().copied().chain([whole.len() - 1000, whole.len()]) {
        let (mut guard, mut now) = (FrameGuard::new(10), Instant::now());
        guard.inspect(&mut [&session()[..], &whole[..cut]].concat(), now).expect("it comes on");
        let mut beats = 0..100;
        let stuck = beats.find_map(|_| {
            now += Duration::from_secs(1);
            guard.inspect(&mut HEARTBEAT.clone(), now).err().map(|it| it.error)
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
fn a_first_answer_of_anything_else_is_shown_and_cut_short() {
    for (answer, shown) in [
        (&b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n"[..], "\"HTTP/1.1 400 Bad Request\""),
        (b"AMQP\0\x01\0\0", "\"AMQP\\x00\\x01\\x00\\x00\""),
        (b"\x01\0\0\xff\xff\xff\xff", "\"\\x01\\x00\\x00\\xff\\xff\\xff\\xff\""),
        (b"\x01\0\x01\0", "\"\\x01\\x00\\x01\\x00\""),
        (b"\x15\x03\x03\0\x02\x02\x0a", "amqps://"),
        (&[b'x'; 100], "xxx...\""),
    ] {
        let error = inspect_in_pieces(answer, 4096).expect_err(shown);
        assert!(error.to_string().ends_with(shown) || shown == "amqps://", "{error}");
        assert!(error.to_string().contains(shown), "{error}");
        assert!(error.to_string().len() < 100, "{error}");
    }
}

#[test]
fn a_wrong_answer_in_single_bytes_is_seen_at_the_first_wrong_one() {
    assert!(inspect_in_pieces(b"H", 1).is_err());
    assert!(inspect_in_pieces(b"\x01\0\0\xff\xff\xff\xff", 1).is_err());
}
