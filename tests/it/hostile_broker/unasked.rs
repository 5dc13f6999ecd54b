//! Frames that a broker should not send at most times, well formed or not.

use crate::support::wire::{Arguments, BODY, Frame, HEADER, HEARTBEAT, METHOD};

/// Some bytes, with a name.
type Named = (&'static str, Vec<u8>);

/// What may come at any time, and should not at most.
pub(super) fn unasked() -> Vec<Named> {
    [
        of_the_connection(),
        of_channels(),
        answers_about_queues(),
        contents(),
        answers_to_publishes(),
        no_methods(),
    ]
    .concat()
}

fn of_the_connection() -> Vec<Named> {
    let start = none().u8(0).u8(9).table(&Vec::new()).long("PLAIN").long("en_US");
    vec![
        ("start", method(0, 10, 10, start)),
        ("secure", method(0, 10, 20, none().long("?"))),
        ("tune", method(0, 10, 30, none().u16(0).u32(0).u16(0))),
        ("tune to next to nothing", method(0, 10, 30, none().u16(1).u32(1).u16(1))),
        ("open-ok", method(0, 10, 41, none().short(""))),
        ("close of the connection", method(0, 10, 50, close(0, b""))),
        ("close of the connection, no text", method(0, 10, 50, close(320, b"\xff\xfe"))),
        ("close-ok of the connection", method(0, 10, 51, none())),
        ("blocked", method(0, 10, 60, none().short("why"))),
        ("unblocked", method(0, 10, 61, none())),
        ("update-secret", method(0, 10, 70, none().long("").short(""))),
    ]
}

fn of_channels() -> Vec<Named> {
    vec![
        ("open-ok of a channel", method(1, 20, 11, none().long(""))),
        ("open-ok of the last channel", method(u16::MAX, 20, 11, none().long(""))),
        ("flow", method(1, 20, 20, none().u8(0))),
        ("flow-ok", method(1, 20, 21, none().u8(0))),
        ("close of a channel", method(1, 20, 40, close(0, b""))),
        ("close of a channel, no text", method(1, 20, 40, close(406, b"\xff"))),
        ("close of a channel that is not open", method(9, 20, 40, close(404, b"?"))),
        ("close-ok of a channel", method(1, 20, 41, none())),
        ("close-ok of a channel that is not open", method(9, 20, 41, none())),
    ]
}

fn answers_about_queues() -> Vec<Named> {
    vec![
        ("declare-ok", method(1, 50, 11, none().short("q").u32(0).u32(0))),
        ("qos-ok", method(1, 60, 11, none())),
        ("consume-ok", method(1, 60, 21, none().short("nobody"))),
        ("cancel", method(1, 60, 30, none().short("nobody").u8(1))),
        ("cancel-ok", method(1, 60, 31, none().short("nobody"))),
    ]
}

fn contents() -> Vec<Named> {
    let strange = none().u16(312).short("NO_ROUTE").short("").short(b"\xff");
    let get_ok = none().u64(1).u8(0).short("").short("q").u32(0);
    vec![
        ("return from what is no text", [method(1, 60, 50, strange), header(1, 0)].concat()),
        ("delivery to nobody", delivery(1)),
        ("delivery on channel 0", delivery(0)),
        ("delivery on a channel that is not open", delivery(9)),
        ("delivery with two headers", [deliver(1), header(1, 1), header(1, 1)].concat()),
        ("delivery too long", [deliver(1), header(1, 1), frame(BODY, 1, b"xx")].concat()),
        ("get-ok", [method(1, 60, 71, get_ok), header(1, 0)].concat()),
        ("get-empty", method(1, 60, 72, none().short(""))),
    ]
}

fn answers_to_publishes() -> Vec<Named> {
    vec![
        ("ack of nothing", method(1, 60, 80, none().u64(99).u8(0))),
        ("ack on a channel that is not open", method(9, 60, 80, none().u64(1).u8(0))),
        ("ack of all before the first", method(1, 60, 80, none().u64(0).u8(1))),
        ("recover-ok", method(1, 60, 111, none())),
        ("nack of nothing", method(1, 60, 120, none().u64(99).u8(0))),
        ("select-ok of confirms", method(1, 85, 11, none())),
        ("select-ok of transactions", method(1, 90, 11, none())),
    ]
}

fn no_methods() -> Vec<Named> {
    vec![
        ("unknown class", method(1, 99, 1, none())),
        ("header alone", header(1, 1)),
        ("header on channel 0", header(0, 1)),
        ("body alone", frame(BODY, 1, b"x")),
        ("body on channel 0", frame(BODY, 0, b"x")),
        ("heartbeat on a channel", frame(HEARTBEAT, 1, b"")),
        ("heartbeat that says something", frame(HEARTBEAT, 0, b"x")),
        ("unknown frame", frame(9, 0, b"x")),
        ("no frame's type", frame(0, 1, b"")),
        ("method without a name", frame(METHOD, 1, b"")),
        ("half of a method's name", frame(METHOD, 1, b"\0\x14")),
        ("method cut short", frame(METHOD, 1, b"\0\x32\0\x0b\xff")),
        ("frame without its end", [&frame(HEARTBEAT, 0, b"")[..7], b"\0"].concat()),
        ("another protocol", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("nothing but zeros", vec![0; 64]),
    ]
}

fn none() -> Arguments {
    Arguments::default()
}

fn method(channel: u16, class: u16, id: u16, arguments: Arguments) -> Vec<u8> {
    Frame::method(channel, class, id, arguments).to_bytes()
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    Frame { kind, channel, payload: payload.to_vec() }.to_bytes()
}

fn header(channel: u16, size: u64) -> Vec<u8> {
    let payload = [&[0, 60, 0, 0][..], &size.to_be_bytes(), &[0, 0]].concat();
    frame(HEADER, channel, &payload)
}

fn deliver(channel: u16) -> Vec<u8> {
    let arguments = none().short("nobody").u64(1).u8(0).short("").short("q");
    method(channel, 60, 60, arguments)
}

fn delivery(channel: u16) -> Vec<u8> {
    [deliver(channel), header(channel, 1), frame(BODY, channel, b"x")].concat()
}

fn close(code: u16, text: &[u8]) -> Arguments {
    none().u16(code).short(text).u16(0).u16(0)
}
