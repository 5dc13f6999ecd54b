//! Connects: tries one address after the other, and each IP address of a host name, in a thread of
//! its own, until one of them takes us.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select_biased};
use log::warn;

use crate::amqp::call_timeout::{SLOW_AFTER, Warned, Watchdog};
use crate::amqp::connection::Connection;
use crate::amqp::handshake::{Handshake, Refused};
use crate::amqp::socket::{connect, look_up};
#[cfg(feature = "tls")]
use crate::amqp::tls_config::Connectors;
use crate::model::address_order::Failure;
use crate::model::broker::{Broker, Limits};
use crate::model::error::Error;
use crate::model::url::Address;
use crate::util::deadline::{UNLIMITED, deadline_after};
use crate::util::panic::caught;
use crate::util::shutdown::{Closer, Signal, closer, is_closed};

/// A connection that is being made. Dropping it discards the result.
#[derive(Debug)]
pub(crate) struct ConnectAttempt {
    opened: Receiver<Result<Connection, Error>>,
    /// Closes when the result is there.
    ended: Signal,
    progress: Arc<Mutex<Progress>>,
    /// Dropped with this: nobody waits for the result any more.
    _wanted: Closer,
}

/// How far an attempt has come.
#[derive(Debug, Default)]
struct Progress {
    /// The addresses that failed, and why.
    failed: Vec<String>,
    /// The address that is being tried.
    trying: Option<String>,
}

/// Tries the addresses, in the thread of an attempt.
struct AddressLoop {
    broker: Broker,
    #[cfg(feature = "tls")]
    connectors: Connectors,
    /// When the last address should have its turn.
    deadline: Instant,
    progress: Arc<Mutex<Progress>>,
    cancelled: Signal,
}

/// The least time that an address gets, and the most while others are left to try. The last one
/// gets more.
const SHORTEST_SHARE: Duration = Duration::from_secs(1);
const LONGEST_SHARE: Duration = Duration::from_secs(5);

/// Opens a connection to the first address that takes one. `None` when `interrupt` closed first; the
/// attempt then ends by its own limits, in the background.
pub(crate) fn open(broker: &Broker, interrupt: &Signal) -> Result<Option<Connection>, Error> {
    ConnectAttempt::start(broker, UNLIMITED)?.wait(interrupt, None)
}

impl ConnectAttempt {
    /// Begins. The addresses share `budget`, so that each of them has its turn within it.
    pub(crate) fn start(broker: &Broker, budget: Duration) -> Result<ConnectAttempt, Error> {
        broker.validate()?;
        let (result, opened) = bounded(1);
        let (wanted, cancelled) = closer();
        let (end, ended) = closer();
        let progress = Arc::new(Mutex::new(Progress::default()));
        let address_loop = AddressLoop {
            broker: broker.clone(),
            #[cfg(feature = "tls")]
            connectors: Connectors::for_broker(broker)?,
            deadline: deadline_after(budget),
            progress: Arc::clone(&progress),
            cancelled,
        };
        // What it waits for cannot be interrupted, so that it may have to be left behind.
        thread::Builder::new()
            .name("rw-connect".into())
            .spawn(move || {
                let opened = caught(|| address_loop.run());
                let _ = result.send(opened.unwrap_or_else(|panicked| Err(panic_error(panicked))));
                end.close();
            })
            .map_err(|source| Error::NoThread { source })?;
        Ok(ConnectAttempt { opened, ended, progress, _wanted: wanted })
    }

    /// Waits for the result. `None` when `interrupt` closed or `deadline` passed first; the attempt
    /// then goes on, and can be waited for again.
    pub(crate) fn wait(
        &self,
        interrupt: &Signal,
        deadline: Option<Instant>,
    ) -> Result<Option<Connection>, Error> {
        let late = deadline.map_or_else(crossbeam_channel::never, crossbeam_channel::at);
        select_biased! {
            recv(interrupt) -> _ => Ok(None),
            recv(self.opened) -> opened => match opened {
                Ok(opened) => opened.map(Some),
                Err(_) => Err(Error::Unreachable { attempts: vec!["the attempt panicked".into()] }),
            },
            recv(late) -> _ => Ok(None),
        }
    }

    /// Closes when it has a result, for which [`wait`](ConnectAttempt::wait) then need not wait.
    pub(crate) fn ended(&self) -> &Signal {
        &self.ended
    }

