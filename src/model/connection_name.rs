//! The name that RabbitMQ shows for a connection.

use std::process;

use crate::model::error::Error;
use crate::util::host::host_name;

/// What names the connections of a broker.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionName {
    /// The caller's.
    pub(crate) given: Option<String>,
    purpose: Option<Purpose>,
}

/// What a connection is for.
#[derive(Clone, Debug)]
struct Purpose {
    role: &'static str,
    queue: String,
}

/// The roles of connections that a program asks for by itself. Others, such as `republish`, come
/// beside them.
pub(crate) const WORKER: &str = "worker";
pub(crate) const PRODUCER: &str = "producer";

/// The longest name that a caller may give. It is part of the login, for which RabbitMQ takes 4 KiB
/// (`initial_frame_max`, <https://www.rabbitmq.com/docs/configure>).
const LONGEST: usize = 255;

impl ConnectionName {
    /// # Errors
    /// [`Error::InvalidSetting`] for a name that is too long.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        match &self.given {
            Some(given) if given.len() > LONGEST => {
                let reason = format!(
                    "it has {} bytes; a connection's name has at most {LONGEST}",
                    given.len()
                );
                Err(Error::setting("name", reason))
            }
            _ => Ok(()),
        }
    }

    /// The name for a connection of this role.
    pub(crate) fn of(&self, role: &'static str, queue: &str) -> ConnectionName {
        let purpose = Some(Purpose { role, queue: queue.into() });
        ConnectionName { given: self.given.clone(), purpose }
    }

    pub(crate) fn text(&self) -> String {
        match (&self.given, &self.purpose) {
            (Some(given), Some(Purpose { role, .. })) if ![WORKER, PRODUCER].contains(role) => {
                format!("{given} {role}")
            }
            (Some(given), _) => given.clone(),
            (None, Some(Purpose { role, queue })) => format!("{role} {queue}@{}", this_process()),
            (None, None) => format!("rabbit-work@{}", this_process()),
        }
    }
}

fn this_process() -> String {
    format!("{} #{}", host_name(), process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_the_connection_is_for_unless_one_is_given() {
        let place = this_process();
        let name = ConnectionName::default();
        assert_eq!(name.text(), format!("rabbit-work@{place}"));
        assert_eq!(name.of(WORKER, "q").text(), format!("worker q@{place}"));
        assert_eq!(name.of("republish", "q").text(), format!("republish q@{place}"));

        let named = ConnectionName { given: Some("mail 1".into()), purpose: None };
        assert_eq!(named.of(PRODUCER, "q").text(), "mail 1");
        assert_eq!(named.of("republish", "q").text(), "mail 1 republish");
    }

    #[test]
    fn a_name_has_at_most_255_bytes() {
        let named = |name: String| ConnectionName { given: Some(name), purpose: None };
        assert!(named("é".repeat(127)).validate().is_ok());
        let refused = named("é".repeat(128)).validate().expect_err("256 bytes").to_string();
        assert_eq!(refused, "name: it has 256 bytes; a connection's name has at most 255");
    }
}
