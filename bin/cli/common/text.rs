//! Makes text safe to show in a terminal.

use crate::util::text::acts_on_a_terminal;

/// On one line, with a space for each character that a terminal would act on.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|letter| if acts_on_a_terminal(letter) { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_a_space() {
        assert_eq!(one_line("a\tb\u{202e}c\u{2028}d\u{1b}[1m\u{e9}"), "a b c d [1m\u{e9}");
    }
}
