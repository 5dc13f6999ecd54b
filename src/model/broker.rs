//! Owns [`Broker`]: where RabbitMQ is and how to log in there. Parses URLs, never shows a
//! password.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::model::address_order::Failures;
use crate::model::error::Error;

/// One RabbitMQ, as one or more addresses, with the limits of every wait for it.
///
/// The addresses are tried in a random order, which [`Broker::new`] draws, so that the programs of
/// a fleet spread over the nodes of a cluster; [`in_order`](Broker::in_order) keeps the order
/// given. An address that fails, or that loses a connection, is tried after the others from then
/// on. So is each address of a host name that has several. Clones of a `Broker` share this order.
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
    /// In the order given.
    addresses: Vec<Address>,
    order: Order,
    failures: Failures,
    limits: Limits,
    heartbeat: Option<Duration>,
    #[cfg(feature = "tls")]
    tls: Tls,
}

/// In which order addresses are tried that have not failed.
#[derive(Clone, Debug)]
enum Order {
    Given,
    /// By their places in what was given.
    Shuffled(Vec<usize>),
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
            heartbeat: HEARTBEAT,
        }
    }
}

/// The heartbeat of the only address.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The longest heartbeat of one of several addresses: a dead one is left soon, because another can
/// be tried, and before a publish has run out of time. RabbitMQ advises against less
/// (<https://www.rabbitmq.com/docs/heartbeats>).
const HEARTBEAT_AMONG_SEVERAL: Duration = Duration::from_secs(5);

