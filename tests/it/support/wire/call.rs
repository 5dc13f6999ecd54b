//! The methods that a client sends, read from bytes.

use super::bytes::{Cursor, lossy};
use super::field::{Field, Properties, Table};

/// What a client asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Method {
    pub(crate) channel: u16,
    pub(crate) call: Call,
}

/// The methods a client sends, with those arguments that a script may want to see.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    StartOk {
        client: Table,
        mechanism: String,
        response: Vec<u8>,
    },
    TuneOk {
        channel_max: u16,
        frame_max: u32,
        heartbeat: u16,
    },
    Open {
        vhost: String,
    },
    ConnectionClose {
        code: u16,
        text: String,
    },
    ConnectionCloseOk,
    ChannelOpen,
    ChannelClose {
        code: u16,
        text: String,
    },
    ChannelCloseOk,
    ExchangeDeclare {
        exchange: String,
        kind: String,
        no_wait: bool,
    },
    QueueDeclare {
        queue: String,
        passive: bool,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        no_wait: bool,
        arguments: Table,
    },
    QueueBind {
        queue: String,
        exchange: String,
        routing_key: String,
        no_wait: bool,
    },
    QueuePurge {
        queue: String,
        no_wait: bool,
    },
    QueueDelete {
        queue: String,
        no_wait: bool,
    },
    Qos {
        prefetch_count: u16,
        global: bool,
    },
    Consume {
        queue: String,
        tag: String,
        no_ack: bool,
        exclusive: bool,
        no_wait: bool,
    },
    Cancel {
        tag: String,
        no_wait: bool,
    },
    Publish(Box<Publish>),
    Get {
        queue: String,
        no_ack: bool,
    },
    Ack {
        delivery_tag: u64,
        multiple: bool,
    },
    Reject {
        delivery_tag: u64,
        requeue: bool,
    },
    Nack {
        delivery_tag: u64,
        multiple: bool,
        requeue: bool,
    },
    ConfirmSelect {
        no_wait: bool,
    },
    /// Any other, not decoded.
    Other {
        class: u16,
        method: u16,
        arguments: Vec<u8>,
    },
}

/// A publish with its whole content.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Publish {
    pub(crate) channel: u16,
    pub(crate) exchange: Vec<u8>,
    pub(crate) routing_key: Vec<u8>,
    pub(crate) mandatory: bool,
    /// As they came, flags first.
    pub(crate) raw_properties: Vec<u8>,
    pub(crate) properties: Properties,
    pub(crate) body: Vec<u8>,
}

impl Method {
    /// Decodes a method frame's payload. A publish still lacks its content.
    pub(crate) fn read(channel: u16, payload: &[u8]) -> Method {
        let mut from = Cursor(payload);
        let (class, method) = (from.u16(), from.u16());
        let call = match (class, method) {
            (10, 11) => Call::StartOk {
                client: from.table(),
                mechanism: from.short(),
                response: from.long_bytes(),
            },
            (10, 31) => Call::TuneOk {
                channel_max: from.u16(),
                frame_max: from.u32(),
                heartbeat: from.u16(),
            },
            (10, 40) => Call::Open { vhost: from.short() },
            (10, 50) => Call::ConnectionClose { code: from.u16(), text: from.short() },
            (10, 51) => Call::ConnectionCloseOk,
            (20, 10) => Call::ChannelOpen,
            (20, 40) => Call::ChannelClose { code: from.u16(), text: from.short() },
            (20, 41) => Call::ChannelCloseOk,
            (40, 10) => read_exchange_declare(&mut from),
            (50, 10) => read_queue_declare(&mut from),
            (50, 20) => Call::QueueBind {
                queue: from.reserved().short(),
                exchange: from.short(),
                routing_key: from.short(),
                no_wait: from.bit(0),
            },
            (50, 30) => Call::QueuePurge { queue: from.reserved().short(), no_wait: from.bit(0) },
            (50, 40) => Call::QueueDelete { queue: from.reserved().short(), no_wait: from.bit(2) },
            (60, 10) => {
                let _prefetch_size = from.u32();
                Call::Qos { prefetch_count: from.u16(), global: from.bit(0) }
            }
            (60, 20) => Call::Consume {
                queue: from.reserved().short(),
                tag: from.short(),
                no_ack: from.bit(1),
                exclusive: from.bit(2),
                no_wait: from.bit(3),
            },
            (60, 30) => Call::Cancel { tag: from.short(), no_wait: from.bit(0) },
            (60, 40) => Call::Publish(Box::new(Publish {
                channel,
                exchange: from.reserved().short_bytes(),
                routing_key: from.short_bytes(),
                mandatory: from.bit(0),
                ..Publish::default()
            })),
            (60, 70) => Call::Get { queue: from.reserved().short(), no_ack: from.bit(0) },
            (60, 80) => Call::Ack { delivery_tag: from.u64(), multiple: from.bit(0) },
            (60, 90) => Call::Reject { delivery_tag: from.u64(), requeue: from.bit(0) },
            (60, 120) => {
                Call::Nack { delivery_tag: from.u64(), multiple: from.bit(0), requeue: from.bit(1) }
            }
            (85, 10) => Call::ConfirmSelect { no_wait: from.bit(0) },
            (class, method) => Call::Other { class, method, arguments: from.0.to_vec() },
        };
        Method { channel, call }
    }
}

impl Publish {
    /// Takes the content header in; says how long the body is.
    pub(crate) fn read_header(&mut self, payload: &[u8]) -> usize {
        let mut from = Cursor(payload);
        let (_class, _weight, size) = (from.u16(), from.u16(), from.u64());
        self.raw_properties = from.0.to_vec();
        self.properties = Properties::read(&mut from);
        usize::try_from(size).expect("a body fits into memory")
    }

    pub(crate) fn message_id(&self) -> Option<String> {
        self.properties.message_id.as_deref().map(lossy)
    }

    pub(crate) fn header(&self, key: &str) -> Option<&Field> {
        let mut headers = self.properties.headers.iter().flatten();
        headers.find_map(|(name, value)| (name == key.as_bytes()).then_some(value))
    }
}

fn read_exchange_declare(from: &mut Cursor<'_>) -> Call {
    Call::ExchangeDeclare {
        exchange: from.reserved().short(),
        kind: from.short(),
        no_wait: from.bit(4),
    }
}

fn read_queue_declare(from: &mut Cursor<'_>) -> Call {
    let queue = from.reserved().short();
    let flags = Cursor(from.0);
    from.u8();
    Call::QueueDeclare {
        queue,
        passive: flags.bit(0),
        durable: flags.bit(1),
        exclusive: flags.bit(2),
        auto_delete: flags.bit(3),
        no_wait: flags.bit(4),
        arguments: from.table(),
    }
}
