//! The scripted broker: says on each connection exactly the frames a script says, and nothing else.
//!
//! A script runs in a thread of its own for each connection that was accepted. It is strict: a
//! peer that does not do what the script expects, or does it too late, fails the script, and with
//! it the test, when the broker is waited for, finished or dropped.

mod answers;
mod handshake;
mod messages;
mod stream;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};

use super::acceptor::Acceptor;
use super::wire::{Arguments, Call, Publish, Table, lossy};

/// A listening broker. Dropping it ends its scripts, and rethrows the panic of one that failed.
pub(crate) struct ScriptedBroker {
    address: SocketAddr,
    acceptor: Option<Acceptor>,
    shared: Arc<Shared>,
    stop: Option<Sender<()>>,
    events: Receiver<Event>,
}

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A connection of this number was accepted; the first is 0.
    Connected(usize),
    /// A script's own words.
    Reported(String),
    /// The script of this connection came to its end.
    Ended(usize),
    /// The script of this connection failed, and why.
    Failed(usize, String),
}

/// What the broker proposes in the handshake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    /// In seconds. The broker sends none by itself; see `Session::heartbeat`.
    pub(crate) heartbeat: u16,
}

/// What the client said in the handshake.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) properties: Table,
    pub(crate) mechanism: String,
    pub(crate) response: Vec<u8>,
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    pub(crate) heartbeat: u16,
    pub(crate) vhost: String,
}

/// A consumer that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Consumer {
    pub(crate) channel: u16,
    pub(crate) queue: String,
    pub(crate) tag: String,
}

/// One byte of a connection that arrives otherwise than it was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Damage {
    /// How many bytes come before it.
    pub(crate) position: usize,
    /// Those of its bits that change.
    pub(crate) bits: u8,
}

/// One connection, as its script sees it.
pub(crate) struct Session {
    number: usize,
    stream: Option<Arc<TcpStream>>,
    unread: Vec<u8>,
    unfinished: HashMap<u16, Unfinished>,
    /// How many publishes were confirmed on each channel.
    published: HashMap<u16, u64>,
    frame_max: u32,
    names: usize,
    sent: usize,
    damage: Option<Damage>,
    events: Sender<Event>,
    stop: Receiver<()>,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { channel_max: 2047, frame_max: 131_072, heartbeat: 0 }
    }
}

impl ScriptedBroker {
    /// Listens, and runs the script for each connection with the number of that connection.
    pub(crate) fn start<S>(script: S) -> ScriptedBroker
    where
        S: Fn(&mut Session, usize) + Send + Sync + 'static,
    {
        let (stop, stopped) = bounded(0);
        let (reports, events) = unbounded();
        let shared = Arc::new(Shared::default());
        let script: Arc<Script> = Arc::new(script);
        let acceptor = Acceptor::start(0, {
            let shared = Arc::clone(&shared);
            move |stream| shared.admit(stream, &script, &reports, &stopped)
        });
        ScriptedBroker {
            address: acceptor.address(),
            acceptor: Some(acceptor),
            shared,
            stop: Some(stop),
            events,
        }
    }

