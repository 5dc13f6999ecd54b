//! Reads RabbitMQ's reply texts. AMQP's reply codes are too coarse to decide on, so that the words
//! have to do. Each text stands as RabbitMQ 3.10.8, 4.0.5 and 4.3.6 contain it, unless it says
//! otherwise; a close puts the name of its code before it, as in "PRECONDITION_FAILED - ".

use crate::model::error::STREAM;

/// "delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms. [...]"
pub(crate) fn is_delivery_timeout(text: &str) -> bool {
    text.contains("delivery acknowledgement") && text.contains("timed out")
}

/// "unknown delivery tag 3"
pub(crate) fn is_unknown_delivery_tag(text: &str) -> bool {
    text.starts_with("PRECONDITION_FAILED - unknown delivery tag")
}

/// "no queue 'q' in vhost '/'", whatever the name. A queue that is down exists, and its text is
/// another: "home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or inaccessible",
/// "failed to perform operation on queue 'q' in vhost '/' due to timeout", "queue 'q' in vhost '/'
/// process is stopped by supervisor", "queue 'q' in vhost '/' has crashed and failed to restart".
pub(crate) fn is_no_queue(text: &str) -> bool {
    text.starts_with("NOT_FOUND - no ")
}

/// "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but current is 'true'"
pub(crate) fn is_mismatch(text: &str) -> bool {
    text.contains("inequivalent arg")
}

/// "invalid arg 'x-expires' for queue 'q' in vhost '/': {value_zero,0}"
pub(crate) fn is_invalid_argument(text: &str, argument: &str) -> bool {
    text.contains(&format!("invalid arg '{argument}'"))
}

/// RabbitMQ's module for streams.
pub(crate) const STREAM_MODULE: &str = "rabbit_stream_queue";

/// The type of queue that refuses an argument of a declaration or of a consumer, as RabbitMQ's module:
/// "invalid arg 'x-max-age' for queue 'q' in vhost '/' of queue type rabbit_quorum_queue"
pub(crate) fn refusing_queue_type(text: &str) -> Option<&str> {
    text.rsplit_once(" of queue type ").map(|(_, module)| module)
}

/// "access to vhost '/' refused for user 'guest': connection limit (1) is reached", "connection
/// refused for user 'guest': user connection limit (1) is reached"; since 4.0 also "connection
/// refused: node connection limit (1) is reached" and "[...]: connection limit cannot be queried,
/// timeout".
pub(crate) fn is_connection_limit(text: &str) -> bool {
    text.contains("connection limit")
}

/// "Feature `transient_nonexcl_queues` is deprecated. By default, this feature is not permitted
/// anymore. [...]" or "[...] Its use is not permitted per the configuration [...]", from 4.0 on
/// (<https://www.rabbitmq.com/docs/deprecated-features>).
pub(crate) fn is_feature_denied(text: &str) -> bool {
    text.contains("not permitted")
}

/// The largest body: "message size 200 is larger than configured max size 100", or "larger than max
/// size" for the largest that can be configured.
pub(crate) fn size_limit(text: &str) -> Option<usize> {
    let after = text.split("larger than").nth(1)?;
    let digits = after.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty())?;
    digits.parse().ok()
}

/// A mismatch as people read it better: what the queue has first.
pub(crate) fn explain_mismatch(text: &str) -> String {
    match read_mismatch(text) {
        Some(("x-queue-type", _, "stream")) => STREAM.into(),
        Some((argument, asked, has)) => {
            // We declare a quorum queue with it, and a classic one without.
            let is_of_a_type = argument == "x-dead-letter-exchange";
            let hint = if is_of_a_type { " (give the same --queue-type?)" } else { "" };
            format!("{argument} is {has} in the existing queue, and {asked} was asked for{hint}")
        }
        None => text.to_string(),
    }
}

