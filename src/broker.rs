//! Owns [`Broker`]: where RabbitMQ is and how to log in there. Parses URLs, never shows a
//! password.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::error::Error;

/// One RabbitMQ, as one or more addresses that are tried in order, with the limits of every
/// wait for it.
///
/// ```
/// # fn main() -> Result<(), rabbit_work::Error> {
/// use rabbit_work::Broker;
///
/// let one: Broker = "amqp://guest:guest@localhost:5672".parse()?;
/// let cluster = Broker::new(["amqp://me:secret@rabbit-1/jobs", "amqp://me:secret@rabbit-2/jobs"])?;
/// assert!(!format!("{cluster:?}").contains("secret"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Broker {
    addresses: Vec<Address>,
    limits: Limits,
    #[cfg(feature = "tls")]
    tls: Tls,
}

/// The certificates of an `amqps://` connection, each in PEM.
#[cfg(feature = "tls")]
#[derive(Clone, Default)]
pub struct Tls {
    pub(crate) authority: Option<Vec<u8>>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
}

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

/// How long each wait for the broker may last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
    pub(crate) handshake: Duration,
    pub(crate) call: Duration,
    pub(crate) close: Duration,
    pub(crate) heartbeat: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            call: Duration::from_secs(20),
            close: Duration::from_secs(2),
            heartbeat: Duration::from_secs(10),
        }
    }
}

impl Broker {
    /// A broker by its URLs, tried in the order given. Each may itself be a comma-separated
    /// list. `amqp://` has the default port 5672, `amqps://` 5671; an absent user or password is
    /// `guest`, an absent virtual host `/`. Of the query parameters, `heartbeat` (seconds),
    /// `connection_timeout` (milliseconds) and `auth_mechanism=external` are known
    /// (<https://www.rabbitmq.com/docs/uri-spec>).
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] for the first URL that cannot be read, or for an empty list.
    pub fn new<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Result<Broker, Error> {
        let lists: Vec<U> = urls.into_iter().collect();
        let urls: Vec<&str> =
            lists.iter().flat_map(|list| list.as_ref().split(',')).map(str::trim).collect();
        if urls.is_empty() {
            return Err(invalid("no URL was given"));
        }
        Ok(Broker {
            addresses: parse_addresses(&urls)?,
            limits: Limits::default(),
            #[cfg(feature = "tls")]
            tls: Tls::default(),
        })
    }

    /// Sets how long one address may take to accept a TCP connection. Default: 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Broker {
        self.limits.connect = limit;
        self
    }

    /// Sets how long the AMQP and TLS handshakes with one address may take. Default: 10 s.
    #[must_use]
    pub fn handshake_timeout(mut self, limit: Duration) -> Broker {
        self.limits.handshake = limit;
        self
    }

    /// Sets how long any single answer of the broker is waited for before the connection is
    /// given up. While the broker sends other things than heartbeats, which come first, it is
    /// waited for twelve times as long. Default: 20 s.
    #[must_use]
    pub fn call_timeout(mut self, limit: Duration) -> Broker {
        self.limits.call = limit;
        self
    }

    /// Sets how long an orderly close may take before the socket is simply shut. Default: 2 s.
    #[must_use]
    pub fn close_timeout(mut self, limit: Duration) -> Broker {
        self.limits.close = limit;
        self
    }

    /// Sets the heartbeat to ask for, rounded up to whole seconds; zero is none. The broker's own
    /// value counts where it is smaller, but not where it is none: then it is what is asked for
    /// here, at most 255 s. A dead peer is noticed after two intervals. Default: 10 s.
    ///
    /// Source: <https://www.rabbitmq.com/docs/heartbeats>.
    #[must_use]
    pub fn heartbeat(mut self, interval: Duration) -> Broker {
        let part = u64::from(interval.subsec_nanos() > 0);
        self.limits.heartbeat = Duration::from_secs(interval.as_secs().saturating_add(part));
        self
    }

    /// Sets the certificates for the `amqps://` addresses. Default: the system's authorities,
    /// no client certificate.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Broker {
        self.tls = tls;
        self
    }

    /// The same, but this address is tried first, which has just been reached.
    pub(crate) fn beginning_at(&self, reached: &str) -> Broker {
        let mut broker = self.clone();
        let place = broker.addresses.iter().position(|it| it.to_string() == reached);
        broker.addresses.rotate_left(place.unwrap_or_default());
        broker
    }

    pub(crate) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    pub(crate) fn limits(&self, address: &Address) -> Limits {
        Limits {
            connect: address.connect_timeout.unwrap_or(self.limits.connect),
            heartbeat: address.heartbeat.unwrap_or(self.limits.heartbeat),
            ..self.limits
        }
    }

    #[cfg(feature = "tls")]
    pub(crate) fn certificates(&self) -> &Tls {
        &self.tls
    }
}

