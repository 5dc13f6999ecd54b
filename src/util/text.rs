//! Makes text safe to show in a terminal or a log, and to cut.

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

/// Drops the part of a letter at the end, so that text which was cut anywhere remains text.
pub(crate) fn drop_part_of_letter(bytes: &mut Vec<u8>) {
    if let Err(error) = std::str::from_utf8(bytes) {
        if error.error_len().is_none() {
            bytes.truncate(error.valid_up_to());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_cut_stays_text() {
        let cut = |text: &[u8]| {
            let mut bytes = text.to_vec();
            drop_part_of_letter(&mut bytes);
            bytes
        };
        assert_eq!(cut("aé".as_bytes()), "aé".as_bytes());
        assert_eq!(cut(&"aé".as_bytes()[..2]), b"a");
        assert_eq!(cut(b"a\xff"), b"a\xff", "no text anyway");
    }
}
