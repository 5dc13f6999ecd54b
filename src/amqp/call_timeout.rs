//! Limits every wait inside the client library. amiquip limits none of its calls, so a thread of ours
//! shuts the socket under a call that takes too long or that is interrupted, which makes it return.
//! It also logs a call that is slow. A call that waits for an answer has more time while the broker
//! sends something else: that comes first, and on a slow line it may be many large bodies.

use std::collections::HashMap;
use std::net::{Shutdown as SocketShutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, bounded};
use log::warn;

use crate::amqp::close_reason::CloseReason;
use crate::amqp::heartbeat::Heartbeat;
pub(crate) use crate::amqp::watch::Warned;
use crate::amqp::watch::{Limit, Warning, Watch};
use crate::util::shutdown::{Signal, is_closed};

/// Watches the calls on one socket; ends with its connection.
#[derive(Debug)]
pub(crate) struct Watchdog {
    guard: CallGuard,
    thread: Option<JoinHandle<()>>,
}

/// Bounds the calls of whoever holds it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CallGuard {
    shared: Arc<Shared>,
    holder: Holder,
}

/// Whose the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Owner,
    /// A borrower must not end the connection of others for a limit of its own, but only for an
    /// answer that does not come for a whole call limit.
    Borrower,
}

#[derive(Debug)]
struct Shared {
    /// Empty until it is connected.
    socket: OnceLock<TcpStream>,
    state: Mutex<State>,
    wake: Sender<()>,
    /// What the broker sends, after its bytes are counted.
    heartbeat: OnceLock<Heartbeat>,
}

#[derive(Debug, Default)]
struct State {
    /// What is watched, by number.
    watches: HashMap<u64, Watch>,
    next_number: u64,
    /// When the thread wakes next by itself; for a later deadline it need not be woken.
    wakes_at: Option<Instant>,
    /// Why the socket was shut.
    cause: Option<CloseReason>,
    done: bool,
}

/// A watch, until the call returns or panics.
struct Watched<'a> {
    shared: &'a Shared,
    /// `None` after it was removed.
    number: Option<u64>,
}

/// After this long a call is logged as slow.
pub(crate) const SLOW_AFTER: Duration = Duration::from_secs(2);

impl Watchdog {
    pub(crate) fn start() -> std::io::Result<Watchdog> {
        let (wake, woken) = bounded(1);
        let shared = Arc::new(Shared {
            socket: OnceLock::new(),
            state: Mutex::default(),
            wake,
            heartbeat: OnceLock::new(),
        });
        let watched = Arc::clone(&shared);
        let watch = move || watched.watch(&woken);
        let thread = thread::Builder::new().name("rw-watchdog".into()).spawn(watch)?;
        Ok(Watchdog { guard: CallGuard { shared, holder: Holder::Owner }, thread: Some(thread) })
    }

    pub(crate) fn call_guard(&self) -> &CallGuard {
        &self.guard
    }

    /// The socket to shut: a clone of the connection's own.
    pub(crate) fn watch_socket(&self, socket: TcpStream) {
        let _ = self.guard.shared.socket.set(socket);
    }

