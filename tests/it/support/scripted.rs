//! The scripted broker: says on each connection exactly the frames a script says, and nothing else.
//!
//! A script runs in a thread of its own for each connection that was accepted. It is strict: a
//! peer that does not do what the script expects, or does it too late, fails the script, and with
//! it the test, when the broker is waited for, finished or dropped.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
use rustix::net::sockopt::set_socket_linger;

use super::acceptor::Acceptor;
use super::wire::{
    Arguments, BODY, Call, Delivery, Field, Frame, HEADER, HEARTBEAT, METHOD, Method, Publish,
    Table, content, lossy,
};

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
    /// so, and then neither says anything more nor reads.
    pub(crate) fn silent_after(methods: usize) -> ScriptedBroker {
        ScriptedBroker::start(move |session, _| {
            session.expect_protocol_header();
            session.send_start();
            for _ in 0..methods {
                let method = session.expect_method();
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

impl Session {
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Tells the test something.
    pub(crate) fn report(&self, text: impl Into<String>) {
        let _ = self.events.send(Event::Reported(text.into()));
    }

    /// Opens the connection, with what RabbitMQ proposes, but without heartbeats.
    pub(crate) fn handshake(&mut self) -> Client {
        self.handshake_with(Tuning::default())
    }

    /// Goes on up to where the client opens its virtual host, and refuses that.
    pub(crate) fn refuse_open(&mut self, code: u16, text: &str) {
        let _ = self.tune(Tuning::default());
        self.close_connection(code, text);
    }

    pub(crate) fn handshake_with(&mut self, tuning: Tuning) -> Client {
        let client = self.tune(tuning);
        self.send(0, 10, 41, Arguments::default().short(""));
        client
    }

    fn tune(&mut self, tuning: Tuning) -> Client {
        self.expect_protocol_header();
        self.send_start();
        let Call::StartOk { client, mechanism, response } = self.expect_method().call else {
            panic!("the client did not answer start with start-ok");
        };
        self.send_tune(tuning);
        let Call::TuneOk { channel_max, frame_max, heartbeat } = self.expect_method().call else {
            panic!("the client did not answer tune with tune-ok");
        };
        self.frame_max = frame_max;
        let Call::Open { vhost } = self.expect_method().call else {
            panic!("the client did not open a virtual host after tune-ok");
        };
        Client { properties: client, mechanism, response, channel_max, frame_max, heartbeat, vhost }
    }

    pub(crate) fn expect_protocol_header(&mut self) {
        assert!(self.read_protocol_header(), "the client left before its protocol header");
    }

    /// Says whether the peer is still there.
    fn read_protocol_header(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.unread.len() < 8 {
            if !self.read_more(deadline, "the protocol header") {
                return false;
            }
        }
        let header: Vec<u8> = self.unread.drain(..8).collect();
        assert_eq!(header, b"AMQP\0\0\x09\x01", "the protocol header");
        true
    }

    pub(crate) fn send_start(&mut self) {
        self.send_start_with(Vec::new());
    }

    /// Says more of itself than RabbitMQ does.
    pub(crate) fn send_start_with(&mut self, more: Table) {
        let able = |name: &str| (name.into(), Field::Bool(true));
        let capabilities = vec![
            able("publisher_confirms"),
            able("exchange_exchange_bindings"),
            able("basic.nack"),
            able("consumer_cancel_notify"),
            able("connection.blocked"),
            able("authentication_failure_close"),
        ];
        let mut properties = vec![
            (b"capabilities".to_vec(), Field::Table(capabilities)),
            (b"product".to_vec(), Field::text("scripted")),
            (b"version".to_vec(), Field::text("3.10.8")),
        ];
        properties.extend(more);
        let arguments = Arguments::default()
            .u8(0)
            .u8(9)
            .table(&properties)
            .long("PLAIN AMQPLAIN")
            .long("en_US");
        self.send(0, 10, 10, arguments);
    }

    pub(crate) fn send_tune(&mut self, tuning: Tuning) {
        let arguments = Arguments::default()
            .u16(tuning.channel_max)
            .u32(tuning.frame_max)
            .u16(tuning.heartbeat);
        self.send(0, 10, 30, arguments);
    }

    /// The next method, a publish with its content; `None` when the peer has closed the socket.
    pub(crate) fn next_method(&mut self) -> Option<Method> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let frame = self.next_frame(deadline)?;
            if let Some(method) = self.assemble(frame) {
                return Some(method);
            }
        }
    }

    /// The next method, which must come.
    pub(crate) fn expect_method(&mut self) -> Method {
        let method = self.next_method();
        method.expect("the client left while the script waited for a method")
    }

    /// Answers as a broker would, until there comes what has no usual answer: that is returned.
    /// `None` when the peer has left, with or without closing the connection first.
    pub(crate) fn answer_rpcs(&mut self) -> Option<Method> {
        loop {
            let method = self.next_method()?;
            if self.answer(&method) {
                continue;
            }
            match method.call {
                Call::ChannelCloseOk => {}
                Call::ConnectionCloseOk => return None,
                _ => return Some(method),
            }
        }
    }

    /// Sends the usual answer, which to a tune-ok is none; says whether there is a usual answer.
    pub(crate) fn answer(&mut self, method: &Method) -> bool {
        let none = Arguments::default();
        let (no_wait, class, id, arguments) = match &method.call {
            Call::StartOk { .. } => {
                self.send_tune(Tuning::default());
                return true;
            }
            Call::TuneOk { frame_max, .. } => {
                self.frame_max = *frame_max;
                return true;
            }
            Call::Open { .. } => (false, 10, 41, none.short("")),
            Call::ChannelOpen => (false, 20, 11, none.long("")),
            Call::ChannelClose { .. } => (false, 20, 41, none),
            Call::ConnectionClose { .. } => (false, 10, 51, none),
            Call::ExchangeDeclare { no_wait, .. } => (*no_wait, 40, 11, none),
            Call::QueueDeclare { queue, no_wait, .. } => {
                let queue = self.named(queue, "amq.gen");
                (*no_wait, 50, 11, none.short(queue).u32(0).u32(0))
            }
            Call::QueueBind { no_wait, .. } => (*no_wait, 50, 21, none),
            Call::QueuePurge { no_wait, .. } => (*no_wait, 50, 31, none.u32(0)),
            Call::QueueDelete { no_wait, .. } => (*no_wait, 50, 41, none.u32(0)),
            Call::Qos { .. } => (false, 60, 11, none),
            Call::Consume { tag, no_wait, .. } => {
                let tag = self.named(tag, "amq.ctag");
                (*no_wait, 60, 21, none.short(tag))
            }
            Call::Cancel { tag, no_wait } => (*no_wait, 60, 31, none.short(tag)),
            Call::Get { .. } => (false, 60, 72, none.short("")),
            Call::ConfirmSelect { no_wait } => (*no_wait, 85, 11, none),
            _ => return false,
        };
        if !no_wait {
            self.send(method.channel, class, id, arguments);
        }
        true
    }

    /// Answers until a consumer has been let in.
    pub(crate) fn accept_consumer(&mut self) -> Consumer {
        let method = self.expect_consume();
        self.let_in(method).expect("it was waited for")
    }

    /// Lets a consumer in, if this is one that asks for it.
    pub(crate) fn let_in(&mut self, mut method: Method) -> Option<Consumer> {
        let Call::Consume { queue, tag, .. } = &mut method.call else { return None };
        *tag = self.named(tag, "amq.ctag");
        let consumer = Consumer { channel: method.channel, queue: queue.clone(), tag: tag.clone() };
        self.answer(&method);
        Some(consumer)
    }

    /// Serves a producer or a worker, from the handshake until it leaves.
    pub(crate) fn serve(&mut self) {
        self.serve_but(|_, _| {});
    }

    /// The same, but does something else, too, ahead of each answer.
    pub(crate) fn serve_but(&mut self, mut also: impl FnMut(&mut Session, &Method)) {
        if !self.read_protocol_header() {
            return;
        }
        self.send_start();
        while let Some(method) = self.next_method() {
            also(self, &method);
            self.serve_method(method);
        }
    }

    /// Confirms what is published, sends each consumer one task, and answers what has an answer.
    /// Reports `settled` when a task was published or acked.
    pub(crate) fn serve_method(&mut self, method: Method) {
        match method.call {
            Call::Ack { .. } => self.report("settled"),
            Call::Publish(_) => {
                self.report("settled");
                let tag = self.published.entry(method.channel).or_default();
                *tag += 1;
                let tag = *tag;
                self.ack(method.channel, tag);
            }
            Call::Consume { .. } => {
                let consumer = self.let_in(method).expect("it asks for that");
                let delivery = Delivery::new(consumer.channel, &consumer.tag, 1);
                self.deliver(&delivery.body("task"));
            }
            _ => drop(self.answer(&method)),
        }
    }

    /// Answers until the client consumes, which is left to be answered.
    pub(crate) fn expect_consume(&mut self) -> Method {
        self.answer_until(|call| matches!(call, Call::Consume { .. }))
    }

    /// Answers until the client cancels this consumer, which is left to be answered.
    pub(crate) fn expect_cancel(&mut self, consumer: &Consumer) -> Method {
        self.answer_until(|call| matches!(call, Call::Cancel { tag, .. } if *tag == consumer.tag))
    }

    /// Answers until a queue is to be declared, which is left to be answered.
    pub(crate) fn expect_declare(&mut self) -> Method {
        self.answer_until(|call| matches!(call, Call::QueueDeclare { .. }))
    }

    fn answer_until(&mut self, wanted: impl Fn(&Call) -> bool) -> Method {
        loop {
            let method = self.expect_method();
            if wanted(&method.call) {
                return method;
            }
            let answered = self.answer(&method);
            assert!(answered, "instead of what was waited for there came {method:?}");
        }
    }

    /// Answers until a publish is there.
    pub(crate) fn read_publish(&mut self) -> Publish {
        let publish = self.try_read_publish();
        publish.expect("the client left while the script waited for a publish")
    }

    /// As `read_publish`, but `None` when the peer has left.
    pub(crate) fn try_read_publish(&mut self) -> Option<Publish> {
        match self.answer_rpcs()?.call {
            Call::Publish(publish) => Some(*publish),
            other => panic!("instead of a publish there came {other:?}"),
        }
    }

    pub(crate) fn deliver(&mut self, delivery: &Delivery) {
        let bytes = delivery.to_bytes(self.frame_max);
        self.raw(&bytes);
    }

    pub(crate) fn ack(&mut self, channel: u16, tag: u64) {
        self.send(channel, 60, 80, Arguments::default().u64(tag).u8(0));
    }

    /// Acks all tags up to this one.
    pub(crate) fn ack_up_to(&mut self, channel: u16, tag: u64) {
        self.send(channel, 60, 80, Arguments::default().u64(tag).u8(1));
    }

    pub(crate) fn nack(&mut self, channel: u16, tag: u64) {
        self.send(channel, 60, 120, Arguments::default().u64(tag).u8(0));
    }

    /// Nacks all tags up to this one.
    pub(crate) fn nack_up_to(&mut self, channel: u16, tag: u64) {
        self.send(channel, 60, 120, Arguments::default().u64(tag).u8(1));
    }

    /// Sends a publish back, for instance with 312 and `NO_ROUTE`.
    pub(crate) fn return_message(&mut self, publish: &Publish, code: u16, text: &str) {
        let arguments = Arguments::default()
            .u16(code)
            .short(text)
            .short(&publish.exchange)
            .short(&publish.routing_key);
        let method = Frame::method(publish.channel, 60, 50, arguments);
        let properties = &publish.raw_properties;
        let bytes = content(&method, properties, &publish.body, self.frame_max);
        self.raw(&bytes);
    }

    /// Closes a channel; the client's close-ok comes later, and `answer_rpcs` passes over it.
    pub(crate) fn close_channel(&mut self, channel: u16, code: u16, text: &str) {
        self.send(channel, 20, 40, close_arguments(code, text));
    }

    /// Closes the connection; the client's close-ok comes later.
    pub(crate) fn close_connection(&mut self, code: u16, text: &str) {
        self.send(0, 10, 50, close_arguments(code, text));
    }

    /// Cancels a consumer as a broker does whose queue has gone.
    pub(crate) fn cancel_consumer(&mut self, consumer: &Consumer) {
        let arguments = Arguments::default().short(&consumer.tag).u8(1);
        self.send(consumer.channel, 60, 30, arguments);
    }

    pub(crate) fn blocked(&mut self, reason: &str) {
        self.send(0, 10, 60, Arguments::default().short(reason));
    }

    pub(crate) fn unblocked(&mut self) {
        self.send(0, 10, 61, Arguments::default());
    }

    pub(crate) fn heartbeat(&mut self) {
        self.raw(&Frame::heartbeat().to_bytes());
    }

    pub(crate) fn send(&mut self, channel: u16, class: u16, method: u16, arguments: Arguments) {
        let frame = Frame::method(channel, class, method, arguments);
        self.raw(&frame.to_bytes());
    }

    pub(crate) fn damage(&mut self, damage: Damage) {
        self.damage = Some(damage);
    }

    /// How many bytes were sent so far.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// Sends bytes, whatever they are. That the peer has left shows when it is read from.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let bytes = self.damaged(bytes);
        let Some(mut stream) = self.stream.as_deref() else {
            return;
        };
        let _ = stream.set_write_timeout(Some(PATIENCE));
        match stream.write_all(&bytes) {
            Err(error) if is_timeout(error.kind()) => {
                panic!("the client read nothing for {PATIENCE:?}")
            }
            _ => {}
        }
    }

    /// The bytes to be sent next, as they are to arrive.
    fn damaged(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        if let Some(Damage { position, bits }) = self.damage {
            let byte = position.checked_sub(self.sent).and_then(|place| bytes.get_mut(place));
            byte.into_iter().for_each(|byte| *byte ^= bits);
        }
        self.sent += bytes.len();
        bytes
    }

    /// Neither reads nor writes until the test is over; the connection stays open.
    pub(crate) fn stay_silent(&mut self) {
        let _ = self.stop.recv();
    }

    /// Reads, says nothing, and gives what came until the peer closed the socket.
    pub(crate) fn read_until_closed(&mut self) -> Vec<Method> {
        let deadline = Instant::now() + PATIENCE;
        let mut methods = Vec::new();
        while let Some(frame) = self.next_frame(deadline) {
            methods.extend(self.assemble(frame));
        }
        methods
    }

    /// Answers heartbeats with heartbeats, and nothing else, until the peer closed the socket.
    pub(crate) fn beat_until_closed(&mut self) {
        while let Some(frame) = self.next_frame(Instant::now() + PATIENCE) {
            if frame.kind == HEARTBEAT {
                self.heartbeat();
            }
        }
    }

    /// Answers heartbeats with heartbeats, and nothing else, until nothing was heard for so long.
    pub(crate) fn beat_until_silent(&mut self, silence: Duration) {
        while self.hears_within(silence) {
            let frame = self.next_frame(Instant::now() + PATIENCE);
            let frame = frame.expect("the client left while the script waited for its silence");
            if frame.kind == HEARTBEAT {
                self.heartbeat();
            }
        }
    }

    /// Closes the socket without a word.
    pub(crate) fn hang_up(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Resets the connection.
    pub(crate) fn reset(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = set_socket_linger(&*stream, Some(Duration::ZERO));
        }
    }

    fn named(&mut self, name: &str, prefix: &str) -> String {
        if !name.is_empty() {
            return name.to_owned();
        }
        self.names += 1;
        format!("{prefix}-{}", self.names)
    }

    fn assemble(&mut self, frame: Frame) -> Option<Method> {
        match frame.kind {
            METHOD => {
                let method = Method::read(frame.channel, &frame.payload);
                let Call::Publish(publish) = method.call else {
                    return Some(method);
                };
                let unfinished = Unfinished { publish: *publish, size: None };
                self.unfinished.insert(frame.channel, unfinished);
                None
            }
            HEADER | BODY => self.add_content(&frame),
            HEARTBEAT => None,
            other => panic!("the client sent a frame of type {other}"),
        }
    }

    fn add_content(&mut self, frame: &Frame) -> Option<Method> {
        let unfinished = self.unfinished.get_mut(&frame.channel);
        let unfinished = unfinished.expect("the client sent content without a publish");
        match frame.kind {
            HEADER => unfinished.size = Some(unfinished.publish.read_header(&frame.payload)),
            _ => unfinished.publish.body.extend(&frame.payload),
        }
        if unfinished.size != Some(unfinished.publish.body.len()) {
            return None;
        }
        let finished = self.unfinished.remove(&frame.channel)?;
        Some(Method { channel: frame.channel, call: Call::Publish(Box::new(finished.publish)) })
    }

    fn hears_within(&self, limit: Duration) -> bool {
        let stream = self.stream.as_deref().expect("the script has not hung up");
        let _ = stream.set_read_timeout(Some(limit));
        let silent = |error: std::io::Error| is_timeout(error.kind());
        !self.unread.is_empty() || !stream.peek(&mut [0]).is_err_and(silent)
    }

    fn next_frame(&mut self, deadline: Instant) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::take(&mut self.unread) {
                return Some(frame);
            }
            if !self.read_more(deadline, "a frame") {
                return None;
            }
        }
    }

    /// Says whether the peer is still there.
    fn read_more(&mut self, deadline: Instant, wanted: &str) -> bool {
        let Some(mut stream) = self.stream.as_deref() else {
            return false;
        };
        let mut buffer = [0; 16 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {wanted} came for {PATIENCE:?}");
            let _ = stream.set_read_timeout(Some(left));
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.unread.extend(&buffer[..count]);
                    return true;
                }
                Err(error) if is_timeout(error.kind()) => {}
                Err(_) => break,
            }
        }
        if is_stopped(&self.stop) {
            panic::resume_unwind(Box::new(TestIsOver));
        }
        false
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