    /// Why each address that has been tried so far failed.
    pub(crate) fn failures(&self) -> Vec<String> {
        let progress = lock(&self.progress);
        let trying = progress.trying.iter().map(|address| format!("{address}: no answer in time"));
        progress.failed.iter().cloned().chain(trying).collect()
    }
}

/// An address, or one IP address of it, to try.
struct Candidate<'a> {
    address: &'a Address,
    host: Host,
}

#[derive(Clone, Copy)]
enum Host {
    /// A name that has to be looked up.
    Name,
    /// The only target of the host.
    Target(SocketAddr),
    /// One of several targets of the host, which stand for so many nodes.
    OneOfTargets(SocketAddr, usize),
}

impl Candidate<'_> {
    fn new(address: &Address) -> Candidate<'_> {
        let host = match address.host.parse::<IpAddr>() {
            Ok(ip) => Host::Target(SocketAddr::new(ip, address.port)),
            Err(_) => Host::Name,
        };
        Candidate { address, host }
    }

    fn target_among_several(&self) -> Option<SocketAddr> {
        match self.host {
            Host::OneOfTargets(target, _) => Some(target),
            Host::Name | Host::Target(_) => None,
        }
    }
}

impl fmt::Display for Candidate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target_among_several() {
            Some(target) => write!(f, "{} ({})", self.address, target.ip()),
            None => write!(f, "{}", self.address),
        }
    }
}

impl AddressLoop {
    fn run(&self) -> Result<Connection, Error> {
        let addresses = self.broker.addresses_in_turn();
        self.try_all(addresses.into_iter().map(Candidate::new).collect())
    }

    fn try_all(&self, mut left: VecDeque<Candidate<'_>>) -> Result<Connection, Error> {
        let mut failed = Failed::default();
        while let Some(candidate) = left.pop_front() {
            if is_closed(&self.cancelled) {
                left.clear();
            }
            let (tried, warned) = self.try_candidate(&candidate, left.len());
            match tried {
                Ok(Tried::Opened(connection)) => {
                    failed.unlogged.iter().for_each(|text| log_skipped(text));
                    return Ok(*connection);
                }
                Ok(Tried::Resolved(targets)) => {
                    self.try_next(candidate.address, targets, &mut left);
                }
                Err(refused) => {
                    let text = self.note_failed(&candidate, refused, &mut failed);
                    failed.log(text, &candidate, warned, left.len());
                }
            }
        }
        // A refusal is something to act on; that the next address is down as well is not.
        let attempts = lock(&self.progress).failed.clone();
        Err(failed.lasting.unwrap_or(Error::Unreachable { attempts }))
    }

    /// Puts the targets of a host name before what is left.
    fn try_next<'a>(
        &self,
        address: &'a Address,
        targets: Vec<SocketAddr>,
        left: &mut VecDeque<Candidate<'a>>,
    ) {
        let nodes = count_nodes(&targets);
        let several = targets.len() > 1;
        for target in self.broker.targets_in_turn(targets).into_iter().rev() {
            let host =
                if several { Host::OneOfTargets(target, nodes) } else { Host::Target(target) };
            left.push_front(Candidate { address, host });
        }
    }

    fn try_candidate(
        &self,
        candidate: &Candidate<'_>,
        others: usize,
    ) -> (Result<Tried, Refused>, Warned) {
        lock(&self.progress).trying = Some(candidate.to_string());
        let deadline = deadline_after(self.time(others));
        let watchdog = match Watchdog::start().map_err(Refused::for_want_of_a_thread) {
            Ok(watchdog) => watchdog,
            Err(refused) => return (Err(refused), Warned::No),
        };
        let guard = watchdog.call_guard().clone();
        let doing = format!("connecting to {candidate}");
        let Candidate { address, host } = *candidate;
        guard.warn_after(SLOW_AFTER, &self.cancelled, &doing, || match host {
            Host::Name => resolve(&self.broker, address, deadline),
            Host::Target(target) => self.open_at(address, (target, 1), watchdog, deadline),
            Host::OneOfTargets(target, nodes) => {
                self.open_at(address, (target, nodes), watchdog, deadline)
            }
        })
    }

    fn open_at(
        &self,
        address: &Address,
        (target, nodes): (SocketAddr, usize),
        watchdog: Watchdog,
        deadline: Instant,
    ) -> Result<Tried, Refused> {
        let limits = self.broker.limits(address, nodes);
        let socket = connect(target, within(limits.connect, deadline))?;
        let handshake = Handshake {
            broker: &self.broker,
            #[cfg(feature = "tls")]
            connector: self.connectors.of(address),
            address,
            limits: Limits { handshake: within(limits.handshake, deadline), ..limits },
        };
        let opened = Connection::over(socket, watchdog, &handshake)?;
        Ok(Tried::Opened(Box::new(opened)))
    }

    /// The time for one address, if so many others are left. The last may take what it needs: the
    /// caller has a deadline of its own.
    fn time(&self, others: usize) -> Duration {
        match others {
            0 => UNLIMITED,
            _ => share(self.deadline, others + 1).clamp(SHORTEST_SHARE, LONGEST_SHARE),
        }
    }

    /// Notes why a candidate failed, and returns it as text.
    fn note_failed(
        &self,
        candidate: &Candidate<'_>,
        refused: Refused,
        failed: &mut Failed,
    ) -> String {
        let (text, failure) = match refused {
            Refused::Transient(cause) => (format!("{candidate}: {cause}"), cause.failure()),
            Refused::Lasting(error) => {
                let text = with_address(candidate.address, &error);
                failed.lasting.get_or_insert(error);
                (text, Failure::Lost)
            }
        };
        let failures = self.broker.failures();
        failures.note(&candidate.address.to_string(), failure);
        // The other targets of its host name are tried first the next time.
        if let Some(target) = candidate.target_among_several() {
            failures.note(&target.to_string(), failure);
        }
        let mut progress = lock(&self.progress);
        progress.trying = None;
        progress.failed.push(text.clone());
        text
    }
}

