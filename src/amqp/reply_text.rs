//! Reads RabbitMQ's reply texts.

/// RabbitMQ says "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but
/// current is 'true'", of the arguments after x- "received the value 'quorum' of type 'longstr'
/// but current is none"; people read it better the other way round.
pub(crate) fn explain_mismatch(text: &str) -> String {
    match read_mismatch(text) {
        Some((argument, asked, has)) => {
            // A quorum queue is declared with it here, and a classic one is not.
            let is_of_a_type = argument == "x-dead-letter-exchange";
            let hint =
                if is_of_a_type { ", as if one is a quorum queue and the other not" } else { "" };
            format!("{argument} is {has} there, and {asked} was asked for{hint}")
        }
        None => text.to_string(),
    }
}

/// The argument that differs, what was asked for, and what is there.
pub(crate) fn read_mismatch(text: &str) -> Option<(&str, &str, &str)> {
    let argument = text.split_once("inequivalent arg '")?.1.split_once('\'')?.0;
    let (received, current) = text.split_once(": received ")?.1.split_once(" but current is ")?;
    Some((argument, side(received), side(current)))
}

fn side(text: &str) -> &str {
    if text.starts_with("none") {
        return "not set";
    }
    match text.split('\'').nth(1) {
        Some("") => "''",
        Some(value) => value,
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_of_an_extension_names_both_sides() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost \
                    '/': received the value 'quorum' of type 'longstr' but current is none";
        let wanted = "x-queue-type is not set there, and quorum was asked for";
        assert_eq!(explain_mismatch(text), wanted);
        let text = "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received \
                    none but current is the value '' of type 'longstr'";
        let wanted = "x-dead-letter-exchange is '' there, and not set was asked for, as if one \
                      is a quorum queue and the other not";
        assert_eq!(explain_mismatch(text), wanted);
    }

    #[test]
    fn a_mismatch_in_other_words_is_passed_on() {
        assert_eq!(explain_mismatch("something else"), "something else");
    }
}
