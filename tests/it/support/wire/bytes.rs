//! The pieces of a frame: the arguments of a method, written, and what is left of a frame, read.

use super::field::{Field, Table, table};

/// The arguments of a method, written one after the other.
#[derive(Default)]
pub(crate) struct Arguments(pub(super) Vec<u8>);

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

pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is left to read of a frame.
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl Cursor<'_> {
    pub(super) fn take(&mut self, count: usize) -> &[u8] {
        let cut = self.0.split_at_checked(count);
        let (taken, left) = cut.expect("the peer's frame is cut short");
        self.0 = left;
        taken
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().expect("as many as were taken")
    }

    pub(super) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// The field, once a ticket, at the front of many methods.
    pub(super) fn reserved(&mut self) -> &mut Self {
        self.u16();
        self
    }

    /// A bit of the next byte, which stays: flags that follow each other share it.
    pub(super) fn bit(&self, position: u8) -> bool {
        let flags = self.0.first().expect("the peer's frame is cut short");
        flags & (1 << position) != 0
    }

    pub(super) fn short_bytes(&mut self) -> Vec<u8> {
        let size = usize::from(self.u8());
        self.take(size).to_vec()
    }

    pub(super) fn short(&mut self) -> String {
        lossy(&self.short_bytes())
    }

    pub(super) fn long_bytes(&mut self) -> Vec<u8> {
        let size = self.u32() as usize;
        self.take(size).to_vec()
    }

    pub(super) fn table(&mut self) -> Table {
        let bytes = self.long_bytes();
        let mut inner = Cursor(&bytes);
        let mut entries = Vec::new();
        while !inner.0.is_empty() {
            entries.push((inner.short_bytes(), Field::read(&mut inner)));
        }
        entries
    }
}

pub(super) fn put(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    out.push(kind);
    out.extend(bytes);
}

pub(super) fn put_sized(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    put(out, kind, &sized(bytes));
}

pub(super) fn sized(bytes: &[u8]) -> Vec<u8> {
    [&length(bytes.len()), bytes].concat()
}

pub(super) fn length(bytes: usize) -> [u8; 4] {
    let length = u32::try_from(bytes).expect("a length has 32 bits");
    length.to_be_bytes()
}

pub(super) fn short_string(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short string has 255 bytes at most");
    [&[length], text].concat()
}