/// The argument that differs, what was asked for, and what the queue has.
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

    const UNKNOWN_TAG: &str = "PRECONDITION_FAILED - unknown delivery tag 3";

    #[test]
    fn a_delivery_timeout_is_known_by_its_text() {
        let text = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. \
                    Timeout value used: 1800000 ms. This timeout value can be configured, see \
                    consumers doc guide to learn more";
        assert!(is_delivery_timeout(text) && !is_unknown_delivery_tag(text));
        assert!(!is_delivery_timeout(UNKNOWN_TAG) && is_unknown_delivery_tag(UNKNOWN_TAG));
    }

    #[test]
    fn the_name_of_a_queue_is_no_part_of_the_reason() {
        assert!(is_no_queue("NOT_FOUND - no queue 'home node ' in vhost '/'"));
        assert!(!is_no_queue("NOT_FOUND - queue 'no queue' in vhost '/' process is stopped"));
        let text = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'x-expires' in \
                    vhost '/': received 'false' but current is 'true'";
        assert!(is_mismatch(text) && !is_invalid_argument(text, "x-expires"));
        let missing = "NOT_FOUND - no queue 'PRECONDITION_FAILED - unknown delivery tag'";
        assert!(!is_unknown_delivery_tag(missing));
    }

    #[test]
    fn an_argument_is_refused_by_its_value_or_by_the_type_of_the_queue() {
        let by_value = "PRECONDITION_FAILED - invalid arg 'x-expires' for queue 'q' in vhost '/': \
                        {value_zero,0}";
        assert!(is_invalid_argument(by_value, "x-expires"));
        assert!(!is_invalid_argument(by_value, "x-priority"));
        assert_eq!(refusing_queue_type(by_value), None);
        let by_type = "PRECONDITION_FAILED - invalid arg 'x-max-age' for queue ' of queue type ' \
                       in vhost '/' of queue type rabbit_quorum_queue";
        assert_eq!(refusing_queue_type(by_type), Some("rabbit_quorum_queue"));
    }

    #[test]
    fn a_connection_limit_is_one_of_the_vhost_the_user_or_the_node() {
        for text in [
            "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (1) is \
             reached",
            "NOT_ALLOWED - connection refused for user 'guest': user connection limit (1) is \
             reached",
            "NOT_ALLOWED - connection refused: node connection limit (1) is reached",
        ] {
            assert!(is_connection_limit(text), "{text}");
        }
        assert!(!is_connection_limit("NOT_ALLOWED - vhost x not found"));
    }

    #[test]
    fn a_feature_is_denied_by_default_or_by_configuration() {
        for text in [
            "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated. By default, this \
             feature is not permitted anymore.",
            "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated. Its use is not \
             permitted per the configuration",
        ] {
            assert!(is_feature_denied(text), "{text}");
        }
        assert!(!is_feature_denied("INTERNAL_ERROR"));
    }

    #[test]
    fn the_size_limit_is_read_from_the_refusal() {
        for text in [
            "PRECONDITION_FAILED - message size 200 is larger than configured max size 100",
            "PRECONDITION_FAILED - message size 200 is larger than max size 100",
        ] {
            assert_eq!(size_limit(text), Some(100));
        }
        assert_eq!(size_limit(UNKNOWN_TAG), None);
    }

    #[test]
    fn a_mismatch_of_an_extension_names_both_sides() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost \
                    '/': received the value 'quorum' of type 'longstr' but current is none";
        let wanted = "x-queue-type is not set in the existing queue, and quorum was asked for";
        assert_eq!(explain_mismatch(text), wanted);
        let text = "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received \
                    none but current is the value '' of type 'longstr'";
        let wanted = "x-dead-letter-exchange is '' in the existing queue, and not set was asked for (give \
                      the same --queue-type?)";
        assert_eq!(explain_mismatch(text), wanted);
    }

    #[test]
    fn a_stream_is_refused_as_one() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost \
                    '/': received none but current is the value 'stream' of type 'longstr'";
        assert_eq!(explain_mismatch(text), STREAM);
    }

    #[test]
    fn a_mismatch_in_other_words_is_passed_on() {
        assert_eq!(explain_mismatch("something else"), "something else");
    }
}
