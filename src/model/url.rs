//! Parses AMQP URLs into addresses. No error and no output shows a password.
//!
//! The client library's parser is not used: its errors show the password, and it knows fewer forms
//! (amiquip 0.4.2 errors.rs:26, connection.rs:516).

use std::fmt;
use std::time::Duration;

use crate::model::error::Error;
#[cfg(feature = "tls")]
use crate::model::tls_parameters::{self, TlsParameters};
use crate::model::url_parts::{SCHEMES, UrlParts, decoded, invalid};

/// One address with the login that belongs to it.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) vhost: String,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) login: Login,
    pub(crate) transport: Transport,
    pub(crate) heartbeat: Option<Duration>,
    pub(crate) connect_timeout: Option<Duration>,
    #[cfg(feature = "tls")]
    pub(crate) tls: TlsParameters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    Plain,
    External,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    Tls,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{self}/{}", self.user, self.vhost)
    }
}

pub(crate) fn parse_addresses(urls: &[&str]) -> Result<Vec<Address>, Error> {
    let read = |(place, url): (usize, &&str)| match parse_address(url) {
        Err(Error::InvalidUrl { reason }) if urls.len() > 1 => {
            Err(invalid(format!("URL {} of {}: {reason}", place + 1, urls.len())))
        }
        read => read,
    };
    urls.iter().enumerate().map(read).collect()
}

fn parse_address(text: &str) -> Result<Address, Error> {
    let parts = UrlParts::of(text)?;
    let (transport, default_port) = match &*parts.scheme.to_ascii_lowercase() {
        "amqp" => (Transport::Plain, 5672),
        "amqps" if cfg!(feature = "tls") => (Transport::Tls, 5671),
        "amqps" => return Err(invalid("this build has no TLS, so amqps:// cannot be used")),
        _ => return Err(invalid(SCHEMES)),
    };
    let (user, password) = login(&parts)?;
    let mut address = Address {
        port: parts.port.unwrap_or(default_port),
        vhost: vhost(&parts)?,
        user,
        password,
        login: Login::Plain,
        transport,
        heartbeat: None,
        connect_timeout: None,
        #[cfg(feature = "tls")]
        tls: TlsParameters::default(),
        host: parts.host.clone().unwrap_or_else(|| "localhost".into()),
    };
    for parameter in parts.parameters() {
        let (key, value) = parameter?;
        apply_parameter(&mut address, &key, &value)?;
    }
    #[cfg(feature = "tls")]
    address.tls.check()?;
    Ok(address)
}

/// The user and the password. An empty password stays empty; only an absent one is `guest`.
fn login(parts: &UrlParts<'_>) -> Result<(String, String), Error> {
    let (user, password) = parts.login.unwrap_or_default();
    let user = if user.is_empty() { "guest" } else { user };
    Ok((decoded(user, "user")?, decoded(password.unwrap_or("guest"), "password")?))
}

fn vhost(parts: &UrlParts<'_>) -> Result<String, Error> {
    if parts.vhost.contains('/') {
        return Err(invalid("the virtual host has a '/' in it; write that as %2F"));
    }
    let vhost = if parts.vhost.is_empty() { "/" } else { parts.vhost };
    within_shortstr(decoded(vhost, "virtual host")?, "virtual host")
}

fn within_shortstr(text: String, what: &str) -> Result<String, Error> {
    if text.len() > 255 {
        return Err(invalid(format!("the {what} is longer than 255 bytes")));
    }
    Ok(text)
}

