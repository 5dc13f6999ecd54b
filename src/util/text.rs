//! Text as a terminal can show it.

/// Without anything that a terminal would act on, or that would begin another line.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|letter| if acts_on_a_terminal(letter) { '?' } else { letter }).collect()
}

/// Whether it moves the cursor, begins a line, or changes how what is beside it is shown.
fn acts_on_a_terminal(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        )
}