    /// Where the bytes of the broker are counted.
    pub(crate) fn watch_heartbeat(&self, heartbeat: &Heartbeat) {
        let _ = self.guard.shared.heartbeat.set(heartbeat.clone());
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.guard.shared.lock().done = true;
        self.guard.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl CallGuard {
    /// The guard of a connection that is lent: [`with_timeout`](CallGuard::with_timeout) and
    /// [`abort_on`](CallGuard::abort_on) have no effect.
    pub(crate) fn lent(&self) -> CallGuard {
        CallGuard { holder: Holder::Borrower, ..self.clone() }
    }

    /// Runs `call`; when it has not returned after `limit`, shuts the socket under it.
    pub(crate) fn with_timeout<T>(
        &self,
        limit: Duration,
        doing: &'static str,
        call: impl FnOnce() -> T,
    ) -> T {
        match self.holder {
            Holder::Owner => self.shared.run(Watch::Limit(Limit::new(doing, limit)), call).0,
            Holder::Borrower => call(),
        }
    }

    /// Runs `call`, which waits for the broker's answer. Shuts the socket under it when nothing but
    /// heartbeats came for `limit`, and after so many limits whatever comes.
    pub(crate) fn with_idle_timeout<T>(
        &self,
        limit: Duration,
        doing: &'static str,
        call: impl FnOnce() -> T,
    ) -> T {
        let limit = Limit::while_idle(doing, limit, self.shared.bytes_received());
        self.shared.run(Watch::Limit(limit), call).0
    }

    /// Runs `call`; when `interrupt` closes meanwhile, shuts the socket under it.
    pub(crate) fn abort_on<T>(&self, interrupt: &Signal, call: impl FnOnce() -> T) -> T {
        match self.holder {
            Holder::Owner => self.shared.run(Watch::Interrupt(interrupt.clone()), call).0,
            Holder::Borrower => call(),
        }
    }

    /// Runs `call`; if it does not return within `after`, logs once that `doing` takes longer,
    /// unless `unless` has closed.
    pub(crate) fn warn_after<T>(
        &self,
        after: Duration,
        unless: &Signal,
        doing: &str,
        call: impl FnOnce() -> T,
    ) -> (T, Warned) {
        let warning = Warning::new(after, unless, doing);
        match self.shared.run(Watch::Warning(warning), call) {
            (result, Some(Watch::Warning(warning))) => (result, warning.warned),
            (result, _) => (result, Warned::No),
        }
    }

    /// Shuts the socket: whatever is blocked on it returns within milliseconds.
    pub(crate) fn abort(&self) {
        self.shared.shut();
    }

    /// Shuts the socket for this cause.
    pub(crate) fn fail_connection(&self, cause: &CloseReason) {
        self.shared.lock().cause.get_or_insert_with(|| cause.clone());
        self.abort();
    }

    /// Why the socket was shut, for a limit or another cause: the true cause of the connection's
    /// end.
    pub(crate) fn cause(&self) -> Option<CloseReason> {
        self.shared.lock().cause.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes_received(&self) -> u64 {
        self.heartbeat.get().map_or(0, Heartbeat::bytes)
    }

    fn shut(&self) {
        if let Some(socket) = self.socket.get() {
            let _ = socket.shutdown(SocketShutdown::Both);
        }
    }

    fn wake(&self) {
        // If it is full, the thread wakes anyway.
        let _ = self.wake.try_send(());
    }

    /// Runs `call`, and returns what has become of the watch.
    fn run<T>(&self, watch: Watch, call: impl FnOnce() -> T) -> (T, Option<Watch>) {
        let mut watched = self.add(watch);
        let result = call();
        (result, watched.remove())
    }

    fn add(&self, watch: Watch) -> Watched<'_> {
        let mut state = self.lock();
        let number = state.next_number;
        state.next_number += 1;
        if watch.has_to_wake(state.wakes_at) {
            self.wake();
        }
        state.watches.insert(number, watch);
        Watched { shared: self, number: Some(number) }
    }

    fn watch(&self, woken: &Receiver<()>) {
        loop {
            let mut state = self.lock();
            if state.done {
                return;
            }
            let lines = self.check(&mut state, Instant::now());
            state.wakes_at = state.watches.values().filter_map(Watch::deadline).min();
            let (interrupts, wakes_at) = (state.interrupts(), state.wakes_at);
            drop(state);
            lines.into_iter().for_each(log);
            wait(woken, &interrupts, wakes_at);
        }
    }

    /// Does what is due, and returns the lines to log.
    fn check(&self, state: &mut State, now: Instant) -> Vec<String> {
        let sent = self.bytes_received();
        let mut lines = Vec::new();
        let State { watches, cause, .. } = state;
        watches.retain(|_, watch| {
            let ends = match watch {
                Watch::Limit(limit) => limit.has_passed(now, sent),
                Watch::Interrupt(signal) => is_closed(signal),
                Watch::Warning(warning) => {
                    lines.extend(warning.due(now));
                    false
                }
            };
            if ends {
                *cause = cause.take().or_else(|| watch.cause());
                self.shut();
            }
            !ends
        });
        lines
    }
}

impl State {
    fn interrupts(&self) -> Vec<Signal> {
        let signals = self.watches.values().filter_map(|watch| match watch {
            Watch::Interrupt(signal) => Some(signal.clone()),
            Watch::Limit(_) | Watch::Warning(_) => None,
        });
        signals.collect()
    }
}

impl Watched<'_> {
    fn remove(&mut self) -> Option<Watch> {
        let number = self.number.take()?;
        self.shared.lock().watches.remove(&number)
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Logs in a thread of its own: a logger that blocks, as when nobody reads standard error, must not
/// keep the watchdog from its limits. Without a thread the line is left out.
fn log(line: String) {
    let _ = thread::Builder::new().name("rw-warning".into()).spawn(move || warn!("{line}"));
}

/// Waits until the thread is woken, one of these signals closes, or the deadline passes.
fn wait(woken: &Receiver<()>, interrupts: &[Signal], deadline: Option<Instant>) {
    let mut select = Select::new();
    select.recv(woken);
    for interrupt in interrupts {
        select.recv(interrupt);
    }
    match deadline {
        Some(deadline) => drop(select.ready_deadline(deadline)),
        None => drop(select.ready()),
    }
    let _ = woken.try_recv();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    use crate::util::shutdown::closer;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let client = TcpStream::connect(address).expect("a connection");
        client
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a limit for a test that fails");
        (client, listener.accept().expect("its other end").0)
    }

    fn watched(client: &TcpStream) -> Watchdog {
        let watchdog = Watchdog::start().expect("a thread");
        watchdog.watch_socket(client.try_clone().expect("a clone"));
        watchdog
    }

    #[test]
    fn a_call_past_its_limit_loses_its_socket() {
        let (mut client, _peer) = pair();
        let watchdog = watched(&client);
        let limit = Duration::from_millis(20);
        let read =
            watchdog.call_guard().with_timeout(limit, "reading", || client.read(&mut [0; 1]));
        assert_eq!(read.expect("the end of the stream"), 0);
        assert_eq!(
            watchdog.call_guard().cause(),
            Some(CloseReason::TimedOut { doing: "reading", limit })
        );
    }

    #[test]
    fn a_call_that_waits_for_an_answer_has_more_time_while_the_broker_sends_something() {
        let (mut client, _peer) = pair();
        let watchdog = watched(&client);
        let heartbeat = Heartbeat::new(0);
        watchdog.watch_heartbeat(&heartbeat);
        let limit = Duration::from_millis(300);
        let (begun, sends_for) = (Instant::now(), 4 * limit);
        let sends = thread::spawn(move || {
            while begun.elapsed() < sends_for {
                heartbeat.record_read(1000).expect("it counts no silence");
                thread::yield_now();
            }
        });
        let read = || client.read(&mut [0; 1]);
        watchdog
            .call_guard()
            .with_idle_timeout(limit, "reading", read)
            .expect("the end of the stream");
        assert!(begun.elapsed() > sends_for, "{:?}", begun.elapsed());
        sends.join().expect("no panic");
    }

    #[test]
    fn an_earlier_deadline_is_seen_behind_a_later_one() {
        let (mut client, _peer) = pair();
        let watchdog = watched(&client);
        let guard = watchdog.call_guard();
        let read = guard.with_timeout(Duration::from_secs(60), "outer", || {
            guard.with_timeout(Duration::from_millis(20), "inner", || client.read(&mut [0; 1]))
        });
        assert_eq!(read.expect("the end of the stream"), 0);
        assert!(matches!(guard.cause(), Some(CloseReason::TimedOut { doing: "inner", .. })));
    }

    #[test]
    fn an_interrupted_call_loses_its_socket() {
        let (mut client, _peer) = pair();
        let watchdog = watched(&client);
        let (interrupter, interrupt) = closer();
        interrupter.close();
        let read = watchdog.call_guard().abort_on(&interrupt, || client.read(&mut [0; 1]));
        assert_eq!(read.expect("the end of the stream"), 0);
    }

    #[test]
    fn a_call_that_is_interrupted_while_it_runs_loses_its_socket() {
        let (mut client, _peer) = pair();
        let watchdog = watched(&client);
        let (interrupter, interrupt) = closer();
        let read = watchdog.call_guard().abort_on(&interrupt, || {
            // The thread waits by then, or is about to.
            interrupter.close();
            client.read(&mut [0; 1])
        });
        assert_eq!(read.expect("the end of the stream"), 0);
        assert_eq!(watchdog.call_guard().cause(), None);
    }

    #[test]
    fn a_call_that_panics_ends_its_watch() {
        let (client, _peer) = pair();
        let watchdog = watched(&client);
        let guard = watchdog.call_guard().clone();
        let (_interrupter, interrupt) = closer();
        let panics = move || {
            guard.abort_on(&interrupt, || {
                guard.with_timeout(Duration::from_secs(60), "panicking", || panic!("as it should"))
            })
        };
        assert!(thread::spawn(panics).join().is_err());
        assert!(watchdog.call_guard().shared.lock().watches.is_empty());
    }

    #[test]
    fn a_slow_call_is_logged_unless_nobody_wants_to_know() {
        let watchdog = Watchdog::start().expect("a thread");
        let guard = watchdog.call_guard();
        let (ending, unless) = closer();
        let soon = Duration::from_millis(20);
        let is_due = || guard.shared.lock().watches.values().any(|it| it.deadline().is_some());
        let slow = || {
            while is_due() {
                thread::yield_now();
            }
        };
        assert_eq!(guard.warn_after(soon, &unless, "waiting", slow), ((), Warned::Yes));
        assert_eq!(guard.warn_after(SLOW_AFTER, &unless, "adding", || 1 + 1), (2, Warned::No));
        ending.close();
        assert_eq!(guard.warn_after(soon, &unless, "waiting", slow), ((), Warned::No));
    }

    #[test]
    fn a_call_without_a_limit_is_left_alone() {
        let (client, _peer) = pair();
        let watchdog = watched(&client);
        assert_eq!(watchdog.call_guard().with_timeout(Duration::MAX, "adding", || 1 + 1), 2);
        assert_eq!(watchdog.call_guard().cause(), None);
    }

    #[test]
    fn a_call_in_time_leaves_no_trace() {
        let (client, _peer) = pair();
        let watchdog = watched(&client);
        assert_eq!(
            watchdog.call_guard().with_timeout(Duration::from_secs(60), "adding", || 1 + 1),
            2
        );
        assert_eq!(watchdog.call_guard().cause(), None);
        assert!(watchdog.call_guard().shared.lock().watches.is_empty());
    }
}