fn apply_parameter(address: &mut Address, key: &str, value: &str) -> Result<(), Error> {
    let number = || {
        let bad = |_| invalid(format!("the parameter '{key}' takes a whole number up to 65535"));
        value.parse::<u16>().map(u64::from).map_err(bad)
    };
    match (key, value) {
        ("heartbeat", _) => address.heartbeat = Some(Duration::from_secs(number()?)),
        ("connection_timeout", _) => {
            address.connect_timeout = Some(Duration::from_millis(number()?.max(1)));
        }
        ("auth_mechanism", "external") => address.login = Login::External,
        ("auth_mechanism", "plain") => {}
        ("auth_mechanism", _) => {
            return Err(invalid("the parameter 'auth_mechanism' takes plain or external"));
        }
        #[cfg(feature = "tls")]
        (name, value) if tls_parameters::NAMES.contains(&name) => {
            if address.transport == Transport::Plain {
                return Err(invalid(format!(
                    "the parameter '{name}' needs amqps://; nothing would be encrypted"
                )));
            }
            address.tls.set(name, value)?;
        }
        _ => {
            return Err(invalid(
                "a parameter is unknown; use heartbeat, connection_timeout, auth_mechanism, \
                 cacertfile, certfile, keyfile, verify or server_name_indication",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::broker::Broker;

    fn address(url: &str) -> Address {
        parse_address(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn what_is_absent_has_its_default() {
        let it = address("amqp://");
        assert_eq!((it.host.as_str(), it.port, it.vhost.as_str()), ("localhost", 5672, "/"));
        assert_eq!((it.user.as_str(), it.password.as_str()), ("guest", "guest"));
        assert_eq!(address("amqp://h/").vhost, "/");
        #[cfg(feature = "tls")]
        assert_eq!(address("amqps://h").port, 5671);
    }

    #[test]
    fn every_part_is_read_and_decoded() {
        let it =
            address("amqp://m%40e:p%2Fw%3A@[::1]:5673/a%2Fb?heartbeat=7&connection_timeout=250");
        assert_eq!((it.user.as_str(), it.password.as_str()), ("m@e", "p/w:"));
        assert_eq!((it.host.as_str(), it.port, it.vhost.as_str()), ("::1", 5673, "a/b"));
        assert_eq!(it.heartbeat, Some(Duration::from_secs(7)));
        assert_eq!(it.connect_timeout, Some(Duration::from_millis(250)));
        assert_eq!(it.to_string(), "[::1]:5673");
    }

    #[test]
    fn a_password_is_guest_only_where_there_is_none() {
        for (url, password) in [
            ("amqp://u@h", "guest"),
            ("amqp://u:@h", ""),
            ("amqp://:@h/v?heartbeat=1", ""),
            ("amqp://u:x@h", "x"),
            ("amqp://h:5672/a:%40b", "guest"),
        ] {
            assert_eq!(address(url).password, password, "{url}");
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn parameters_for_tls_are_read_as_rabbitmq_documents_them() {
        let it = address(
            "amqps://h?cacertfile=/a%20b/ca+1.pem&certfile=c.pem&keyfile=k.pem&verify=verify_peer\
             &server_name_indication=rabbit",
        );
        let wanted = TlsParameters {
            authority: Some("/a b/ca+1.pem".into()),
            certificate: Some("c.pem".into()),
            key: Some("k.pem".into()),
            server_name: Some("rabbit".into()),
        };
        assert_eq!(it.tls, wanted);
        assert_eq!(address("amqps://h").tls, TlsParameters::default());
        for (url, reason) in [
            ("amqps://h?verify=verify_none", "verify=verify_none would take any certificate"),
            ("amqps://h?verify=s3cret", "the parameter 'verify' takes verify_peer"),
            ("amqps://h?server_name_indication=disable", "server_name_indication=disable would"),
            ("amqps://h?keyfile=k", "the parameter 'keyfile' needs 'certfile'"),
            ("amqps://h?cacertfile=", "the parameter 'cacertfile' is empty"),
            ("amqp://h?cacertfile=s3cret", "the parameter 'cacertfile' needs amqps://"),
            ("amqps://h?password=s3cret", "a parameter is unknown"),
        ] {
            let error = parse_address(url).expect_err(url).to_string();
            assert!(error.contains(reason) && !error.contains("s3cret"), "{url}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_its_text() {
        let no_hosts: [&str; 0] = [];
        assert!(Broker::new(no_hosts).is_err());
        for url in [
            "",
            "localhost:5672",
            "http://u:s3cret@host",
            "amqp:u:s3cret@host",
            "amqp://u:s3cret@host:99999",
            "amqp://u:s3cret",
            "amqp://u:s3cret@host/a/b",
            "amqp://u:s3cret@host?frame_max=1",
            "amqp://u:s3cret@host?s3cret=1",
            "amqp://u:s3cret@host?heartbeat=s3cret",
            "amqp://u:s3cret@host?auth_mechanism=s3cret",
            "amqp://u:s3cret%ff@host",
            "amqp://u:s3cret@host#x",
            "amqp://u:s3cret@ho st",
            "amqp://u:47/s3cret@host",
            "amqp://u:s3cret/47@host",
            "amqp://u:47?s3cret@host",
            "amqp://u:s3cret?47@host",
            "amqp://u:47#s3cret@host",
            "amqp://u:s3cret#47@host",
            "amqp://u:47,s3cret@host",
            "amqp://u:s3cret,47@host",
            "amqp://u:47/?#,s3cret@host",
            "amqp://47/s3cret:x@host",
            "amqp://u:s3cret@host/vhost@s3cret",
        ] {
            let error = url.parse::<Broker>().expect_err(url);
            assert!(matches!(error, Error::InvalidUrl { .. }), "{url}: {error:?}");
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{url}: {error}");
            assert!(!error.to_string().contains("47"), "{url}: {error}");
            assert!(error.to_string().contains("percent-encode"), "{url}: {error}");
        }
    }
}
