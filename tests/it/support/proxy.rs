//! The proxy: TCP between a client and a broker, with faults that can be switched while it runs.
//!
//! The faults are named as toxiproxy names them. Each direction has one at a time. Bytes that a
//! fault counts are counted per connection, from the moment the fault was set.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::net::sockopt::set_socket_linger;

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

const READ_AHEAD: usize = 16 * 1024;
const PIECES_AHEAD: usize = 64;
/// A write that cannot proceed looks this often whether its connection was ended meanwhile:
/// shutting the socket down would wake it too, but would send a FIN ahead of a reset.
const STUCK_WRITE: Duration = Duration::from_millis(50);
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

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

struct Link {
    number: usize,
    client: TcpStream,
    upstream: TcpStream,
    ended: AtomicBool,
}

#[derive(Clone, Copy)]
enum Ending {
    Close,
    Reset,
}

enum Piece {
    Bytes(Instant, Vec<u8>),
    Reset,
}

/// What one direction of one connection has passed under the current setting.
#[derive(Default)]
struct Meter {
    version: u64,
    passed: u64,
    next_write: Option<Instant>,
}

enum Step {
    Write(usize),
    Swallow,
    HoldUntil(Instant),
    Hold,
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
                slots: BTreeMap::new(),
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn setting(&self, direction: Direction) -> Setting {
        self.state().settings[direction as usize]
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

impl Link {
    /// Called with the state locked, so that no waiting thread misses it. The first end counts.
    fn end(&self, ending: Ending) {
        if !self.ended.swap(true, Ordering::SeqCst) {
            finish(&self.client, ending);
            finish(&self.upstream, ending);
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn source(&self, direction: Direction) -> &TcpStream {
        match direction {
            Direction::ToBroker => &self.client,
            Direction::ToClient => &self.upstream,
        }
    }

    fn target(&self, direction: Direction) -> &TcpStream {
        match direction {
            Direction::ToBroker => &self.upstream,
            Direction::ToClient => &self.client,
        }
    }
}

impl Meter {
    /// What may happen now to what is left of a piece.
    fn step(&mut self, setting: Setting, read_at: Instant, left: usize) -> Step {
        if self.version != setting.version {
            *self = Meter { version: setting.version, ..Meter::default() };
        }
        match setting.toxic {
            Toxic::Pass => Step::Write(left),
            Toxic::Timeout => Step::Swallow,
            Toxic::Latency(delay) => at(read_at + delay, left),
            Toxic::Bandwidth(rate) => self.paced(rate.max(1), left),
            Toxic::Slicer(bytes) => Step::Write(left.min(bytes.max(1))),
            Toxic::LimitData(limit) | Toxic::ResetAfter(limit) => {
                let open = usize::try_from(limit - self.passed).unwrap_or(usize::MAX);
                Step::Write(left.min(open))
            }
            Toxic::Down | Toxic::ResetPeer => Step::Hold,
        }
    }

    fn paced(&mut self, rate: u64, left: usize) -> Step {
        let now = Instant::now();
        if let Some(next) = self.next_write.filter(|next| *next > now) {
            return Step::HoldUntil(next);
        }
        let portion = left.min(usize::try_from(rate / 100).unwrap_or(left).max(1));
        let cost = Duration::from_nanos(portion as u64 * 1_000_000_000 / rate);
        self.next_write = Some(now + cost);
        Step::Write(portion)
    }
}

fn at(due: Instant, left: usize) -> Step {
    match due > Instant::now() {
        true => Step::HoldUntil(due),
        false => Step::Write(left),
    }
}

/// Starts a socket's end. A reset follows when its last holder lets go of it.
fn finish(socket: &TcpStream, ending: Ending) {
    let how = match ending {
        Ending::Close => Shutdown::Both,
        Ending::Reset => {
            let _ = set_socket_linger(socket, Some(Duration::ZERO));
            // Wakes a reader and, unlike the other half, sends nothing.
            Shutdown::Read
        }
    };
    let _ = socket.shutdown(how);
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

fn serve(shared: &Shared, number: usize, client: TcpStream) {
    let Ok(upstream) = TcpStream::connect_timeout(&shared.upstream, CONNECT_LIMIT) else {
        drop(client);
        return shared.release(number, None);
    };
    for socket in [&client, &upstream] {
        let _ = socket.set_nodelay(true);
        let _ = socket.set_write_timeout(Some(STUCK_WRITE));
    }
    let link = Arc::new(Link { number, client, upstream, ended: AtomicBool::new(false) });
    shared.adopt(&link);
    thread::scope(|scope| {
        for direction in [Direction::ToBroker, Direction::ToClient] {
            let (pieces, arrived) = bounded(PIECES_AHEAD);
            let link = &*link;
            scope.spawn(move || read(link.source(direction), &pieces));
            scope.spawn(move || forward(shared, link, direction, &arrived));
        }
    });
    shared.release(number, Some(link));
}

fn read(mut source: &TcpStream, pieces: &Sender<Piece>) {
    let mut buffer = vec![0; READ_AHEAD];
    loop {
        let piece = match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => Piece::Bytes(Instant::now(), buffer[..count].to_vec()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => Piece::Reset,
        };
        let last = matches!(piece, Piece::Reset);
        if pieces.send(piece).is_err() || last {
            return;
        }
    }
}

fn forward(shared: &Shared, link: &Link, direction: Direction, pieces: &Receiver<Piece>) {
    let mut meter = Meter::default();
    let mut ending = None;
    for piece in pieces {
        match piece {
            Piece::Bytes(read_at, bytes) => {
                if !carry(shared, link, direction, &mut meter, read_at, &bytes) {
                    return;
                }
            }
            Piece::Reset => ending = Some(Ending::Reset),
        }
    }
    wait_out_blackhole(shared, link, direction);
    match ending {
        Some(ending) => shared.end(link, ending),
        // Half-closed: the other direction goes on.
        None if !link.has_ended() => drop(link.target(direction).shutdown(Shutdown::Write)),
        None => {}
    }
}

/// Brings one piece over; says whether the direction goes on.
fn carry(
    shared: &Shared,
    link: &Link,
    direction: Direction,
    meter: &mut Meter,
    read_at: Instant,
    bytes: &[u8],
) -> bool {
    let mut left = bytes;
    while !left.is_empty() && !link.has_ended() {
        let setting = shared.setting(direction);
        match meter.step(setting, read_at, left.len()) {
            Step::Swallow => return true,
            Step::Hold => shared.hold(link, direction, setting.version, None),
            Step::HoldUntil(time) => shared.hold(link, direction, setting.version, Some(time)),
            Step::Write(count) => {
                let (now, later) = left.split_at(count);
                if !write(link, link.target(direction), now) {
                    return false;
                }
                left = later;
                meter.passed += count as u64;
                if let Some(ending) = setting.toxic.ends_after(meter.passed) {
                    wait_until_received(link.target(direction));
                    shared.count(direction, count);
                    shared.end(link, ending);
                    return false;
                }
                shared.count(direction, count);
            }
        }
    }
    !link.has_ended()
}

fn write(link: &Link, mut target: &TcpStream, bytes: &[u8]) -> bool {
    let mut left = bytes;
    while !left.is_empty() {
        match target.write(left) {
            Ok(count) => left = &left[count..],
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut if !link.has_ended() => {}
                ErrorKind::Interrupted => {}
                _ => return false,
            },
        }
    }
    true
}

/// A blackhole keeps the end of the stream too, for as long as it is one.
fn wait_out_blackhole(shared: &Shared, link: &Link, direction: Direction) {
    loop {
        let setting = shared.setting(direction);
        if setting.toxic != Toxic::Timeout || link.has_ended() {
            return;
        }
        shared.hold(link, direction, setting.version, None);
    }
}

/// Waits until the peer's kernel has all that was written: a reset discards what it has not.
/// Only Linux tells; elsewhere the count is exact while the peer keeps reading.
fn wait_until_received(socket: &TcpStream) {
    let deadline = Instant::now() + CLOSE_LIMIT;
    while unreceived(socket).is_some_and(|bytes| bytes > 0) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

/// How many bytes the peer's kernel has not acknowledged. Asked by sock_diag(7), since the table
/// in `/proc` takes the longer to read the more connections there are.
#[cfg(target_os = "linux")]
fn unreceived(socket: &TcpStream) -> Option<u32> {
    use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketType, recv, sendto, socket as open,
    };
    const BYTES_TO_SEND: std::ops::Range<usize> = 76..80;

    let kernel = open(AddressFamily::NETLINK, SocketType::DGRAM, Some(SOCK_DIAG)).ok()?;
    let question = question_about(socket)?;
    sendto(&kernel, &question, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).ok()?;
    let mut answer = [0; 512];
    let (count, _) = recv(&kernel, &mut answer[..], RecvFlags::empty()).ok()?;
    let is_an_error = answer[4..6] == 2_u16.to_ne_bytes();
    let bytes = answer[..count].get(BYTES_TO_SEND)?.try_into().ok()?;
    (!is_an_error).then_some(u32::from_ne_bytes(bytes))
}

#[cfg(not(target_os = "linux"))]
fn unreceived(_: &TcpStream) -> Option<u32> {
    None
}

/// A `nlmsghdr` and an `inet_diag_req_v2` that names one TCP connection.
#[cfg(target_os = "linux")]
fn question_about(socket: &TcpStream) -> Option<Vec<u8>> {
    let (SocketAddr::V4(local), SocketAddr::V4(peer)) =
        (socket.local_addr().ok()?, socket.peer_addr().ok()?)
    else {
        return None;
    };
    let mut bytes = Vec::new();
    bytes.extend(72_u32.to_ne_bytes()); // length
    bytes.extend(20_u16.to_ne_bytes()); // SOCK_DIAG_BY_FAMILY
    bytes.extend(1_u16.to_ne_bytes()); // NLM_F_REQUEST
    bytes.extend([0; 8]); // sequence, sender
    bytes.extend([2, 6, 0, 0]); // AF_INET, IPPROTO_TCP, nothing extra
    bytes.extend([0xFF; 4]); // in any state
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(peer.port().to_be_bytes());
    for address in [local, peer] {
        bytes.extend(address.ip().octets());
        bytes.extend([0; 12]);
    }
    bytes.extend([0; 4]); // on any interface
    bytes.extend([0xFF; 8]); // without a cookie
    Some(bytes)
}