/// What failed before an address took us.
#[derive(Default)]
struct Failed {
    /// The first refusal that a person has to act on.
    lasting: Option<Error>,
    /// What is logged if another address takes us. If none does, the error contains it.
    unlogged: Vec<String>,
}

impl Failed {
    /// Logs at once what the log already said to be slow. That one target of a host name fails is
    /// usual, and not logged: localhost often has two, and a broker listens on one.
    fn log(&mut self, text: String, candidate: &Candidate<'_>, warned: Warned, left: usize) {
        match warned {
            Warned::Yes if left > 0 => log_skipped(&text),
            Warned::No if candidate.target_among_several().is_none() => self.unlogged.push(text),
            Warned::Yes | Warned::No => {}
        }
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_skipped(failed: &str) {
    warn!("skipped {failed}");
}

/// The text of an error of this address, with the address in it once.
fn with_address(address: &Address, error: &Error) -> String {
    let (address, error) = (address.to_string(), error.to_string());
    if error.contains(&address) { error } else { format!("{address}: {error}") }
}

/// The client library panics if the system gives no thread for its timer (mio-extras 2.0.6,
/// timer.rs:488).
fn panic_error(panicked: String) -> Error {
    if panicked.contains("failed to spawn thread") {
        return Error::NoThread { source: io::Error::other(panicked) };
    }
    Error::Unreachable { attempts: vec![format!("the attempt {panicked}")] }
}

/// The result of trying a candidate.
enum Tried {
    Opened(Box<Connection>),
    /// The addresses of its host name.
    Resolved(Vec<SocketAddr>),
}

/// How many nodes the targets of a host name may stand for: one node often has an address of each
/// family.
fn count_nodes(targets: &[SocketAddr]) -> usize {
    let of_one_family = targets.iter().filter(|it| it.is_ipv4()).count();
    of_one_family.max(targets.len() - of_one_family)
}

/// One of so many equal parts of the time that is left.
fn share(deadline: Instant, parts: usize) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left / u32::try_from(parts).unwrap_or(u32::MAX)
}

/// As much of the limit as is left, in whole tenths of a second, which read better; at least one.
fn within(limit: Duration, deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    let tenths = left.as_millis() / 100 + 1;
    limit.min(Duration::from_millis(100) * u32::try_from(tenths).unwrap_or(u32::MAX))
}

fn resolve(broker: &Broker, address: &Address, deadline: Instant) -> Result<Tried, Refused> {
    let (host, port) = (address.host.clone(), address.port);
    let limit = within(broker.limits(address, 1).connect, deadline);
    let targets = look_up(move || Ok((host.as_str(), port).to_socket_addrs()?.collect()), limit)?;
    Ok(Tried::Resolved(targets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn an_error_names_its_address_once() {
        let broker: Broker = "amqp://rabbit-1".parse().expect("a broker");
        let address = broker.addresses_in_turn()[0];
        let text = "NOT_FOUND - vhost x not found".to_string();
        let refused = with_address(address, &Error::VhostRefused { vhost: "x".into(), text });
        assert!(refused.starts_with("rabbit-1:5672: the broker refused"), "{refused}");
        let (address_too, user) = (address.to_string(), Some("u".to_string()));
        let refused = with_address(address, &Error::LoginRefused { address: address_too, user });
        assert_eq!(refused.matches("rabbit-1:5672").count(), 1, "{refused}");
    }

    #[test]
    fn a_node_with_an_address_of_each_family_is_one() {
        let targets = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|it| it.parse().expect("an address")).collect()
        };
        assert_eq!(count_nodes(&targets(&["127.0.0.1:1", "[::1]:1"])), 1);
        assert_eq!(count_nodes(&targets(&["10.0.0.1:1", "10.0.0.2:1", "[fe80::1]:1"])), 2);
    }

    /// A listener that accepts and says this.
    fn saying(words: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        thread::spawn(move || {
            let clients = listener.incoming().map_while(Result::ok);
            clients.for_each(|mut client| drop(client.write_all(words)));
        });
        address
    }

    /// Nobody cancels it before the closer is dropped.
    fn address_loop(broker: &Broker) -> (AddressLoop, Closer) {
        let (wanted, cancelled) = closer();
        let address_loop = AddressLoop {
            #[cfg(feature = "tls")]
            connectors: Connectors::default(),
            broker: broker.clone().in_order(),
            deadline: deadline_after(Duration::from_secs(2)),
            progress: Arc::default(),
            cancelled,
        };
        (address_loop, wanted)
    }

    #[test]
    fn each_address_that_a_host_name_has_is_tried_before_the_next_host() {
        let broker = Broker::new(["amqp://name", "amqp://next"]).expect("a broker");
        let (address_loop, _wanted) = address_loop(&broker);
        let [name, next] = address_loop.broker.addresses_in_turn()[..] else { panic!("two") };
        let mut left = VecDeque::from([Candidate::new(next)]);
        let targets = ["10.0.0.1:5672", "10.0.0.2:5672"].map(|it| it.parse().expect("an address"));

        address_loop.try_next(name, targets.into(), &mut left);

        let left: Vec<String> = left.iter().map(ToString::to_string).collect();
        assert_eq!(left, ["name:5672 (10.0.0.1)", "name:5672 (10.0.0.2)", "next:5672"]);
    }

    #[test]
    fn each_target_of_a_host_name_has_its_turn_in_the_handshake() {
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let silent_at = silent.local_addr().expect("its address");
        let broker: Broker = "amqp://name".parse().expect("a broker");
        let (address_loop, _wanted) = address_loop(&broker);
        let address = broker.addresses_in_turn()[0];
        let targets = [silent_at, saying(b"HTTP/1.1 400\r\n")];
        let left = targets.map(|target| Candidate { address, host: Host::OneOfTargets(target, 2) });

        let Err(error) = address_loop.try_all(left.into()) else { panic!("there is no broker") };

        let Error::Unreachable { attempts } = error else { panic!("{error:?}") };
        assert!(attempts[0].starts_with("name:5672 (127.0.0.1): no answer within"), "{attempts:?}");
        assert!(attempts[1].contains("this is not AMQP"), "{attempts:?}");
        let [first, second] = targets;
        assert_eq!(address_loop.broker.targets_in_turn(targets.into()), [second, first]);
    }

    #[test]
    fn only_what_was_tried_is_named() {
        let silent = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [first, second] = silent.each_ref().map(|it| it.local_addr().expect("its address"));
        let broker = Broker::new([first, second].map(|address| format!("amqp://{address}")));
        let broker = broker.expect("a broker").in_order();
        let attempt = ConnectAttempt::start(&broker, UNLIMITED).expect("a thread");
        let soon = deadline_after(Duration::from_secs(2));
        let opened = attempt.wait(&crossbeam_channel::never(), Some(soon));
        assert!(matches!(opened, Ok(None)), "nobody answers");
        assert_eq!(attempt.failures(), [format!("{first}: no answer in time")]);
    }
}
