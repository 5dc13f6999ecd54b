//! An independent client: plain amiquip, which fills queues and shows what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, AmqpValue, Auth, Channel, Confirm, Connection, ConnectionOptions,
    ConnectionTuning, Delivery, FieldTable, Publish, QueueDeclareOptions, QueueDeleteOptions,
};
use crossbeam_channel::Receiver;

use super::broker::poll;
use super::wire::{Arguments, Frame, METHOD, Properties, content};

/// A connection with one channel, in confirm mode. A failure of any call fails the test.
pub(crate) struct Client {
    channel: Channel,
    confirms: Receiver<Confirm>,
    published: u64,
    /// Behind the channel, which has to be dropped first.
    connection: Connection,
}

/// A message that was taken out of a queue.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) body: Vec<u8>,
    pub(crate) message_id: Option<String>,
    pub(crate) headers: BTreeMap<String, AmqpValue>,
    pub(crate) redelivered: bool,
    pub(crate) properties: AmqpProperties,
}

/// A queue's name that no other test, and no other run of this one, uses.
pub(crate) fn unique_queue(test: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let seed = fastrand::u32(..);
    format!("it.{test}.{}.{number}.{seed:08x}", process::id())
}

/// The properties of a persistent message with this id.
pub(crate) fn persistent(id: &str) -> AmqpProperties {
    AmqpProperties::default().with_delivery_mode(2).with_message_id(id.to_owned())
}

/// Publishes a message whose properties amiquip could not write, through the default exchange and
/// over a connection of its own; it is in the queue on return.
pub(crate) fn publish_raw(url: &str, queue: &str, body: &[u8], properties: &Properties) {
    let url = url::Url::parse(url).expect("the broker's URL is one");
    let Auth::Plain { username, password } = login(&url) else { unreachable!("all logins are") };
    let none = Arguments::default;
    let login = none()
        .table(&Vec::new())
        .short("PLAIN")
        .long(format!("\0{username}\0{password}"))
        .short("en_US");
    let methods = [
        Frame::method(0, 10, 11, login),
        Frame::method(0, 10, 31, none().u16(1).u32(FRAME_MAX).u16(0)),
        Frame::method(0, 10, 40, none().short("/").short("").u8(0)),
        Frame::method(1, 20, 10, none().short("")),
        Frame::method(1, 85, 10, none().u8(0)),
    ];
    let publish = Frame::method(1, 60, 40, none().u16(0).short("").short(queue).u8(0));
    let mut stream = open_stream(&url);
    stream.set_read_timeout(Some(PATIENCE)).expect("a TCP stream");
    // The broker takes them one after the other, whether its answers were waited for or not.
    let sent = [
        b"AMQP\0\0\x09\x01".to_vec(),
        methods.map(|method| method.to_bytes()).concat(),
        content(&publish, &properties.to_bytes(), body, FRAME_MAX),
    ];
    stream.write_all(&sent.concat()).expect("the broker takes a message");
    let (mut came, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut buffer).expect("the broker answers");
        assert!(length > 0, "the broker refused a message");
        came.extend_from_slice(&buffer[..length]);
        while let Some(Frame { kind, payload, .. }) = Frame::take(&mut came) {
            if kind == METHOD && payload.starts_with(&[0, 60, 0, 80]) {
                return;
            }
        }
    }
}

impl Client {
    /// Connects to an `amqp` URL, in its virtual host.
    pub(crate) fn connect(url: &str) -> Client {
        let url = url::Url::parse(url).expect("the broker's URL is one");
        let stream = open_stream(&url);
        let vhost = url.path().strip_prefix('/').filter(|it| !it.is_empty()).unwrap_or("/");
        let options = ConnectionOptions::default()
            .auth(login(&url))
            .virtual_host(vhost)
            .heartbeat(0)
            .connection_timeout(Some(PATIENCE));
        let stream = mio::net::TcpStream::from_stream(stream).expect("a stream for amiquip");
        let tuning = ConnectionTuning::default();
        let mut connection = Connection::insecure_open_stream(stream, options, tuning)
            .unwrap_or_else(|error| panic!("the test's client cannot connect: {error}"));
        let channel = connection.open_channel(None).expect("a channel");
        let confirms = channel.listen_for_publisher_confirms().expect("a place for the confirms");
        channel.enable_publisher_confirms().expect("confirm mode");
        Client { channel, confirms, published: 0, connection }
    }

