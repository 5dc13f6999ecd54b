//! AMQP 0-9-1 on the wire: fields, properties, methods and frames, to and from bytes.
//!
//! Strings are bytes, since a test must be able to send one that is not UTF-8.

/// A table's entries in their order.
pub(crate) type Table = Vec<(Vec<u8>, Field)>;

/// A table's value, in each type that RabbitMQ has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field {
    /// `t`
    Bool(bool),
    /// `b`
    I8(i8),
    /// `B`
    U8(u8),
    /// `s`
    I16(i16),
    /// `u`
    U16(u16),
    /// `I`
    I32(i32),
    /// `i`
    U32(u32),
    /// `l`
    I64(i64),
    /// `f`
    F32(f32),
    /// `d`
    F64(f64),
    /// `D`: how many digits are behind the point, and all digits.
    Decimal(u8, u32),
    /// `S`
    Text(Vec<u8>),
    /// `A`
    Array(Vec<Field>),
    /// `T`
    Timestamp(u64),
    /// `F`
    Table(Table),
    /// `V`
    Void,
    /// `x`
    Bytes(Vec<u8>),
    /// A type that does not exist, and the bytes behind it. Written only.
    Unknown(u8, Vec<u8>),
}

/// A message's properties.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Properties {
    pub(crate) content_type: Option<Vec<u8>>,
    pub(crate) content_encoding: Option<Vec<u8>>,
    pub(crate) headers: Option<Table>,
    pub(crate) delivery_mode: Option<u8>,
    pub(crate) priority: Option<u8>,
    pub(crate) correlation_id: Option<Vec<u8>>,
    pub(crate) reply_to: Option<Vec<u8>>,
    pub(crate) expiration: Option<Vec<u8>>,
    pub(crate) message_id: Option<Vec<u8>>,
    pub(crate) timestamp: Option<u64>,
    pub(crate) kind: Option<Vec<u8>>,
    pub(crate) user_id: Option<Vec<u8>>,
    pub(crate) app_id: Option<Vec<u8>>,
    pub(crate) cluster_id: Option<Vec<u8>>,
}

/// A frame of any type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) channel: u16,
    pub(crate) payload: Vec<u8>,
}

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

/// The arguments of a method, written one after the other.
#[derive(Default)]
pub(crate) struct Arguments(Vec<u8>);

pub(crate) const METHOD: u8 = 1;
pub(crate) const HEADER: u8 = 2;
pub(crate) const BODY: u8 = 3;
pub(crate) const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;
/// What a frame adds to its payload.
const FRAME_OVERHEAD: usize = 8;
const BASIC: u16 = 60;

impl Field {
    pub(crate) fn text(text: impl Into<Vec<u8>>) -> Field {
        Field::Text(text.into())
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Field::Bool(value) => put(out, b't', &[u8::from(*value)]),
            Field::I8(value) => put(out, b'b', &value.to_be_bytes()),
            Field::U8(value) => put(out, b'B', &[*value]),
            Field::I16(value) => put(out, b's', &value.to_be_bytes()),
            Field::U16(value) => put(out, b'u', &value.to_be_bytes()),
            Field::I32(value) => put(out, b'I', &value.to_be_bytes()),
            Field::U32(value) => put(out, b'i', &value.to_be_bytes()),
            Field::I64(value) => put(out, b'l', &value.to_be_bytes()),
            Field::F32(value) => put(out, b'f', &value.to_be_bytes()),
            Field::F64(value) => put(out, b'd', &value.to_be_bytes()),
            Field::Decimal(scale, digits) => {
                put(out, b'D', &[*scale]);
                out.extend(digits.to_be_bytes());
            }
            Field::Text(bytes) => put_sized(out, b'S', bytes),
            Field::Array(fields) => put_sized(out, b'A', &array(fields)),
            Field::Timestamp(seconds) => put(out, b'T', &seconds.to_be_bytes()),
            Field::Table(entries) => put_sized(out, b'F', &table(entries)),
            Field::Void => out.push(b'V'),
            Field::Bytes(bytes) => put_sized(out, b'x', bytes),
            Field::Unknown(kind, bytes) => put(out, *kind, bytes),
        }
    }

    fn read(from: &mut Cursor<'_>) -> Field {
        match from.u8() {
            b't' => Field::Bool(from.u8() != 0),
            b'b' => Field::I8(i8::from_be_bytes(from.array())),
            b'B' => Field::U8(from.u8()),
            b's' => Field::I16(i16::from_be_bytes(from.array())),
            b'u' => Field::U16(from.u16()),
            b'I' => Field::I32(i32::from_be_bytes(from.array())),
            b'i' => Field::U32(from.u32()),
            b'l' => Field::I64(i64::from_be_bytes(from.array())),
            b'f' => Field::F32(f32::from_be_bytes(from.array())),
            b'd' => Field::F64(f64::from_be_bytes(from.array())),
            b'D' => Field::Decimal(from.u8(), from.u32()),
            b'S' => Field::Text(from.long_bytes()),
            b'A' => {
                let bytes = from.long_bytes();
                let mut inner = Cursor(&bytes);
                let mut fields = Vec::new();
                while !inner.0.is_empty() {
                    fields.push(Field::read(&mut inner));
                }
                Field::Array(fields)
            }
            b'T' => Field::Timestamp(from.u64()),
            b'F' => Field::Table(from.table()),
            b'V' => Field::Void,
            b'x' => Field::Bytes(from.long_bytes()),
            other => panic!("the peer sent a field of type {:?}", char::from(other)),
        }
    }
}

