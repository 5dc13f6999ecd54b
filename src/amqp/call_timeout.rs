//! Owns the limit on every wait inside the client library: amiquip bounds none of its calls, so
//! a thread of ours shuts the socket under a call that takes too long, which makes it return.
//! A call that waits for an answer has not taken too long while the broker sends something: that
//! comes first, and on a slow line may be many large bodies.

use std::collections::HashMap;
use std::net::{Shutdown as SocketShutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::select_biased;

use crate::amqp::close_reason::CloseReason;
use crate::amqp::heartbeat::{Heartbeat, are_more_than_heartbeats};
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Signal, closer};

/// Watches over the calls on one socket; ends with its connection.
#[derive(Debug)]
pub(crate) struct Watchdog {
    guard: CallGuard,
    thread: Option<JoinHandle<()>>,
}

/// What a caller holds to bound its calls. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CallGuard {
    shared: Arc<Shared>,
    holder: Holder,
}

/// Whose the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Owner,
    /// Somebody who must not end the connection of others for a limit of his own: only an answer
    /// that does not come for a whole call limit does.
    Borrower,
}

#[derive(Debug)]
struct Shared {
    socket: TcpStream,
    state: Mutex<State>,
    changed: Condvar,
    /// What the broker sends, from when that is counted.
    heartbeat: OnceLock<Heartbeat>,
}

#[derive(Debug, Default)]
struct State {
    /// The calls under way, by number.
    calls: HashMap<u64, Call>,
    next_number: u64,
    /// When the thread looks up next by itself; it need not be woken for a later deadline.
    looks_up_at: Option<Instant>,
    /// Why the socket was shut.
    cause: Option<CloseReason>,
    done: bool,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    doing: &'static str,
    limit: Duration,
    deadline: Instant,
    /// When it has taken too long whatever the broker sends.
    last: Instant,
    /// How much the broker had sent a limit before that, where what it sends counts.
    sent_before: Option<u64>,
}

/// How many limits a call may take while the broker sends other things.
const MOST_LIMITS: u32 = 12;

impl Call {
    fn new(doing: &'static str, limit: Duration) -> Call {
        let deadline = deadline_after(limit);
        Call { doing, limit, deadline, last: deadline, sent_before: None }
    }
}

impl Watchdog {
    /// Starts watching; `socket` is a clone of the connection's own.
    pub(crate) fn start(socket: TcpStream) -> std::io::Result<Watchdog> {
        let state = Mutex::new(State::default());
        let (changed, heartbeat) = (Condvar::new(), OnceLock::new());
        let shared = Arc::new(Shared { socket, state, changed, heartbeat });
        let watched = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("rw-watchdog".into()).spawn(move || watched.watch())?;
        Ok(Watchdog { guard: CallGuard { shared, holder: Holder::Owner }, thread: Some(thread) })
    }

    pub(crate) fn call_guard(&self) -> &CallGuard {
        &self.guard
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.guard.shared.lock().done = true;
        self.guard.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl CallGuard {
    /// Where to hear what the broker sends.
    pub(crate) fn watch(&self, heartbeat: &Heartbeat) {
        let _ = self.shared.heartbeat.set(heartbeat.clone());
    }

    /// The guard of a connection that is lent: [`within`](CallGuard::within) and
    /// [`unless`](CallGuard::unless) have no effect.
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
            Holder::Owner => self.run(Call::new(doing, limit), call),
            Holder::Borrower => call(),
        }
    }

    /// Runs `call`, which waits for the broker's answer; when that has not come, nor anything but
    /// heartbeats for as long as `limit`, shuts the socket under it. So it does after so many
    /// limits whatever comes.
    pub(crate) fn with_idle_timeout<T>(
        &self,
        limit: Duration,
        doing: &'static str,
        call: impl FnOnce() -> T,
    ) -> T {
        let last = deadline_after(limit.saturating_mul(MOST_LIMITS));
        let sent_before = Some(self.shared.sent());
        self.run(Call { last, sent_before, ..Call::new(doing, limit) }, call)
    }

    fn run<T>(&self, watched: Call, call: impl FnOnce() -> T) -> T {
        let number = self.shared.add(watched);
        let result = call();
        self.shared.lock().calls.remove(&number);
        result
    }

    /// Runs `call`; when `interrupt` closes meanwhile, shuts the socket under it.
    pub(crate) fn abort_on<T>(&self, interrupt: &Signal, call: impl FnOnce() -> T) -> T {
        if self.holder == Holder::Borrower {
            return call();
        }
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
    pub(crate) fn fail_connection(&self, cause: &CloseReason) {
        self.shared.lock().cause.get_or_insert_with(|| cause.clone());
        self.abort();
    }

    /// What it was shut for, a call that passed its limit or another: the true cause of the
    /// connection's end.
    pub(crate) fn cause(&self) -> Option<CloseReason> {
        self.shared.lock().cause.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self) -> u64 {
        self.heartbeat.get().map_or(0, Heartbeat::bytes)
    }

    fn add(&self, call: Call) -> u64 {
        let mut state = self.lock();
        let number = state.next_number;
        state.next_number += 1;
        state.calls.insert(number, call);
        if state.looks_up_at.is_none_or(|at| call.deadline < at) {
            self.changed.notify_one();
        }
        number
    }

    fn watch(&self) {
        let mut state = self.lock();
        while !state.done {
            let now = Instant::now();
            self.look(&mut state, now);
            state.looks_up_at = state.calls.values().map(|call| call.deadline).min();
            state = match state.looks_up_at {
                Some(at) => {
                    let waited = self.changed.wait_timeout(state, at - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Shuts the socket under the calls whose time is up, or gives them more.
    fn look(&self, state: &mut State, now: Instant) {
        let sent = self.sent();
        let State { calls, cause, .. } = state;
        calls.retain(|_, call| {
            let Call { doing, limit, deadline, sent_before, .. } = *call;
            if deadline > now {
                return true;
            }
            let came = sent_before.map_or(0, |before| sent - before);
            if now < call.last && are_more_than_heartbeats(came, limit) {
                call.deadline = deadline_after(limit).min(call.last);
                call.sent_before = Some(sent);
                return true;
            }
            cause.get_or_insert(CloseReason::TimedOut { doing, limit });
            let _ = self.socket.shutdown(SocketShutdown::Both);
            false
        });
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
        watchdog.call_guard().watch(&heartbeat);
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
    fn a_call_that_panics_ends_its_watch() {
        let (client, _peer) = pair();
        let watchdog = watched(&client);
        let guard = watchdog.call_guard().clone();
        let (_interrupter, interrupt) = closer();
        let (panicked, has_panicked) = closer();
        thread::spawn(move || {
            let _panicked = panicked;
            guard.abort_on(&interrupt, || panic!("as it should"))
        });
        let ended = has_panicked.recv_timeout(Duration::from_secs(60));
        assert_eq!(ended, Err(crossbeam_channel::RecvTimeoutError::Disconnected));
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
        assert!(watchdog.call_guard().shared.lock().calls.is_empty());
    }
}