    /// The broker's version, major and minor: what its defaults are depends on it.
    pub(crate) fn broker_version(&self) -> (u32, u32) {
        let version = self.connection.server_properties().get("version");
        let Some(AmqpValue::LongString(version)) = version else {
            panic!("the broker does not tell its version: {version:?}");
        };
        let mut parts = version.split('.').map(|part| part.parse().expect("a number"));
        (parts.next().expect("a major"), parts.next().expect("a minor"))
    }

    /// Declares a durable queue without arguments.
    pub(crate) fn declare(&self, queue: &str) {
        self.declare_with(queue, FieldTable::new());
    }

    /// Declares a durable classic queue, also where the default is another type.
    pub(crate) fn declare_classic(&self, queue: &str) {
        self.declare_with(queue, typed("classic"));
    }

    /// Declares a queue that refuses what it has no room for. It is classic: a quorum queue takes
    /// some more before it refuses.
    pub(crate) fn declare_bounded(&self, queue: &str, room: i32) {
        let mut arguments = typed("classic");
        arguments.insert("x-max-length".into(), AmqpValue::LongInt(room));
        arguments.insert("x-overflow".into(), AmqpValue::LongString("reject-publish".into()));
        self.declare_with(queue, arguments);
    }

    /// Declares a durable queue, and has the broker write down all that it needs to find it again
    /// after a kill: that comes with the next queue at the latest.
    pub(crate) fn declare_with(&self, queue: &str, arguments: FieldTable) {
        let options =
            QueueDeclareOptions { durable: true, arguments, ..QueueDeclareOptions::default() };
        let declared = self.channel.queue_declare(queue, options);
        declared.expect("the test's client declares a queue");
        let next = QueueDeclareOptions { durable: true, exclusive: true, ..Default::default() };
        let next = self.channel.queue_declare("", next).expect("a queue without a name");
        self.channel.queue_delete(next.name(), QueueDeleteOptions::default()).expect("it goes");
    }

    /// Removes all that is ready; says how much that was.
    pub(crate) fn purge(&self, queue: &str) -> u32 {
        let purged = self.channel.queue_purge(queue);
        purged.expect("the test's client purges a queue")
    }

    /// Deletes a queue, which need not be there.
    pub(crate) fn delete(&self, queue: &str) {
        let deleted = self.channel.queue_delete(queue, QueueDeleteOptions::default());
        deleted.expect("the test's client deletes a queue");
    }

    /// Publishes one message through the default exchange; it is in the queue on return.
    pub(crate) fn publish(&mut self, queue: &str, body: &[u8], properties: AmqpProperties) {
        self.publish_all(queue, [(body, properties)]);
    }

    /// Publishes many; all are in the queue on return.
    pub(crate) fn publish_all<'a>(
        &mut self,
        queue: &str,
        messages: impl IntoIterator<Item = (&'a [u8], AmqpProperties)>,
    ) {
        let first = self.published + 1;
        for (body, properties) in messages {
            let publish = Publish::with_properties(body, queue, properties);
            let published = self.channel.basic_publish("", publish);
            published.expect("the test's client publishes");
            self.published += 1;
        }
        self.wait_until_confirmed(first);
    }

