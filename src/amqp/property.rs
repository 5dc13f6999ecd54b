//! Property tests of the reply-text parser.

use proptest::prelude::*;

use crate::amqp::reply_text::{explain_mismatch, read_mismatch};

/// Texts that have the words of a mismatch, in any order and between anything.
fn reply_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("inequivalent arg '".to_owned()),
        Just(": received ".to_owned()),
        Just(" but current is ".to_owned()),
        Just("the value '".to_owned()),
        Just("none".to_owned()),
        Just("'".to_owned()),
        any::<String>(),
    ];
    proptest::collection::vec(word, 0..8).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_reply_text_has_an_explanation(text in reply_text()) {
        let explained = explain_mismatch(&text);
        prop_assert_eq!(read_mismatch(&text).is_none(), explained == text);
    }

    #[test]
    fn a_mismatch_is_read_back(argument in "[a-z-]{1,20}", asked in "[^']{1,9}", has in "[^']{1,9}") {
        let text = format!(
            "PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'q' in vhost '/': received \
             the value '{asked}' of type 'longstr' but current is the value '{has}' of type 'longstr'"
        );
        prop_assert_eq!(read_mismatch(&text), Some((&*argument, &*asked, &*has)));
    }
}