impl Properties {
    pub(crate) fn with_message_id(id: impl Into<Vec<u8>>) -> Properties {
        Properties { message_id: Some(id.into()), ..Properties::default() }
    }

    pub(crate) fn header(mut self, key: impl Into<Vec<u8>>, value: Field) -> Properties {
        let headers = self.headers.get_or_insert_default();
        headers.push((key.into(), value));
        self
    }

    /// The flags, and behind them the properties that are there.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut flags = 0;
        let mut values = Vec::new();
        let headers = self.headers.as_ref().map(|headers| sized(&table(headers)));
        let short = |text: &Option<Vec<u8>>| text.as_ref().map(|text| short_string(text));
        let in_order = [
            short(&self.content_type),
            short(&self.content_encoding),
            headers,
            self.delivery_mode.map(|mode| vec![mode]),
            self.priority.map(|priority| vec![priority]),
            short(&self.correlation_id),
            short(&self.reply_to),
            short(&self.expiration),
            short(&self.message_id),
            self.timestamp.map(|time| time.to_be_bytes().to_vec()),
            short(&self.kind),
            short(&self.user_id),
            short(&self.app_id),
            short(&self.cluster_id),
        ];
        for (position, value) in in_order.into_iter().enumerate() {
            if let Some(value) = value {
                flags |= 0x8000_u16 >> position;
                values.extend(value);
            }
        }
        [flags.to_be_bytes().to_vec(), values].concat()
    }

    fn read(from: &mut Cursor<'_>) -> Properties {
        let flags = from.u16();
        let has = |position: u16| flags & (0x8000 >> position) != 0;
        // Written in the order of the wire, which is the order they are evaluated in.
        Properties {
            content_type: has(0).then(|| from.short_bytes()),
            content_encoding: has(1).then(|| from.short_bytes()),
            headers: has(2).then(|| from.table()),
            delivery_mode: has(3).then(|| from.u8()),
            priority: has(4).then(|| from.u8()),
            correlation_id: has(5).then(|| from.short_bytes()),
            reply_to: has(6).then(|| from.short_bytes()),
            expiration: has(7).then(|| from.short_bytes()),
            message_id: has(8).then(|| from.short_bytes()),
            timestamp: has(9).then(|| from.u64()),
            kind: has(10).then(|| from.short_bytes()),
            user_id: has(11).then(|| from.short_bytes()),
            app_id: has(12).then(|| from.short_bytes()),
            cluster_id: has(13).then(|| from.short_bytes()),
        }
    }
}

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

impl Arguments {
    pub(crate) fn u8(mut self, value: u8) -> Arguments {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(mut self, value: u16) -> Arguments {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Arguments {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Arguments {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn short(mut self, text: impl AsRef<[u8]>) -> Arguments {
        self.0.extend(short_string(text.as_ref()));
        self
    }

    pub(crate) fn long(mut self, text: impl AsRef<[u8]>) -> Arguments {
        self.0.extend(sized(text.as_ref()));
        self
    }

    pub(crate) fn table(mut self, entries: &Table) -> Arguments {
        self.0.extend(sized(&table(entries)));
        self
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

pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is left to read of a frame.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> &[u8] {
        let cut = self.0.split_at_checked(count);
        let (taken, left) = cut.expect("the peer's frame is cut short");
        self.0 = left;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().expect("as many as were taken")
    }

    fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// The field, once a ticket, at the front of many methods.
    fn reserved(&mut self) -> &mut Self {
        self.u16();
        self
    }

    /// A bit of the next byte, which stays: flags that follow each other share it.
    fn bit(&self, position: u8) -> bool {
        let flags = self.0.first().expect("the peer's frame is cut short");
        flags & (1 << position) != 0
    }

    fn short_bytes(&mut self) -> Vec<u8> {
        let size = usize::from(self.u8());
        self.take(size).to_vec()
    }

    fn short(&mut self) -> String {
        lossy(&self.short_bytes())
    }

    fn long_bytes(&mut self) -> Vec<u8> {
        let size = self.u32() as usize;
        self.take(size).to_vec()
    }

    fn table(&mut self) -> Table {
        let bytes = self.long_bytes();
        let mut inner = Cursor(&bytes);
        let mut entries = Vec::new();
        while !inner.0.is_empty() {
            entries.push((inner.short_bytes(), Field::read(&mut inner)));
        }
        entries
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

fn put(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    out.push(kind);
    out.extend(bytes);
}

fn put_sized(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    put(out, kind, &sized(bytes));
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&length(bytes.len()), bytes].concat()
}

fn length(bytes: usize) -> [u8; 4] {
    let length = u32::try_from(bytes).expect("a length has 32 bits");
    length.to_be_bytes()
}

fn short_string(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short string has 255 bytes at most");
    [&[length], text].concat()
}

fn array(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        field.write(&mut out);
    }
    out
}

fn table(entries: &Table) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in entries {
        out.extend(short_string(key));
        value.write(&mut out);
    }
    out
}