    /// Takes out all that is ready, in order.
    pub(crate) fn get_all(&self, queue: &str) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let got = self.channel.basic_get(queue, false);
            let Some(got) = got.expect("the test's client gets a message") else {
                return messages;
            };
            messages.push(Message::new(&got.delivery));
            let acked = got.ack(&self.channel);
            acked.expect("the test's client acks a message");
        }
    }

    /// Takes so many, and ends with them in hand: they go back as delivered before.
    pub(crate) fn take_and_leave(self, queue: &str, count: u32) {
        for _ in 0..count {
            let got = self.channel.basic_get(queue, false);
            assert!(got.expect("the test's client gets a message").is_some(), "one is there");
        }
    }

    /// How many messages are ready.
    pub(crate) fn count(&self, queue: &str) -> u32 {
        let queue = self.channel.queue_declare_passive(queue);
        let queue = queue.expect("the queue is there");
        queue.declared_message_count().expect("a declare counts")
    }

    /// Whether there is such a queue.
    pub(crate) fn has(&mut self, queue: &str) -> bool {
        // Of its own, because the broker closes the channel when there is none.
        let channel = self.connection.open_channel(None).expect("a channel");
        match channel.queue_declare_passive(queue) {
            Ok(_) => true,
            Err(amiquip::Error::ServerClosedChannel { code: 404, .. }) => false,
            Err(error) => panic!("the test's client looks at a queue: {error}"),
        }
    }

    /// How many consumers the queue has.
    pub(crate) fn consumers(&self, queue: &str) -> u32 {
        let queue = self.channel.queue_declare_passive(queue);
        let queue = queue.expect("the queue is there");
        queue.declared_consumer_count().expect("a declare counts")
    }

    /// Waits until so many messages are ready.
    pub(crate) fn wait_for_count(&self, queue: &str, count: u32, within: Duration) {
        let what = format!("{count} ready in {queue}");
        poll(&what, within, || (self.count(queue) == count).then_some(()));
    }

    /// Waits until the queue has so many consumers.
    pub(crate) fn wait_for_consumers(&self, queue: &str, count: u32, within: Duration) {
        let what = format!("{count} consumers of {queue}");
        poll(&what, within, || (self.consumers(queue) == count).then_some(()));
    }

    /// Declares a queue that no other connection may use.
    pub(crate) fn declare_exclusive(&self, queue: &str) {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let declared = self.channel.queue_declare(queue, options);
        declared.expect("the test's client declares a queue");
    }

    /// Publishes one persistent message with this id, whose body is the id.
    pub(crate) fn publish_id(&mut self, queue: &str, id: &str) {
        self.publish(queue, id.as_bytes(), persistent(id));
    }

    /// Publishes one persistent message for each body; each body is the id, too.
    pub(crate) fn publish_ids<'a>(&mut self, queue: &str, ids: impl IntoIterator<Item = &'a str>) {
        let messages = ids.into_iter().map(|id| (id.as_bytes(), persistent(id)));
        self.publish_all(queue, messages);
    }

    /// Whether every tag from the first on was acked; tags may come in any order.
    fn wait_until_confirmed(&self, first: u64) {
        let deadline = Instant::now() + PATIENCE;
        let mut open: BTreeSet<u64> = (first..=self.published).collect();
        while !open.is_empty() {
            let confirm = self.confirms.recv_deadline(deadline);
            match confirm.expect("the broker confirms what the test's client published") {
                Confirm::Ack(ack) if ack.multiple => open.retain(|tag| *tag > ack.delivery_tag),
                Confirm::Ack(ack) => drop(open.remove(&ack.delivery_tag)),
                Confirm::Nack(nack) => panic!("the broker refused publish {nack:?}"),
            }
        }
    }
}

impl Message {
    fn new(delivery: &Delivery) -> Message {
        let properties = delivery.properties.clone();
        let headers = properties.headers().clone().unwrap_or_default();
        Message {
            body: delivery.body.clone(),
            message_id: properties.message_id().clone(),
            headers: headers.into_iter().collect(),
            redelivered: delivery.redelivered,
            properties,
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The arguments of a queue of this type.
pub(crate) fn typed(kind: &str) -> FieldTable {
    let mut arguments = FieldTable::new();
    arguments.insert("x-queue-type".into(), AmqpValue::LongString(kind.into()));
    arguments
}

const PATIENCE: Duration = Duration::from_secs(10);

/// What RabbitMQ proposes.
const FRAME_MAX: u32 = 131_072;

fn login(url: &url::Url) -> Auth {
    match (url.username(), url.password()) {
        ("", _) => Auth::default(),
        (username, password) => Auth::Plain {
            username: username.to_owned(),
            password: password.unwrap_or_default().to_owned(),
        },
    }
}

/// Without Nagle's algorithm, which amiquip leaves on and which costs 40 ms a confirm.
fn open_stream(url: &url::Url) -> TcpStream {
    let host = url.host_str().unwrap_or("localhost");
    let port = url.port().unwrap_or(5672);
    let mut addresses = (host, port).to_socket_addrs().expect("an address");
    let stream = addresses
        .find_map(|address| TcpStream::connect_timeout(&address, PATIENCE).ok())
        .unwrap_or_else(|| panic!("nobody listens at {host}:{port}"));
    stream.set_nodelay(true).expect("a TCP stream");
    stream
}
