//! AMQP 0-9-1 on the wire: frames, and messages on their way to a consumer, to and from bytes.
//!
//! Strings are bytes, since a test must be able to send one that is not UTF-8.

mod bytes;
mod call;
mod field;

pub(crate) use self::bytes::{Arguments, lossy};
use self::bytes::{Cursor, length};
pub(crate) use self::call::{Call, Method, Publish};
pub(crate) use self::field::{Field, Properties, Table};

/// A frame of any type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) channel: u16,
    pub(crate) payload: Vec<u8>,
}

/// A message on its way to a consumer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Delivery {
    pub(crate) channel: u16,
    pub(crate) consumer_tag: Vec<u8>,
    pub(crate) delivery_tag: u64,
    pub(crate) redelivered: bool,
    pub(crate) exchange: Vec<u8>,
    pub(crate) routing_key: Vec<u8>,
    pub(crate) properties: Properties,
    pub(crate) body: Vec<u8>,
}

pub(crate) const METHOD: u8 = 1;
pub(crate) const HEADER: u8 = 2;
pub(crate) const BODY: u8 = 3;
pub(crate) const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;
/// What a frame adds to its payload.
const FRAME_OVERHEAD: usize = 8;
const BASIC: u16 = 60;

impl Frame {
    pub(crate) fn method(channel: u16, class: u16, method: u16, arguments: Arguments) -> Frame {
        let mut payload = class.to_be_bytes().to_vec();
        payload.extend(method.to_be_bytes());
        payload.extend(arguments.0);
        Frame { kind: METHOD, channel, payload }
    }

    pub(crate) fn heartbeat() -> Frame {
        Frame { kind: HEARTBEAT, channel: 0, payload: Vec::new() }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind];
        bytes.extend(self.channel.to_be_bytes());
        bytes.extend(length(self.payload.len()));
        bytes.extend(&self.payload);
        bytes.push(FRAME_END);
        bytes
    }

    /// Takes the first frame off the bytes, once it is all there.
    pub(crate) fn take(bytes: &mut Vec<u8>) -> Option<Frame> {
        let mut head = Cursor(bytes.get(..7)?);
        let (kind, channel, size) = (head.u8(), head.u16(), head.u32() as usize);
        let end = 7 + size;
        let last = *bytes.get(end)?;
        assert_eq!(last, FRAME_END, "the peer's frame does not end where it says");
        let payload = bytes[7..end].to_vec();
        bytes.drain(..=end);
        Some(Frame { kind, channel, payload })
    }
}

impl Delivery {
    /// An empty message, by the default exchange.
    pub(crate) fn new(channel: u16, consumer_tag: &str, delivery_tag: u64) -> Delivery {
        Delivery {
            channel,
            consumer_tag: consumer_tag.into(),
            delivery_tag,
            redelivered: false,
            exchange: Vec::new(),
            routing_key: b"task_queue".to_vec(),
            properties: Properties::default(),
            body: Vec::new(),
        }
    }

    pub(crate) fn redelivered(mut self) -> Delivery {
        self.redelivered = true;
        self
    }

    pub(crate) fn routing_key(mut self, key: impl Into<Vec<u8>>) -> Delivery {
        self.routing_key = key.into();
        self
    }

    pub(crate) fn properties(mut self, properties: Properties) -> Delivery {
        self.properties = properties;
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Delivery {
        self.body = body.into();
        self
    }

    pub(crate) fn to_bytes(&self, frame_max: u32) -> Vec<u8> {
        let arguments = Arguments::default()
            .short(&self.consumer_tag)
            .u64(self.delivery_tag)
            .u8(u8::from(self.redelivered))
            .short(&self.exchange)
            .short(&self.routing_key);
        let method = Frame::method(self.channel, BASIC, 60, arguments);
        let properties = self.properties.to_bytes();
        content(&method, &properties, &self.body, frame_max)
    }
}

/// A method that carries a message, with the frames of the message.
pub(crate) fn content(
    method: &Frame,
    raw_properties: &[u8],
    body: &[u8],
    frame_max: u32,
) -> Vec<u8> {
    let mut payload = BASIC.to_be_bytes().to_vec();
    payload.extend([0, 0]);
    payload.extend((body.len() as u64).to_be_bytes());
    payload.extend(raw_properties);
    let frame = |kind, payload| Frame { kind, channel: method.channel, payload };
    let mut bytes = method.to_bytes();
    bytes.extend(frame(HEADER, payload).to_bytes());
    let portion = match frame_max as usize {
        0 => usize::MAX,
        limit => limit - FRAME_OVERHEAD,
    };
    for chunk in body.chunks(portion) {
        bytes.extend(frame(BODY, chunk.to_vec()).to_bytes());
    }
    bytes
}
