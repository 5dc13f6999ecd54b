//! Owns the attempt to connect: one address after the other, in a thread of its own, until one of
//! them takes us.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select_biased};
use log::warn;

use crate::broker::{Address, Broker};
use crate::cause::Cause;
use crate::connection::{Connection, Refused};
use crate::deadline::{LONGEST, deadline_after};
use crate::error::Error;
use crate::panics::caught;
use crate::patience::{Told, telling};
use crate::shutdown::{Closer, Signal, closer, is_closed};

/// A connection that is being made. Dropping it lets go of what comes.
#[derive(Debug)]
pub(crate) struct Attempt {
    opened: Receiver<Result<Connection, Error>>,
    progress: Arc<Mutex<Progress>>,
    /// Closes when nobody waits for this any more.
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

/// What the thread of an attempt has to know.
struct Round {
    broker: Broker,
    /// When the last address should have its turn at the latest.
    deadline: Instant,
    progress: Arc<Mutex<Progress>>,
    unwanted: Signal,
}

/// The least time that an address gets.
const SHORTEST_SHARE: Duration = Duration::from_secs(1);

impl Attempt {
    /// Begins. The addresses share `budget`, so that each of them has its turn within it.
    pub(crate) fn start(broker: &Broker, budget: Duration) -> Result<Attempt, Error> {
        let (result, opened) = bounded(1);
        let (wanted, unwanted) = closer();
        let progress = Arc::new(Mutex::new(Progress::default()));
        let round = Round {
            broker: broker.clone(),
            deadline: deadline_after(budget),
            progress: Arc::clone(&progress),
            unwanted,
        };
        // No signal gets through to what it waits for: it gets a thread that may be left behind.
        thread::Builder::new()
            .name("rw-connect".into())
            .spawn(move || {
                let opened = caught(|| round.run());
                let _ = result.send(opened.unwrap_or_else(|panicked| Err(of_a_panic(panicked))));
            })
            .map_err(|source| Error::NoThread { source })?;
        Ok(Attempt { opened, progress, _wanted: wanted })
    }

    /// Waits for what comes of it. `None` when `interrupt` closed or `deadline` passed first; it
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

    /// What became of each address that has been tried so far.
    pub(crate) fn so_far(&self) -> Vec<String> {
        let progress = lock(&self.progress);
        let trying = progress.trying.iter().map(|address| format!("{address}: no answer in time"));
        progress.failed.iter().cloned().chain(trying).collect()
    }
}

impl Round {
    fn run(&self) -> Result<Connection, Error> {
        let mut refusal = None;
        let mut untold = Vec::new();
        let mut left = self.broker.addresses();
        while let Some((address, others)) = left.split_first() {
            left = if is_closed(&self.unwanted) { &[] } else { others };
            let (opened, told) = self.try_address(address, left.len());
            let failed = match opened {
                Ok(connection) => {
                    untold.iter().for_each(pass_over);
                    return Ok(connection);
                }
                Err(Refused::Transient(cause)) => format!("{address}: {cause}"),
                Err(Refused::Lasting(error)) => {
                    let failed = placed(address, &error);
                    refusal.get_or_insert(error);
                    failed
                }
            };
            self.note_failed(&failed);
            if told == Told::No {
                // Should there be no connection at all, the error says it, too.
                untold.push(failed);
            } else if !left.is_empty() {
                pass_over(&failed);
            }
        }
        // A refusal is something to act on; that the next address is down as well is not.
        let attempts = lock(&self.progress).failed.clone();
        Err(refusal.unwrap_or(Error::Unreachable { attempts }))
    }

    fn try_address(&self, address: &Address, behind: usize) -> (Result<Connection, Refused>, Told) {
        lock(&self.progress).trying = Some(address.to_string());
        let time = self.time(behind);
        let doing = format!("connecting to {address}");
        telling(&self.unwanted, &doing, || open_at(&self.broker, address, time))
    }

    /// The time for one address, with so many behind it. The last may take what it needs: whoever
    /// waits has a deadline of its own.
    fn time(&self, behind: usize) -> Duration {
        match behind {
            0 => LONGEST,
            _ => share(self.deadline, behind + 1).max(SHORTEST_SHARE),
        }
    }

