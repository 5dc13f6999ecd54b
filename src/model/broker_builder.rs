//! [`BrokerBuilder`]: a broker by its parts, none of which has to be percent-encoded.

use std::fmt;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::model::broker::Broker;
use crate::model::error::Error;

/// Makes a [`Broker`] by its parts; see [`Broker::builder`].
#[derive(Clone)]
#[must_use]
pub struct BrokerBuilder {
    scheme: &'static str,
    hosts: Vec<String>,
    port: Option<u16>,
    user: String,
    password: String,
    vhost: String,
}

impl Broker {
    /// A broker by its parts instead of a URL, in which some characters of a password or a virtual host
    /// have to be encoded.
    ///
    /// ```
    /// # fn main() -> Result<(), rabbit_work::Error> {
    /// use rabbit_work::Broker;
    ///
    /// let cluster = Broker::builder()
    ///     .host("rabbit-1")
    ///     .host("rabbit-2")
    ///     .login("me", "p@ss/word")
    ///     .vhost("jobs")
    ///     .build()?;
    /// assert_eq!(cluster.to_string(), "rabbit-1:5672, rabbit-2:5672");
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> BrokerBuilder {
        BrokerBuilder {
            scheme: "amqp",
            hosts: Vec::new(),
            port: None,
            user: "guest".into(),
            password: "guest".into(),
            vhost: "/".into(),
        }
    }
}

impl BrokerBuilder {
    /// Adds a node by its host name or IP address. Default: `localhost`, if none is added.
    pub fn host(mut self, host: impl Into<String>) -> BrokerBuilder {
        self.hosts.push(host.into());
        self
    }

    /// Sets the port of all nodes. Default: 5672, with [`encrypted`](BrokerBuilder::encrypted) 5671.
    pub fn port(mut self, port: u16) -> BrokerBuilder {
        self.port = Some(port);
        self
    }

    /// Sets the user and the password. Default: `guest` and `guest`.
    pub fn login(mut self, user: impl Into<String>, password: impl Into<String>) -> BrokerBuilder {
        (self.user, self.password) = (user.into(), password.into());
        self
    }

    /// Sets the virtual host. Default: `/`.
    pub fn vhost(mut self, vhost: impl Into<String>) -> BrokerBuilder {
        self.vhost = vhost.into();
        self
    }

    /// Encrypts the connections (`amqps://`); see also [`Broker::tls`]. Default: not encrypted.
    pub fn encrypted(mut self) -> BrokerBuilder {
        self.scheme = "amqps";
        self
    }

    /// The broker.
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] for the first host that is none, or without the feature `tls` for
    /// [`encrypted`](BrokerBuilder::encrypted).
    pub fn build(self) -> Result<Broker, Error> {
        if self.hosts.is_empty() {
            return self.host("localhost").build();
        }
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let login = format!("{}:{}", encoded(&self.user), encoded(&self.password));
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        let vhost = encoded(&self.vhost);
        let url = |host: &String| {
            // An IPv6 address.
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            format!("{}://{login}@{host}{port}/{vhost}", self.scheme)
        };
        Broker::new(self.hosts.iter().map(url))
    }
}

/// Without the password.
impl fmt::Debug for BrokerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerBuilder")
            .field("hosts", &self.hosts)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("vhost", &self.vhost)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_need_no_encoding_and_come_out_as_they_went_in() {
        let parts = Broker::builder().host("::1").port(1234).vhost("/ jobs?#,@%2F");
        let broker = parts.login("m@e:", "p@ss/w:o,r%d#").build().expect("an address");
        let address = broker.addresses_in_turn()[0];
        assert_eq!((address.host.as_str(), address.port), ("::1", 1234));
        assert_eq!((address.user.as_str(), address.password.as_str()), ("m@e:", "p@ss/w:o,r%d#"));
        assert_eq!(address.vhost, "/ jobs?#,@%2F");
    }

    #[test]
    fn without_parts_it_is_the_broker_on_this_machine() {
        let built = Broker::builder().build().expect("an address");
        let address = built.addresses_in_turn()[0];
        assert_eq!(built.to_string(), "localhost:5672");
        assert_eq!((address.user.as_str(), address.vhost.as_str()), ("guest", "/"));
    }

    #[test]
    fn no_output_shows_the_password() {
        let parts = Broker::builder().host("no host").login("me", "s3cret");
        assert!(!format!("{parts:?}").contains("s3cret"));
        let error = parts.build().expect_err("a host has no space in it");
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
    }
}
