//! [`BatchId`]: the random number of a batch. Pure.

use std::fmt;

/// The random number of a batch: 32 hexadecimal digits in names.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BatchId(u128);

const DIGITS: usize = 32;

impl BatchId {
    pub(crate) fn random() -> BatchId {
        BatchId(uuid::Uuid::now_v7().as_u128())
    }

    /// Reads the digits, and nothing else: one batch has one name.
    pub(crate) fn parse(text: &str) -> Option<BatchId> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != DIGITS || !text.bytes().all(is_digit) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(BatchId)
    }

    #[cfg(test)]
    pub(crate) fn of(number: u128) -> BatchId {
        BatchId(number)
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
