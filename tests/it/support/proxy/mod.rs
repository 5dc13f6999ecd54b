//! The proxy: TCP between a client and a broker, with faults that can be switched while it runs.
//!
//! The faults are named as toxiproxy names them. Each direction has one at a time. Bytes that a
//! fault counts are counted per connection, from the moment the fault was set.

mod link;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::link::{Ending, Link, finish, serve};
use super::acceptor::Acceptor;

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToBroker,
    ToClient,
}

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toxic {
    /// Everything is forwarded at once.
    Pass,
    /// Nobody listens any more, and the current connections are closed.
    Down,
    /// Connections are accepted and what arrives is swallowed, its end included.
    Timeout,
    /// The current connections, and each new one, are reset.
    ResetPeer,
    /// Every byte arrives this much later.
    Latency(Duration),
    /// So many bytes a second, in a hundred portions or as single bytes.
    Bandwidth(u64),
    /// So many bytes in each write.
    Slicer(usize),
    /// The connection is closed when exactly so many bytes have reached the other side.
    LimitData(u64),
    /// The connection is reset when exactly so many bytes have reached the other side.
    ResetAfter(u64),
}

/// A proxy in front of one address. Dropping it closes its connections and ends its threads.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Mutex<Option<Acceptor>>,
}

impl Proxy {
    pub(crate) fn start(upstream: SocketAddr) -> Proxy {
        let shared = Arc::new(Shared::new(upstream));
        let acceptor = accept_for(&shared, 0);
        Proxy { address: acceptor.address(), shared, acceptor: Mutex::new(Some(acceptor)) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@{}", self.address)
    }

    /// Sets the fault of one direction. When this returns the listener is open or closed, and
    /// the connections are ended, as the fault says.
    pub(crate) fn set(&self, direction: Direction, toxic: Toxic) {
        let mut acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner);
        if toxic == Toxic::Down {
            *acceptor = None;
        }
        let ended = self.shared.switch(direction, toxic);
        self.shared.wait_until_closed(&ended);
        if acceptor.is_none() && !self.shared.is_down() {
            *acceptor = Some(accept_for(&self.shared, self.address.port()));
        }
    }

    /// Sets the same fault in both directions.
    pub(crate) fn set_both(&self, toxic: Toxic) {
        self.set(Direction::ToBroker, toxic);
        self.set(Direction::ToClient, toxic);
    }

    /// Lets everything pass from the moment that the connection of this number is accepted; the
    /// first is 1. Nobody listens to a `Down` proxy, so that is not ended by it.
    pub(crate) fn heal_at(&self, connection: usize) {
        self.shared.state().heals_at = Some(connection);
    }

    /// Gives each of the next connections one of these faults, and no other one.
    pub(crate) fn fault_each(&self, faults: impl IntoIterator<Item = (Direction, Toxic)>) {
        let mut state = self.shared.state();
        let next = state.accepted;
        state.of_one = (next..).zip(faults).collect();
    }

    /// Keeps the faults to the connection of this number; the first is 1. Everything passes on the
    /// others, unless a fault ends connections at once.
    pub(crate) fn only(&self, connection: usize) {
        self.shared.state().only = Some(connection);
    }

    /// Closes all current connections; new ones are welcome.
    pub(crate) fn cut(&self) {
        let ended = self.shared.end_all(Ending::Close);
        self.shared.wait_until_closed(&ended);
    }

    /// How many connections were accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.state().accepted
    }

    /// How many bytes were forwarded so far, over all connections.
    pub(crate) fn bytes(&self, direction: Direction) -> u64 {
        self.shared.state().forwarded[direction as usize]
    }

    pub(crate) fn wait_for_connections(&self, count: usize, within: Duration) {
        let wanted = format!("{count} connections");
        self.wait_for(&wanted, within, |state| state.accepted >= count);
    }

    pub(crate) fn wait_for_bytes(&self, direction: Direction, count: u64, within: Duration) {
        let wanted = format!("{count} bytes {direction:?}");
        self.wait_for(&wanted, within, |state| state.forwarded[direction as usize] >= count);
    }

    fn wait_for(&self, wanted: &str, within: Duration, arrived: impl Fn(&State) -> bool) {
        let (state, outcome) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), within, |state| !arrived(state))
            .unwrap_or_else(PoisonError::into_inner);
        let (accepted, forwarded) = (state.accepted, state.forwarded);
        drop(state);
        assert!(
            !outcome.timed_out(),
            "the proxy waited {within:?} for {wanted}; it has {accepted} connections and {forwarded:?} bytes"
        );
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.cut();
    }
}

const CLOSE_LIMIT: Duration = Duration::from_secs(5);

struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    settings: [Setting; 2],
    forwarded: [u64; 2],
    accepted: usize,
    /// At which connection the faults end.
    heals_at: Option<usize>,
    /// The connection that the faults are kept to.
    only: Option<usize>,
    /// The only fault of the connection of this number, which counts from 0.
    of_one: BTreeMap<usize, (Direction, Toxic)>,
    slots: BTreeMap<usize, Slot>,
}

/// A fault, and how often it was set: a wait for one setting ends with the next.
#[derive(Clone, Copy)]
struct Setting {
    toxic: Toxic,
    version: u64,
}

/// A connection from its accept until its sockets are closed.
#[derive(Default)]
struct Slot {
    /// Absent while the upstream is being connected to.
    link: Option<Arc<Link>>,
    ending: Option<Ending>,
}

