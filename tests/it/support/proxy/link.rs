//! One connection through the proxy: two threads that forward bytes, with the faults set.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::net::sockopt::set_socket_linger;

use super::{CLOSE_LIMIT, Direction, Setting, Shared, Toxic};

const READ_AHEAD: usize = 16 * 1024;
const PIECES_AHEAD: usize = 64;

/// A write that cannot proceed looks this often whether its connection was ended meanwhile:
/// shutting the socket down would wake it too, but would send a FIN ahead of a reset.
const STUCK_WRITE: Duration = Duration::from_millis(50);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

pub(super) struct Link {
    pub(super) number: usize,
    client: TcpStream,
    upstream: TcpStream,
    ended: AtomicBool,
}

#[derive(Clone, Copy)]
pub(super) enum Ending {
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

impl Link {
    /// Called with the state locked, so that no waiting thread misses it. The first end counts.
    pub(super) fn end(&self, ending: Ending) {
        if !self.ended.swap(true, Ordering::SeqCst) {
            finish(&self.client, ending);
            finish(&self.upstream, ending);
        }
    }

    pub(super) fn has_ended(&self) -> bool {
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
pub(super) fn finish(socket: &TcpStream, ending: Ending) {
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

pub(super) fn serve(shared: &Shared, number: usize, client: TcpStream) {
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
        let setting = shared.setting(link, direction);
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
        let setting = shared.setting(link, direction);
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
