//! The proxy: each fault, against a peer that sends everything back.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use crate::support::acceptor::Acceptor;
use crate::support::proxy::{Direction, Proxy, Toxic};

const SOON: Duration = Duration::from_secs(30);
/// How long a silence is listened to.
const A_WHILE: Duration = Duration::from_millis(100);

/// What a peer received on a connection, and how that ended.
type Received = (Vec<u8>, Option<ErrorKind>);

struct Echo {
    acceptor: Acceptor,
    received: Receiver<Received>,
}

impl Echo {
    fn start() -> Echo {
        let (sender, received) = unbounded();
        let acceptor = Acceptor::start(0, move |stream| {
            let sender = sender.clone();
            thread::spawn(move || drop(sender.send(echo(&stream))));
        });
        Echo { acceptor, received }
    }

    fn proxy(&self) -> Proxy {
        Proxy::start(self.acceptor.address())
    }

    fn received(&self) -> Received {
        self.received.recv_timeout(SOON).expect("the peer was left")
    }
}

fn echo(mut stream: &TcpStream) -> Received {
    let mut all = Vec::new();
    let mut ended = None;
    let mut buffer = [0; 4096];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return (all, ended),
            Ok(count) => count,
            Err(error) => return (all, Some(error.kind())),
        };
        all.extend(&buffer[..count]);
        // The kernel tells of a reset once, to whoever asks first; what came before it can
        // still be read.
        if let Err(error) = stream.write_all(&buffer[..count]) {
            let reset = error.kind() == ErrorKind::ConnectionReset;
            ended = ended.or(reset.then_some(error.kind()));
        }
    }
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).expect("the proxy listens");
    stream.set_read_timeout(Some(SOON)).expect("a TCP stream");
    stream.set_nodelay(true).expect("a TCP stream");
    stream
}

fn send(mut stream: &TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("the proxy reads");
}

fn receive(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("the bytes come back");
    bytes
}

fn receive_to_end(mut stream: &TcpStream) -> Received {
    let mut all = Vec::new();
    let ended = stream.read_to_end(&mut all);
    (all, ended.err().map(|error| error.kind()))
}

fn assert_silent(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(A_WHILE)).expect("a TCP stream");
    let error = stream.read(&mut [0]).expect_err("nothing comes");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(SOON)).expect("a TCP stream");
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|number| (number % 251) as u8).collect()
}

#[test]
fn pass_forwards_everything_and_counts_it() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    let stream = connect(&proxy);
    let data = bytes(1_000_000);
    thread::scope(|scope| {
        scope.spawn(|| send(&stream, &data));
        assert_eq!(receive(&stream, data.len()), data);
    });
    stream.shutdown(Shutdown::Write).expect("half-closed");
    assert_eq!(receive_to_end(&stream), (Vec::new(), None));
    assert_eq!(echo.received().0, data);
    proxy.wait_for_bytes(Direction::ToClient, 1_000_000, SOON);
    assert_eq!(proxy.bytes(Direction::ToBroker), 1_000_000);
    assert_eq!(proxy.bytes(Direction::ToClient), 1_000_000);
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn a_proxy_that_heals_lets_everything_pass_from_that_connection_on() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    proxy.set(Direction::ToClient, Toxic::LimitData(3));
    proxy.heal_at(2);
    let cut = connect(&proxy);
    send(&cut, b"before");
    assert_eq!(receive_to_end(&cut), (b"bef".to_vec(), None));
    let healed = connect(&proxy);
    send(&healed, b"after");
    assert_eq!(receive(&healed, 5), b"after");
}

#[test]
fn a_fault_that_is_kept_to_one_connection_spares_the_others() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    proxy.only(2);
    proxy.set(Direction::ToBroker, Toxic::Timeout);
    let streams: Vec<_> = (1..=3)
        .map(|number| {
            let stream = connect(&proxy);
            proxy.wait_for_connections(number, SOON);
            stream
        })
        .collect();
    streams.iter().for_each(|stream| send(stream, b"x"));
    assert_eq!(receive(&streams[0], 1), b"x");
    assert_eq!(receive(&streams[2], 1), b"x");
    assert_silent(&streams[1]);
}

