//! Makes text safe to show in a terminal.

/// On one line, with a space for each character that a terminal would act on.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|letter| if acts_on_a_terminal(letter) { ' ' } else { letter }).collect()
}

/// Whether it moves the cursor, begins a line, or changes how its neighbours are shown.
fn acts_on_a_terminal(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_a_space() {
        assert_eq!(one_line("a\tb\u{202e}c\u{2028}d\u{1b}[1m\u{e9}"), "a b c d [1m\u{e9}");
    }
}