impl Shared {
    fn new(upstream: SocketAddr) -> Shared {
        let pass = Setting { toxic: Toxic::Pass, version: 0 };
        Shared {
            upstream,
            state: Mutex::new(State {
                settings: [pass; 2],
                forwarded: [0; 2],
                accepted: 0,
                heals_at: None,
                only: None,
                of_one: BTreeMap::new(),
                slots: BTreeMap::new(),
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn setting(&self, link: &Link, direction: Direction) -> Setting {
        let state = self.state();
        let setting = state.settings[direction as usize];
        if let Some((faulty, toxic)) = state.of_one.get(&link.number) {
            let toxic = if *faulty == direction { *toxic } else { Toxic::Pass };
            return Setting { toxic, ..setting };
        }
        let is_spared = state.only.is_some_and(|connection| connection != link.number + 1);
        if is_spared { Setting { toxic: Toxic::Pass, ..setting } } else { setting }
    }

    fn is_down(&self) -> bool {
        let state = self.state();
        state.settings.iter().any(|s| s.toxic == Toxic::Down)
    }

    fn switch(&self, direction: Direction, toxic: Toxic) -> Vec<usize> {
        let mut state = self.state();
        let setting = &mut state.settings[direction as usize];
        setting.toxic = toxic;
        setting.version += 1;
        let ended = match toxic.ends_at_once() {
            Some(ending) => state.end_all(ending),
            None => Vec::new(),
        };
        self.changed.notify_all();
        ended
    }

    fn end_all(&self, ending: Ending) -> Vec<usize> {
        let ended = self.state().end_all(ending);
        self.changed.notify_all();
        ended
    }

    fn end(&self, link: &Link, ending: Ending) {
        let state = self.state();
        link.end(ending);
        drop(state);
        self.changed.notify_all();
    }

    fn wait_until_closed(&self, numbers: &[usize]) {
        let open = |state: &mut State| numbers.iter().any(|n| state.slots.contains_key(n));
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), CLOSE_LIMIT, open)
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
    }

    /// Counts a connection; says whether it is to live.
    fn admit(&self, client: &TcpStream) -> Option<usize> {
        let mut state = self.state();
        let number = state.accepted;
        state.accepted += 1;
        state.heal_when_due();
        let ending = state.ends_at_once();
        match ending {
            Some(ending) => finish(client, ending),
            None => drop(state.slots.insert(number, Slot::default())),
        }
        self.changed.notify_all();
        ending.is_none().then_some(number)
    }

    /// Makes a connected link known, so that it can be ended; one ended meanwhile ends now.
    fn adopt(&self, link: &Arc<Link>) {
        let mut state = self.state();
        let at_once = state.ends_at_once();
        let slot = state.slots.entry(link.number).or_default();
        slot.link = Some(Arc::clone(link));
        if let Some(ending) = slot.ending.or(at_once) {
            link.end(ending);
        }
    }

    /// Closes the sockets, which the link was the last to hold, and only then says so.
    fn release(&self, number: usize, link: Option<Arc<Link>>) {
        let mut state = self.state();
        drop(state.slots.remove(&number));
        drop(link);
        self.changed.notify_all();
    }

    /// Waits until a time, or without one for ever, but never past a switch or the link's end.
    fn hold(&self, link: &Link, direction: Direction, version: u64, until: Option<Instant>) {
        let mut state = self.state();
        while !link.has_ended() && state.settings[direction as usize].version == version {
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return,
                Some(left) => match self.changed.wait_timeout(state, left) {
                    Ok((state, _)) => state,
                    Err(poisoned) => poisoned.into_inner().0,
                },
                None => (self.changed.wait(state)).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn count(&self, direction: Direction, bytes: usize) {
        self.state().forwarded[direction as usize] += bytes as u64;
        self.changed.notify_all();
    }
}

impl State {
    fn heal_when_due(&mut self) {
        if self.heals_at.take_if(|connection| *connection <= self.accepted).is_some() {
            for setting in &mut self.settings {
                *setting = Setting { toxic: Toxic::Pass, version: setting.version + 1 };
            }
        }
    }

    fn ends_at_once(&self) -> Option<Ending> {
        let mut settings = self.settings.iter();
        settings.find_map(|setting| setting.toxic.ends_at_once())
    }

    fn end_all(&mut self, ending: Ending) -> Vec<usize> {
        for slot in self.slots.values_mut() {
            slot.ending.get_or_insert(ending);
            if let Some(link) = &slot.link {
                link.end(ending);
            }
        }
        self.slots.keys().copied().collect()
    }
}

impl Toxic {
    /// How connections end that need not wait for a byte to do so.
    fn ends_at_once(self) -> Option<Ending> {
        match self {
            Toxic::Down | Toxic::LimitData(0) => Some(Ending::Close),
            Toxic::ResetPeer | Toxic::ResetAfter(0) => Some(Ending::Reset),
            _ => None,
        }
    }

    /// How a connection ends that has passed so many bytes.
    fn ends_after(self, passed: u64) -> Option<Ending> {
        match self {
            Toxic::LimitData(limit) if passed >= limit => Some(Ending::Close),
            Toxic::ResetAfter(limit) if passed >= limit => Some(Ending::Reset),
            _ => None,
        }
    }
}

fn accept_for(shared: &Arc<Shared>, port: u16) -> Acceptor {
    let shared = Arc::clone(shared);
    Acceptor::start(port, move |client| {
        if let Some(number) = shared.admit(&client) {
            let shared = Arc::clone(&shared);
            thread::spawn(move || serve(&shared, number, client));
        }
    })
}
