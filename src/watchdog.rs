//! Owns the limit on every wait inside the client library: amiquip bounds none of its calls, so
//! a thread of ours shuts the socket under a call that takes too long, which makes it return.

use std::collections::BTreeMap;
use std::net::{Shutdown as SocketShutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::select_biased;

use crate::cause::Cause;
use crate::deadline::deadline_after;
use crate::shutdown::{Signal, closer};

/// Watches over the calls on one socket; ends with its connection.
#[derive(Debug)]
pub(crate) struct Watchdog {
    leash: Leash,
    thread: Option<JoinHandle<()>>,
}

/// What a caller holds to bound its calls. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Leash {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: TcpStream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The calls under way by deadline, with a number that tells equal deadlines apart.
    calls: BTreeMap<(Instant, u64), Call>,
    next_number: u64,
    /// When the thread looks up next by itself; it need not be woken for a later deadline.
    looks_up_at: Option<Instant>,
    /// Why the socket was shut.
    cause: Option<Cause>,
    done: bool,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    doing: &'static str,
    limit: Duration,
}

impl Watchdog {
    /// Starts watching; `socket` is a clone of the connection's own.
    pub(crate) fn start(socket: TcpStream) -> std::io::Result<Watchdog> {
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { socket, state, changed: Condvar::new() });
        let watched = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("rw-watchdog".into()).spawn(move || watched.watch())?;
        Ok(Watchdog { leash: Leash { shared }, thread: Some(thread) })
    }

    pub(crate) fn leash(&self) -> &Leash {
        &self.leash
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.leash.shared.lock().done = true;
        self.leash.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Leash {
    /// Runs `call`; when it has not returned after `limit`, shuts the socket under it.
    pub(crate) fn within<T>(
        &self,
        limit: Duration,
        doing: &'static str,
        call: impl FnOnce() -> T,
    ) -> T {
        let key = self.shared.add(Call { doing, limit });
        let result = call();
        self.shared.lock().calls.remove(&key);
        result
    }

    /// Runs `call`; when `interrupt` closes meanwhile, shuts the socket under it.
    pub(crate) fn unless<T>(&self, interrupt: &Signal, call: impl FnOnce() -> T) -> T {
        let (returned, has_returned) = closer();
        thread::scope(|scope| {
            let watch =
                thread::Builder::new().name("rw-interrupt".into()).spawn_scoped(scope, || {
                    select_biased! {
                        recv(has_returned) -> _ => {}
                        recv(interrupt) -> _ => self.abort(),
                    }
                });
            // Without that thread, the limits of the single calls still hold.
            drop(watch);
            // Also when the call panics: the scope waits for the thread.
            let _returned = returned;
            call()
        })
    }

    /// Shuts the socket: whatever is blocked on it returns within milliseconds.
    pub(crate) fn abort(&self) {
        let _ = self.shared.socket.shutdown(SocketShutdown::Both);
    }

    /// Shuts the socket for this cause.
    pub(crate) fn condemn(&self, cause: &Cause) {
        self.shared.lock().cause.get_or_insert_with(|| cause.clone());
        self.abort();
    }

    /// What it was shut for, a call that passed its limit or another: the true cause of the
    /// connection's end.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.shared.lock().cause.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, call: Call) -> (Instant, u64) {
        let mut state = self.lock();
        let key = (deadline_after(call.limit), state.next_number);
        state.next_number += 1;
        state.calls.insert(key, call);
        if state.looks_up_at.is_none_or(|at| key.0 < at) {
            self.changed.notify_one();
        }
        key
    }

    fn watch(&self) {
        let mut state = self.lock();
        while !state.done {
            let first = state.calls.first_key_value().map(|(key, call)| (key.0, *call));
            let now = Instant::now();
            match first {
                Some((deadline, call)) if deadline <= now => {
                    state.calls.pop_first();
                    let Call { doing, limit } = call;
                    state.cause.get_or_insert(Cause::TimedOut { doing, limit });
                    let _ = self.socket.shutdown(SocketShutdown::Both);
                }
                Some((deadline, _)) => {
                    state.looks_up_at = Some(deadline);
                    let waited = self.changed.wait_timeout(state, deadline - now);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                None => {
                    state.looks_up_at = None;
                    let waited = self.changed.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let client = TcpStream::connect(address).expect("a connection");
        (client, listener.accept().expect("its other end").0)
    }

    fn watched(client: &TcpStream) -> Watchdog {
        Watchdog::start(client.try_clone().expect("a clone")).expect("a thread")
    }

    #[test]
    fn a_call_past_its_limit_loses_its_socket() {
        let (mut client, _peer) = pair();
        let watchdog = watched(&client);
        let limit = Duration::from_millis(20);
        let read = watchdog.leash().within(limit, "reading", || client.read(&mut [0; 1]));
        assert_eq!(read.expect("the end of the stream"), 0);
        assert_eq!(watchdog.leash().cause(), Some(Cause::TimedOut { doing: "reading", limit }));
    }

    #[test]
    fn an_earlier_deadline_is_seen_behind_a_later_one() {
        let (mut client, _peer) = pair();
        let watchdog = watched(&client);
        let leash = watchdog.leash();
        let read = leash.within(Duration::from_secs(60), "outer", || {
            leash.within(Duration::from_millis(20), "inner", || client.read(&mut [0; 1]))
        });
        assert_eq!(read.expect("the end of the stream"), 0);
        assert!(matches!(leash.cause(), Some(Cause::TimedOut { doing: "inner", .. })));
    }

    #[test]
    fn an_interrupted_call_loses_its_socket() {
        let (mut client, _peer) = pair();
        let watchdog = watched(&client);
        let (interrupter, interrupt) = closer();
        interrupter.close();
        let read = watchdog.leash().unless(&interrupt, || client.read(&mut [0; 1]));
        assert_eq!(read.expect("the end of the stream"), 0);
    }

    #[test]
    fn a_call_that_panics_ends_its_watch() {
        let (client, _peer) = pair();
        let watchdog = watched(&client);
        let leash = watchdog.leash().clone();
        let (_interrupter, interrupt) = closer();
        let (panicked, has_panicked) = closer();
        thread::spawn(move || {
            let _panicked = panicked;
            leash.unless(&interrupt, || panic!("as it should"))
        });
        let ended = has_panicked.recv_timeout(Duration::from_secs(60));
        assert_eq!(ended, Err(crossbeam_channel::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_call_without_a_limit_is_left_alone() {
        let (client, _peer) = pair();
        let watchdog = watched(&client);
        assert_eq!(watchdog.leash().within(Duration::MAX, "adding", || 1 + 1), 2);
        assert_eq!(watchdog.leash().cause(), None);
    }

    #[test]
    fn a_call_in_time_leaves_no_trace() {
        let (client, _peer) = pair();
        let watchdog = watched(&client);
        assert_eq!(watchdog.leash().within(Duration::from_secs(60), "adding", || 1 + 1), 2);
        assert_eq!(watchdog.leash().cause(), None);
        assert!(watchdog.leash().shared.lock().calls.is_empty());
    }
}