impl FromStr for Broker {
    type Err = Error;

    fn from_str(url: &str) -> Result<Broker, Error> {
        Broker::new([url])
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, address) in self.addresses.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{address}")?;
        }
        Ok(())
    }
}

#[cfg(feature = "tls")]
impl Tls {
    /// Trusts this authority's certificate too, or every one where the PEM has several.
    #[must_use]
    pub fn authority(mut self, pem: impl Into<Vec<u8>>) -> Tls {
        self.authority = Some(pem.into());
        self
    }

    /// Shows this certificate to the broker; the key is PKCS#8.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Tls {
        self.identity = Some((certificate.into(), key.into()));
        self
    }
}

#[cfg(feature = "tls")]
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("authority", &self.authority.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
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

fn parse_addresses(urls: &[&str]) -> Result<Vec<Address>, Error> {
    let read = |(place, url): (usize, &&str)| match parse_address(url) {
        Err(Error::InvalidUrl { reason }) if urls.len() > 1 => {
            Err(invalid(format!("URL {} of {}: {reason}", place + 1, urls.len())))
        }
        read => read,
    };
    urls.iter().enumerate().map(read).collect()
}

/// The client library's own reading of URLs is not used: its errors print the password, and it
/// knows fewer forms (amiquip 0.4.2 errors.rs:26, connection.rs:516).
fn parse_address(text: &str) -> Result<Address, Error> {
    let url = Url::parse(text).map_err(|error| invalid(error.to_string()))?;
    let (transport, default_port) = match url.scheme() {
        "amqp" => (Transport::Plain, 5672),
        "amqps" if cfg!(feature = "tls") => (Transport::Tls, 5671),
        "amqps" => return Err(invalid("this build has no TLS, so amqps:// cannot be used")),
        _ => return Err(invalid("the scheme is neither amqp:// nor amqps://")),
    };
    // One slash, or three, would make a login a part of the virtual host, which is told.
    let path = text.split_once("://").map(|(_, rest)| rest);
    if path.is_none() || url.cannot_be_a_base() || url.fragment().is_some() {
        return Err(invalid("there is no // after the scheme, or there is a # in it"));
    }
    if path.is_some_and(|rest| rest.starts_with('/') && rest.contains('@')) {
        return Err(invalid("there is a third / before the login, or an @ that is not %40"));
    }
    let mut address = Address {
        host: host(&url),
        port: url.port().unwrap_or(default_port),
        vhost: vhost(&url)?,
        user: decoded_or("guest", url.username(), "user")?,
        password: password(&url, text)?,
        login: Login::Plain,
        transport,
        heartbeat: None,
        connect_timeout: None,
    };
    for (key, value) in url.query_pairs() {
        apply_parameter(&mut address, &key, &value)?;
    }
    Ok(address)
}

/// A password that is there and empty is empty; the URL as it was read no longer tells it from
/// one that is absent.
fn password(url: &Url, text: &str) -> Result<String, Error> {
    let authority = text.split_once("//").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    let login = authority.rsplit_once('@').map_or("", |(login, _)| login);
    let default = if login.contains(':') { "" } else { "guest" };
    decoded_or(default, url.password().unwrap_or(""), "password")
}

fn host(url: &Url) -> String {
    match url.host_str() {
        None | Some("") => "localhost".into(),
        Some(host) => host.trim_start_matches('[').trim_end_matches(']').into(),
    }
}

fn vhost(url: &Url) -> Result<String, Error> {
    let path = url.path().trim_start_matches('/');
    if path.contains('/') {
        return Err(invalid("the virtual host has a '/' in it; write that as %2F"));
    }
    let vhost = decoded_or("/", path, "virtual host")?;
    within_shortstr(vhost, "virtual host")
}

fn decoded_or(default: &str, text: &str, what: &str) -> Result<String, Error> {
    if text.is_empty() {
        return Ok(default.into());
    }
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| invalid(format!("the {what} is not UTF-8")))?.into_owned())
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
        _ => {
            return Err(invalid(
                "of the parameters, only heartbeat, connection_timeout and auth_mechanism are known",
            ));
        }
    }
    Ok(())
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::InvalidUrl { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("amqp://h:5672/a:@b", "guest"),
        ] {
            assert_eq!(address(url).password, password, "{url}");
        }
    }

    #[test]
    fn what_was_reached_is_tried_first_and_the_others_after_it() {
        let broker = Broker::new(["amqp://a,amqp://b:1,amqp://[::1]"]).expect("addresses");
        let order = |reached| {
            let broker = broker.beginning_at(reached);
            broker.addresses().iter().map(Address::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order("b:1"), "b:1 [::1]:5672 a:5672");
        assert_eq!(order("[::1]:5672"), "[::1]:5672 a:5672 b:1");
        assert_eq!(order("gone:1"), "a:5672 b:1 [::1]:5672");
    }

    #[test]
    fn a_heartbeat_below_a_second_is_a_second_and_not_none() {
        let asked = |interval| {
            let broker = "amqp://h".parse::<Broker>().expect("a broker").heartbeat(interval);
            broker.limits(&broker.addresses()[0]).heartbeat.as_secs()
        };
        assert_eq!(asked(Duration::from_millis(500)), 1);
        assert_eq!(asked(Duration::from_millis(2001)), 3);
        assert_eq!(asked(Duration::from_secs(2)), 2);
        assert_eq!(asked(Duration::ZERO), 0);
        assert_eq!(asked(Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_bad_url_of_a_list_is_named_by_its_place() {
        let error = Broker::new(["amqp://a, http://u:s3cret@b", "amqp://c"]).expect_err("one");
        assert!(error.to_string().contains("URL 2 of 3: the scheme"), "{error}");
        let alone = "http://b".parse::<Broker>().expect_err("the scheme");
        assert!(!alone.to_string().contains("URL 1"), "{alone}");
    }

    #[test]
    fn a_list_is_tried_in_its_order() {
        let broker = Broker::new(["amqp://a, amqp://b:1", "amqp://c"]).expect("three addresses");
        assert_eq!(broker.to_string(), "a:5672, b:1, c:5672");
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
            "amqp://u:s3cret@host?heartbeat=s3cret",
            "amqp://u:s3cret@host?auth_mechanism=s3cret",
            "amqp://u:s3cret%ff@host",
            "amqp://u:s3cret@host#x",
            "amqp://u:s3cret@ho st",
        ] {
            let error = url.parse::<Broker>().expect_err(url);
            assert!(matches!(error, Error::InvalidUrl { .. }), "{url}: {error:?}");
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{url}: {error}");
        }
    }

    #[test]
    fn no_way_of_printing_shows_the_password() {
        let broker: Broker = "amqp://u:s3cret@host".parse().expect("a broker");
        assert!(!format!("{broker} {broker:?} {broker:#?}").contains("s3cret"));
    }
}