#[test]
fn down_refuses_and_pass_listens_again_at_the_same_place() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    let stream = connect(&proxy);
    proxy.wait_for_connections(1, SOON);
    proxy.set(Direction::ToBroker, Toxic::Down);
    assert_eq!(receive_to_end(&stream), (Vec::new(), None));
    let refused = TcpStream::connect(proxy.address()).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    proxy.set(Direction::ToBroker, Toxic::Pass);
    let stream = connect(&proxy);
    send(&stream, b"again");
    assert_eq!(receive(&stream, 5), b"again");
    assert_eq!(proxy.connections(), 2);
}

#[test]
fn timeout_swallows_one_direction_and_its_end() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    proxy.set(Direction::ToClient, Toxic::Timeout);
    let stream = connect(&proxy);
    send(&stream, b"lost");
    proxy.wait_for_bytes(Direction::ToBroker, 4, SOON);
    stream.shutdown(Shutdown::Write).expect("half-closed");
    assert_eq!(echo.received(), (b"lost".to_vec(), None));
    assert_silent(&stream);
    assert_eq!(proxy.bytes(Direction::ToClient), 0);
    proxy.set(Direction::ToClient, Toxic::Pass);
    assert_eq!(receive_to_end(&stream), (Vec::new(), None));
}

#[test]
fn reset_peer_resets_what_is_there_and_what_comes() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    let stream = connect(&proxy);
    send(&stream, b"x");
    receive(&stream, 1);
    proxy.set(Direction::ToClient, Toxic::ResetPeer);
    let reset = Some(ErrorKind::ConnectionReset);
    assert_eq!(receive_to_end(&stream), (Vec::new(), reset));
    assert_eq!(echo.received(), (b"x".to_vec(), reset));
    let later = connect(&proxy);
    assert_eq!(receive_to_end(&later), (Vec::new(), reset));
}

#[test]
fn latency_delays_but_does_not_queue_up() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    proxy.set(Direction::ToBroker, Toxic::Latency(A_WHILE));
    let stream = connect(&proxy);
    let begun = Instant::now();
    for _ in 0..100 {
        send(&stream, b"x");
        thread::yield_now();
    }
    receive(&stream, 100);
    let took = begun.elapsed();
    assert!(took >= A_WHILE && took < A_WHILE * 50, "{took:?}");
}

#[test]
fn a_switch_ends_a_wait_for_latency() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    proxy.set_both(Toxic::Latency(Duration::from_secs(3600)));
    let stream = connect(&proxy);
    send(&stream, b"x");
    assert_silent(&stream);
    proxy.set_both(Toxic::Pass);
    assert_eq!(receive(&stream, 1), b"x");
}

#[test]
fn bandwidth_paces() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    proxy.set(Direction::ToBroker, Toxic::Bandwidth(10_000));
    let stream = connect(&proxy);
    let begun = Instant::now();
    send(&stream, &bytes(3_000));
    assert_eq!(receive(&stream, 3_000), bytes(3_000));
    let took = begun.elapsed();
    let least = Duration::from_millis(290);
    assert!(took >= least && took < least * 50, "{took:?}");
}

#[test]
fn slices_come_to_the_same_bytes() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    proxy.set_both(Toxic::Slicer(1));
    let stream = connect(&proxy);
    send(&stream, &bytes(2_000));
    assert_eq!(receive(&stream, 2_000), bytes(2_000));
}

#[test]
fn limit_data_closes_after_exactly_so_many_bytes() {
    let data = bytes(70_000);
    for limit in [1, 7, 999, 65_536, 69_999] {
        let echo = Echo::start();
        let proxy = echo.proxy();
        // What the peer sends back must not race with the end.
        proxy.set(Direction::ToClient, Toxic::Timeout);
        proxy.set(Direction::ToBroker, Toxic::LimitData(limit));
        let stream = connect(&proxy);
        let _ = (&stream).write_all(&data);
        assert_eq!(receive_to_end(&stream).0, b"", "{limit}");
        assert_eq!(proxy.bytes(Direction::ToBroker), limit);
        let limit = usize::try_from(limit).expect("a size");
        assert_eq!(echo.received(), (data[..limit].to_vec(), None), "{limit}");
    }
}

