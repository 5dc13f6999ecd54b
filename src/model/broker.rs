//! [`Broker`]: the addresses of RabbitMQ, the order in which they are tried, and the limits of each
//! wait.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::model::address_order::Failures;
use crate::model::connection_name::ConnectionName;
use crate::model::error::Error;
#[cfg(feature = "tls")]
use crate::model::tls::Tls;
use crate::model::url::{Address, parse_addresses};
use crate::model::url_parts::invalid;

/// One RabbitMQ: one or more addresses, and the limits of each wait for it.
///
/// The addresses are tried in a random order, so that many programs spread over the nodes of a
/// cluster; [`in_order`](Broker::in_order) keeps the order given. [`Broker::new`] draws the order.
/// After an address has failed or lost a connection, it is tried after the others. The same holds for
/// the addresses of a host name that has several. Clones of a `Broker` share this order.
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
    name: ConnectionName,
    #[cfg(feature = "tls")]
    tls: Tls,
}

/// The order of addresses that have not failed.
#[derive(Clone, Debug)]
enum Order {
    Given,
    /// By their places in the order given.
    Shuffled(Vec<usize>),
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

/// The heartbeat if there is only one address.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The longest heartbeat if there are several addresses: a frozen node is left before a task's time is
/// up. RabbitMQ advises against less (<https://www.rabbitmq.com/docs/heartbeats>).
const HEARTBEAT_AMONG_SEVERAL: Duration = Duration::from_secs(5);

/// How long a new connection may confirm nothing: as long as it takes to elect another leader of a quorum
/// queue. A single address may stand for several nodes, such as that of a load balancer.
pub(crate) const FIRST_CONFIRM: Duration = Duration::from_secs(10);

impl Broker {
    /// A broker by its URLs. Each may itself be a comma-separated list. In a user, a password or a
    /// virtual host, percent-encode the characters `/ ? # @ , :`. `amqp://` has the default port 5672,
    /// `amqps://` 5671; an absent user or password is `guest`, an absent virtual host `/`.
    /// The query parameters are `heartbeat` (seconds), `connection_timeout` (milliseconds) and
    /// `auth_mechanism=external` (<https://www.rabbitmq.com/docs/uri-spec>).
    ///
    /// An `amqps://` URL may also name files in PEM, in the place of what [`tls`](Broker::tls) sets:
    /// `cacertfile`, the only authorities to trust; `certfile`, the client certificate; and `keyfile`,
    /// its key, if that is not in the same file. They are read at every connect, so that renewed ones
    /// are used. `server_name_indication` is the name that the broker's certificate must be for;
    /// default: the host's. The certificate is always verified: `verify=verify_none` is refused
    /// (<https://www.rabbitmq.com/docs/uri-query-parameters>).
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
            name: ConnectionName::default(),
            #[cfg(feature = "tls")]
            tls: Tls::default(),
        })
    }

    /// Tries the addresses in the order given, as long as none of them fails. Default: a random order.
    #[must_use]
    pub fn in_order(mut self) -> Broker {
        self.order = Order::Given;
        self
    }

    /// Sets the name that RabbitMQ shows for the connections, such as in `rabbitmqctl
    /// list_connections client_properties` and in its management page. The first
    /// connection of a worker or producer has this name. Other connections add their role, such as
    /// `mail republish`. Default: the role, the queue, the host and the process id, such as
    /// `worker task_queue@host #4711`.
    ///
    /// The tag of a consumer is the name with the number of its thread, such as `mail.1`. A further
    /// number follows when the thread subscribes again.
    ///
    /// A name has at most 255 bytes: with a longer one, each connect fails with
    /// [`Error::InvalidSetting`].
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Broker {
        self.name.given = Some(name.into());
        self
    }

    /// Refuses settings with which no connection is possible.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.name.validate()
    }

    /// The same broker for connections of this role.
    pub(crate) fn for_role(&self, role: &'static str, queue: &str) -> Broker {
        Broker { name: self.name.of(role, queue), ..self.clone() }
    }

    /// The name of the next connection.
    pub(crate) fn connection_name(&self) -> String {
        self.name.text()
    }

    /// Sets how long one address may take to accept a TCP connection. If there
    /// are others to try, at most 5 s. Default: 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Broker {
        self.limits.connect = limit;
        self
    }

    /// Sets how long the AMQP and TLS handshakes with one address may take. If there are
    /// others to try, TCP connect and handshakes together get at most 5 s. Default: 10 s.
    #[must_use]
    pub fn handshake_timeout(mut self, limit: Duration) -> Broker {
        self.limits.handshake = limit;
        self
    }

    /// Sets how long to wait for one answer of the broker before the connection is closed. While the
    /// broker sends more than heartbeats, for instance large tasks, the wait is twelve times as
    /// long. Default: 20 s.
    #[must_use]
    pub fn call_timeout(mut self, limit: Duration) -> Broker {
        self.limits.call = limit;
        self
    }

    /// Sets how long the close of a connection may take before its socket is shut. Default: 2 s.
    #[must_use]
    pub fn close_timeout(mut self, limit: Duration) -> Broker {
        self.limits.close = limit;
        self
    }

    /// Sets the heartbeat to ask for, rounded up to whole seconds; zero is none. If the broker asks for a
    /// shorter one, that is used. If it asks for none, this one is used, at most 255 s. A dead peer
    /// is noticed after two intervals. Default: 10 s.
    ///
    /// With several nodes, in the URLs or behind a host name, the heartbeat is 5 s at most, whatever
    /// is asked for: a producer must leave a frozen node before a task's timeout ends.
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

    /// The addresses, in the order in which to try them now.
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

    /// The targets of a host name, in the order in which to try them now. IPv4 and IPv6 stay in the
    /// order of the system's resolver.
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

    /// The limits for an address whose host name has this many targets.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::address_order::Failure;

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
    fn no_way_of_printing_shows_the_password() {
        let broker: Broker = "amqp://u:s3cret@host".parse().expect("a broker");
        assert!(!format!("{broker} {broker:?} {broker:#?}").contains("s3cret"));
    }
}