    /// A broker that takes so many methods of a client, answers those that have an answer, says
    /// so, and then neither says anything more nor reads. The client may leave before.
    pub(crate) fn silent_after(methods: usize) -> ScriptedBroker {
        ScriptedBroker::start(move |session, _| {
            session.expect_protocol_header();
            session.send_start();
            for _ in 0..methods {
                let Some(method) = session.next_method() else { return };
                let taken = session.answer(&method) || matches!(method.call, Call::Publish(_));
                assert!(taken, "{method:?}");
            }
            session.report("silent");
            session.stay_silent();
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where to connect, and without heartbeats, since no script thinks of them by itself.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@{}?heartbeat=0", self.address)
    }

    pub(crate) fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// Waits until a script reports this text; fails at once when a script fails.
    pub(crate) fn wait(&self, report: &str, within: Duration) {
        let wanted = Event::Reported(report.to_owned());
        self.wait_for(within, |event| *event == wanted);
    }

    /// Waits for an event and gives it back; those before it are passed over.
    pub(crate) fn wait_for(&self, within: Duration, wanted: impl Fn(&Event) -> bool) -> Event {
        let deadline = Instant::now() + within;
        let mut passed = Vec::new();
        loop {
            let event = match self.events.recv_deadline(deadline) {
                Ok(event) => event,
                Err(_) => panic!("the scripted broker waited {within:?} in vain, after {passed:?}"),
            };
            if wanted(&event) {
                return event;
            }
            if let Event::Failed(number, why) = event {
                panic!("the script of connection {number} failed: {why}");
            }
            passed.push(event);
        }
    }

    /// Waits until each script came to its end, and rethrows the panic of one that failed.
    /// Scripts that only stay silent are sent home.
    pub(crate) fn finish(mut self, within: Duration) {
        self.acceptor = None;
        self.stop = None;
        let deadline = Instant::now() + within;
        while self.shared.is_running() {
            match self.events.recv_deadline(deadline) {
                Ok(_) | Err(RecvTimeoutError::Disconnected) => {}
                Err(RecvTimeoutError::Timeout) => panic!("a script still ran after {within:?}"),
            }
        }
    }
}

impl Drop for ScriptedBroker {
    fn drop(&mut self) {
        self.acceptor = None;
        self.stop = None;
        if let Some(failure) = self.shared.stop() {
            if !thread::panicking() {
                panic::resume_unwind(failure);
            }
        }
    }
}

/// How long a script waits for its peer.
const PATIENCE: Duration = Duration::from_secs(60);

type Script = dyn Fn(&mut Session, usize) + Send + Sync;
type Failure = Box<dyn std::any::Any + Send>;

/// Unwinds a script that still waits when the broker is dropped; not a failure.
struct TestIsOver;

/// A publish that lacks some of its content.
struct Unfinished {
    publish: Publish,
    size: Option<usize>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    accepted: usize,
    /// Weak, since a reset needs the script to be the last to hold its socket.
    streams: Vec<Weak<TcpStream>>,
    threads: Vec<JoinHandle<()>>,
    running: usize,
    failure: Option<Failure>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_running(&self) -> bool {
        self.state().running > 0
    }

    fn admit(
        self: &Arc<Shared>,
        stream: TcpStream,
        script: &Arc<Script>,
        events: &Sender<Event>,
        stop: &Receiver<()>,
    ) {
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        let mut state = self.state();
        let session = Session {
            number: state.accepted,
            stream: Some(Arc::clone(&stream)),
            unread: Vec::new(),
            unfinished: HashMap::new(),
            published: HashMap::new(),
            frame_max: Tuning::default().frame_max,
            names: 0,
            sent: 0,
            damage: None,
            events: events.clone(),
            stop: stop.clone(),
        };
        state.accepted += 1;
        state.running += 1;
        state.streams.push(Arc::downgrade(&stream));
        drop(stream);
        let _ = events.send(Event::Connected(session.number));
        let (shared, script) = (Arc::clone(self), Arc::clone(script));
        let thread = thread::spawn(move || shared.run(session, &*script));
        state.threads.push(thread);
    }

    fn run(&self, mut session: Session, script: &Script) {
        let number = session.number;
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| script(&mut session, number)));
        let events = session.events.clone();
        drop(session);
        let mut state = self.state();
        state.running -= 1;
        let event = match outcome {
            Err(failure) if !failure.is::<TestIsOver>() => {
                let why = panic_text(&failure);
                state.failure.get_or_insert(failure);
                Event::Failed(number, why)
            }
            _ => Event::Ended(number),
        };
        drop(state);
        let _ = events.send(event);
    }

    /// Ends all scripts; gives the first failure.
    fn stop(&self) -> Option<Failure> {
        let mut state = self.state();
        for stream in state.streams.iter().filter_map(Weak::upgrade) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        for thread in threads {
            let _ = thread.join();
        }
        self.state().failure.take()
    }
}

fn close_arguments(code: u16, text: &str) -> Arguments {
    Arguments::default().u16(code).short(text).u16(0).u16(0)
}

fn is_stopped(stop: &Receiver<()>) -> bool {
    stop.try_recv() == Err(TryRecvError::Disconnected)
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn panic_text(failure: &Failure) -> String {
    let text = failure.downcast_ref::<String>().cloned();
    let text = text.or_else(|| failure.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| lossy(b"a panic without a text"))
}