    fn note_failed(&self, failed: &str) {
        let mut progress = lock(&self.progress);
        progress.trying = None;
        progress.failed.push(failed.to_owned());
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pass_over(failed: &String) {
    warn!("passed over {failed}");
}

/// An error of this address, with the address in it once.
fn placed(address: &Address, error: &Error) -> String {
    let (address, error) = (address.to_string(), error.to_string());
    if error.contains(&address) { error } else { format!("{address}: {error}") }
}

/// The client library panics where the system gives no thread for its timer (mio-extras 2.0.6,
/// timer.rs:488).
fn of_a_panic(panicked: String) -> Error {
    if panicked.contains("failed to spawn thread") {
        return Error::NoThread { source: io::Error::other(panicked) };
    }
    Error::Unreachable { attempts: vec![format!("the attempt {panicked}")] }
}

fn open_at(broker: &Broker, address: &Address, time: Duration) -> Result<Connection, Refused> {
    let limits = broker.limits(address);
    let deadline = deadline_after(time);
    let targets = resolve(address, within(limits.connect, deadline))?;
    let socket = connect(&targets, limits.connect, deadline)?;
    Connection::over(socket, broker, address, within(limits.handshake, deadline))
}

/// One of so many equal parts of the time that is left.
fn share(deadline: Instant, parts: usize) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left / u32::try_from(parts).unwrap_or(u32::MAX)
}

/// As much of the limit as is left, in whole tenths of a second, which read better; not nothing.
fn within(limit: Duration, deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    let tenths = left.as_millis() / 100 + 1;
    limit.min(Duration::from_millis(100) * u32::try_from(tenths).unwrap_or(u32::MAX))
}

fn resolve(address: &Address, limit: Duration) -> Result<Vec<SocketAddr>, Refused> {
    let (host, port) = (address.host.clone(), address.port);
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    look_up(move || Ok((host.as_str(), port).to_socket_addrs()?.collect()), limit)
}

/// Looks a name up in a thread that may be left behind: the system's own limit for that may be
/// minutes away, and nothing can interrupt it.
fn look_up(
    name: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    limit: Duration,
) -> Result<Vec<SocketAddr>, Refused> {
    let (tell, told) = bounded(1);
    let thread = thread::Builder::new().name("rw-lookup".into()).spawn(move || {
        let _ = tell.send(name());
    });
    thread.map_err(Refused::for_want_of_a_thread)?;
    let cause = match told.recv_timeout(limit) {
        Ok(Ok(targets)) => return Ok(targets),
        Ok(Err(error)) => Cause::Lost(format!("the host name does not resolve: {error}")),
        Err(_) => Cause::TimedOut { doing: "looking up the host name", limit },
    };
    Err(cause.into())
}

/// Opens the socket ourselves: the client library sets neither TCP_NODELAY, without which a lone
/// publish waits 40 ms for its confirm, nor any timeout (amiquip 0.4.2 connection.rs:446).
fn connect(targets: &[SocketAddr], limit: Duration, deadline: Instant) -> Result<TcpStream, Cause> {
    let mut failures = Vec::new();
    for (target, left) in targets.iter().zip((1..=targets.len()).rev()) {
        let limit = within(limit, deadline_after(share(deadline, left)));
        // Zero is an error to the system.
        let limit = limit.max(Duration::from_millis(1));
        match TcpStream::connect_timeout(target, limit) {
            Ok(socket) => {
                socket.set_nodelay(true).map_err(|error| Cause::Lost(error.to_string()))?;
                return Ok(socket);
            }
            Err(error) => failures.push(format!("{} {error}", target.ip())),
        }
    }
    Err(Cause::Lost(failures.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_error_names_its_address_once() {
        let broker: Broker = "amqp://rabbit-1".parse().expect("a broker");
        let address = &broker.addresses()[0];
        let text = "NOT_FOUND - vhost x not found".to_string();
        let refused = placed(address, &Error::VhostRefused { vhost: "x".into(), text });
        assert!(refused.starts_with("rabbit-1:5672: the broker refused"), "{refused}");
        let (address_too, user) = (address.to_string(), "u".to_string());
        let refused = placed(address, &Error::LoginRefused { address: address_too, user });
        assert_eq!(refused.matches("rabbit-1:5672").count(), 1, "{refused}");
    }

    #[test]
    fn small_frames_are_sent_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let socket = connect(&[address], LONGEST, deadline_after(LONGEST)).expect("connected");
        assert!(socket.nodelay().expect("an option"));
    }

    #[test]
    fn a_lookup_that_hangs_is_left_behind() {
        let (_never, hangs) = bounded::<()>(0);
        let hanging = move || {
            let _ = hangs.recv();
            Ok(Vec::new())
        };
        let limit = Duration::from_millis(20);
        let doing = "looking up the host name";
        let Err(Refused::Transient(cause)) = look_up(hanging, limit) else {
            panic!("it is not left behind")
        };
        assert_eq!(cause, Cause::TimedOut { doing, limit });
    }

    #[test]
    fn only_what_was_tried_is_named() {
        let silent = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [first, second] = silent.each_ref().map(|it| it.local_addr().expect("its address"));
        let broker = Broker::new([first, second].map(|address| format!("amqp://{address}")));
        let attempt = Attempt::start(&broker.expect("a broker"), LONGEST).expect("a thread");
        let soon = deadline_after(Duration::from_secs(2));
        let opened = attempt.wait(&crossbeam_channel::never(), Some(soon));
        assert!(matches!(opened, Ok(None)), "nobody answers");
        assert_eq!(attempt.so_far(), [format!("{first}: no answer in time")]);
    }
}