impl Broker {
    /// A broker by its URLs. Each may itself be a comma-separated list. In a user, a password or a
    /// virtual host, percent-encode the characters `/ ? # @ , :`. `amqp://` has the default port 5672, `amqps://` 5671; an absent user or password is
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
        let addresses = parse_addresses(&urls)?;
        let mut order: Vec<usize> = (0..addresses.len()).collect();
        fastrand::shuffle(&mut order);
        Ok(Broker {
            addresses,
            order: Order::Shuffled(order),
            failures: Failures::default(),
            limits: Limits::default(),
            heartbeat: None,
            #[cfg(feature = "tls")]
            tls: Tls::default(),
        })
    }

    /// Tries the addresses in the order given, as long as none of them fails. Default: in a random
    /// order.
    #[must_use]
    pub fn in_order(mut self) -> Broker {
        self.order = Order::Given;
        self
    }

    /// Sets how long one address may take to accept a TCP connection. While others are left to
    /// try, it gets 5 s at most. Default: 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Broker {
        self.limits.connect = limit;
        self
    }

    /// Sets how long the AMQP and TLS handshakes with one address may take. While others are left
    /// to try, it gets 5 s at most, with its connection. Default: 10 s.
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
    /// With several nodes, in the URLs or behind a host name, the heartbeat is 5 s at most, also
    /// where more or none is asked for: a producer must leave a frozen node before a task's time
    /// is up.
    ///
    /// Source: <https://www.rabbitmq.com/docs/heartbeats>.
    #[must_use]
    pub fn heartbeat(mut self, interval: Duration) -> Broker {
        let part = u64::from(interval.subsec_nanos() > 0);
        self.heartbeat = Some(Duration::from_secs(interval.as_secs().saturating_add(part)));
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

    /// The addresses in the order in which to try them now.
    pub(crate) fn addresses_in_turn(&self) -> Vec<&Address> {
        let mut addresses: Vec<_> = match &self.order {
            Order::Given => self.addresses.iter().collect(),
            Order::Shuffled(places) => {
                places.iter().filter_map(|place| self.addresses.get(*place)).collect()
            }
        };
        self.failures.sort(&mut addresses);
        addresses
    }

    /// What the host name of an address resolved to, in the order in which to try it now. The
    /// families stay as the system's resolver orders them.
    pub(crate) fn targets_in_turn(&self, mut targets: Vec<SocketAddr>) -> Vec<SocketAddr> {
        if matches!(self.order, Order::Shuffled(_)) {
            let families = targets.chunk_by_mut(|a, b| a.is_ipv4() == b.is_ipv4());
            families.for_each(fastrand::shuffle);
        }
        self.failures.sort(&mut targets);
        targets
    }

    pub(crate) fn failures(&self) -> &Failures {
        &self.failures
    }

    /// The limits for an address whose host has so many nodes.
    pub(crate) fn limits(&self, address: &Address, nodes: usize) -> Limits {
        let is_only_one = self.addresses.len() == 1 && nodes <= 1;
        let asked = address.heartbeat.or(self.heartbeat);
        let heartbeat = if is_only_one {
            asked.unwrap_or(HEARTBEAT)
        } else {
            let is_short = |it: &Duration| !it.is_zero() && *it < HEARTBEAT_AMONG_SEVERAL;
            asked.filter(is_short).unwrap_or(HEARTBEAT_AMONG_SEVERAL)
        };
        Limits {
            connect: address.connect_timeout.unwrap_or(self.limits.connect),
            heartbeat,
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
    // Or the beginning of a password would be taken for a port, which is logged.
    if path.is_some_and(has_an_at_sign_after_the_host) {
        return Err(invalid("there is an @ after a / or a ?"));
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

fn has_an_at_sign_after_the_host(rest: &str) -> bool {
    rest.split_once(['/', '?', '#']).is_some_and(|(_, after)| after.contains('@'))
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
    use crate::model::address_order::Failure;

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

    fn in_turn(broker: &Broker) -> String {
        let addresses = broker.addresses_in_turn();
        addresses.iter().map(|it| it.to_string()).collect::<Vec<_>>().join(" ")
    }

    const SIX: &str = "amqp://a,amqp://b,amqp://c,amqp://d,amqp://e,amqp://f";
    const SIX_IN_ORDER: &str = "a:5672 b:5672 c:5672 d:5672 e:5672 f:5672";

    #[test]
    fn a_list_keeps_its_order_where_that_is_asked_for() {
        let broker: Broker = SIX.parse().expect("addresses");
        assert_eq!(in_turn(&broker.in_order()), SIX_IN_ORDER);
    }

    #[test]
    fn a_list_is_shuffled_once() {
        let orders = (0..100).map(|_| {
            let broker: Broker = SIX.parse().expect("addresses");
            let order = in_turn(&broker);
            assert_eq!(in_turn(&broker.clone()), order, "by the same broker");
            assert_eq!(broker.to_string().replace(',', ""), SIX_IN_ORDER, "and shown as given");
            order
        });
        let orders: std::collections::HashSet<_> = orders.collect();
        assert!(orders.len() > 50, "of 720: {}", orders.len());
    }

    #[test]
    fn an_address_that_failed_is_tried_after_the_others() {
        let broker: Broker = "amqp://a,amqp://b:1,amqp://[::1]".parse().expect("addresses");
        let broker = broker.in_order();
        broker.failures().note("a:5672", Failure::Lost);
        assert_eq!(in_turn(&broker), "b:1 [::1]:5672 a:5672");
        broker.clone().failures().note("b:1", Failure::Lost);
        assert_eq!(in_turn(&broker), "[::1]:5672 a:5672 b:1", "clones share it");
    }

    #[test]
    fn the_targets_of_a_host_name_are_tried_as_addresses_are() {
        let targets = ["[::1]:1", "[::2]:1", "127.0.0.1:1", "127.0.0.2:1"];
        let targets = targets.map(|it| it.parse::<SocketAddr>().expect("a target"));
        let broker: Broker = "amqp://name:1".parse().expect("a broker");
        let orders = (0..100).map(|_| broker.targets_in_turn(targets.to_vec()));
        let orders: std::collections::HashSet<_> = orders.collect();
        assert_eq!(orders.len(), 4, "each family by itself: {orders:?}");
        assert!(orders.iter().all(|order| order[0].is_ipv6() && order[2].is_ipv4()));

        let broker = broker.in_order();
        assert_eq!(broker.targets_in_turn(targets.to_vec()), targets);
        broker.failures().note("[::1]:1", Failure::Lost);
        let [first, others @ ..] = targets;
        assert_eq!(broker.targets_in_turn(targets.to_vec()), [&others[..], &[first]].concat());
    }

    #[test]
    fn one_of_several_addresses_has_a_shorter_heartbeat() {
        let heartbeat = |broker: &Broker, targets| {
            broker.limits(&broker.addresses[0], targets).heartbeat.as_secs()
        };
        for (parameter, alone, among_several) in [
            ("", 10, 5),
            ("?heartbeat=2", 2, 2),
            ("?heartbeat=7", 7, 5),
            ("?heartbeat=60", 60, 5),
            ("?heartbeat=0", 0, 5),
        ] {
            let one: Broker = format!("amqp://a{parameter}").parse().expect("an address");
            let two: Broker = format!("amqp://a{parameter},amqp://b").parse().expect("addresses");
            let heartbeats = [heartbeat(&one, 1), heartbeat(&one, 2), heartbeat(&two, 1)];
            assert_eq!(heartbeats, [alone, among_several, among_several], "{parameter}");
        }
        let [one, two] = ["amqp://a", "amqp://a,amqp://b"].map(|urls| {
            let broker: Broker = urls.parse().expect("addresses");
            broker.heartbeat(Duration::from_secs(20))
        });
        assert_eq!([heartbeat(&one, 1), heartbeat(&two, 1)], [20, 5]);
    }

    #[test]
    fn a_heartbeat_below_a_second_is_a_second_and_not_none() {
        let asked = |interval| {
            let broker = "amqp://h".parse::<Broker>().expect("a broker").heartbeat(interval);
            broker.limits(&broker.addresses[0], 1).heartbeat.as_secs()
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
    fn a_list_is_shown_in_its_order() {
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

    #[test]
    fn no_way_of_printing_shows_the_password() {
        let broker: Broker = "amqp://u:s3cret@host".parse().expect("a broker");
        assert!(!format!("{broker} {broker:?} {broker:#?}").contains("s3cret"));
    }
}
