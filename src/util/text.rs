//! Makes text safe to show in a terminal or a log.

/// The text with a `?` for each character that a terminal would act on, or that would begin a line.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|letter| if acts_on_a_terminal(letter) { '?' } else { letter }).collect()
}

/// Whether it moves the cursor, begins a line, or changes how its neighbours are shown.
pub(crate) fn acts_on_a_terminal(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        )
}
