//! Which publishes the broker has confirmed. Confirms of single publishes may be out of order.

use std::collections::BTreeSet;

#[derive(Debug, Default)]
pub struct Window {
    sent: u64,
    /// All up to this one are confirmed.
    up_to: u64,
    ahead: BTreeSet<u64>,
}

impl Window {
    pub fn send(&mut self, count: u64) {
        self.sent += count;
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    pub fn confirmed(&self) -> u64 {
        self.up_to + self.ahead.len() as u64
    }

    /// How many are sent and not confirmed.
    pub fn waiting(&self) -> u64 {
        self.sent - self.confirmed()
    }

    pub fn confirm(&mut self, tag: u64, multiple: bool) {
        if multiple && !self.ahead.is_empty() {
            self.ahead = self.ahead.split_off(&(tag + 1));
        }
        if multiple || tag == self.up_to + 1 {
            self.up_to = self.up_to.max(tag);
        } else {
            self.ahead.insert(tag);
        }
        while self.ahead.remove(&(self.up_to + 1)) {
            self.up_to += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirm_counts_once_in_whatever_order() {
        let mut window = Window::default();
        window.send(6);
        let mut confirmed = |tag, multiple| {
            window.confirm(tag, multiple);
            window.confirmed()
        };
        assert_eq!(confirmed(2, false), 1);
        assert_eq!(confirmed(1, false), 2);
        assert_eq!(confirmed(5, false), 3);
        assert_eq!(confirmed(4, true), 5);
        assert_eq!(confirmed(6, true), 6);
        assert_eq!(window.waiting(), 0);
    }
}
