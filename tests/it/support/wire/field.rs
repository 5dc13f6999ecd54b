//! Values, tables and message properties, to and from bytes.

use super::bytes::{Cursor, put, put_sized, short_string, sized};

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

    pub(super) fn read(from: &mut Cursor<'_>) -> Field {
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

    pub(super) fn read(from: &mut Cursor<'_>) -> Properties {
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

pub(super) fn array(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        field.write(&mut out);
    }
    out
}

pub(super) fn table(entries: &Table) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in entries {
        out.extend(short_string(key));
        value.write(&mut out);
    }
    out
}