#[test]
fn a_limit_of_nothing_closes_before_the_first_byte() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    let stream = connect(&proxy);
    send(&stream, b"x");
    receive(&stream, 1);
    proxy.set(Direction::ToBroker, Toxic::LimitData(0));
    assert_eq!(receive_to_end(&stream), (Vec::new(), None));
    assert_eq!(echo.received(), (b"x".to_vec(), None));
    assert_eq!(receive_to_end(&connect(&proxy)), (Vec::new(), None));
    assert_eq!(proxy.bytes(Direction::ToBroker), 1);
}

#[test]
fn reset_after_resets_after_exactly_so_many_bytes() {
    let data = bytes(70_000);
    let reset = Some(ErrorKind::ConnectionReset);
    for limit in [1, 7, 999, 65_536, 69_999] {
        let echo = Echo::start();
        let proxy = echo.proxy();
        proxy.set(Direction::ToClient, Toxic::Timeout);
        proxy.set(Direction::ToBroker, Toxic::ResetAfter(limit));
        let stream = connect(&proxy);
        let _ = (&stream).write_all(&data);
        assert_eq!(receive_to_end(&stream), (Vec::new(), reset), "{limit}");
        assert_eq!(proxy.bytes(Direction::ToBroker), limit);
        let limit = usize::try_from(limit).expect("a size");
        assert_eq!(echo.received(), (data[..limit].to_vec(), reset), "{limit}");
    }
}

#[test]
fn the_way_to_the_client_is_cut_as_exactly() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    proxy.set(Direction::ToClient, Toxic::ResetAfter(500));
    let stream = connect(&proxy);
    send(&stream, &bytes(2_000));
    let reset = Some(ErrorKind::ConnectionReset);
    assert_eq!(receive_to_end(&stream), (bytes(500), reset));
}

#[test]
fn a_count_begins_when_its_fault_is_set_and_anew_on_each_connection() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    let stream = connect(&proxy);
    send(&stream, &bytes(100));
    receive(&stream, 100);
    proxy.set(Direction::ToClient, Toxic::LimitData(10));
    for stream in [stream, connect(&proxy)] {
        send(&stream, &bytes(100));
        assert_eq!(receive_to_end(&stream), (bytes(10), None));
    }
}

#[test]
fn cut_closes_and_lets_the_next_one_in() {
    let echo = Echo::start();
    let proxy = echo.proxy();
    let streams = [connect(&proxy), connect(&proxy)];
    proxy.wait_for_connections(2, SOON);
    proxy.cut();
    for stream in streams {
        assert_eq!(receive_to_end(&stream), (Vec::new(), None));
    }
    let stream = connect(&proxy);
    send(&stream, b"x");
    assert_eq!(receive(&stream, 1), b"x");
}

#[test]
fn a_reset_by_one_peer_reaches_the_other() {
    let (sender, accepted) = unbounded();
    let peer = Acceptor::start(0, move |stream| drop(sender.send(stream)));
    let proxy = Proxy::start(peer.address());
    let stream = connect(&proxy);
    send(&stream, b"unread");
    let accepted = accepted.recv_timeout(SOON).expect("connected");
    assert_eq!(receive(&accepted, 1), b"u");
    // Closed with unread bytes, which resets.
    drop(accepted);
    let reset = Some(ErrorKind::ConnectionReset);
    assert_eq!(receive_to_end(&stream), (Vec::new(), reset));
}

#[test]
fn a_drop_ends_a_proxy_whose_peer_does_not_read() {
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let peer = Acceptor::start(0, {
        let accepted = Arc::clone(&accepted);
        move |stream| accepted.lock().expect("not poisoned").push(stream)
    });
    let proxy = Proxy::start(peer.address());
    let stream = connect(&proxy);
    stream.set_write_timeout(Some(A_WHILE)).expect("a TCP stream");
    while (&stream).write(&[0; 65_536]).is_ok() {}
    let begun = Instant::now();
    drop(proxy);
    assert!(begun.elapsed() < Duration::from_secs(2));
}
