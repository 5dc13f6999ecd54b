//! The frames of the raw client: written beforehand, and read no further than it needs.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;

use url::Url;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;
const CHANNEL: u16 = 1;
/// Of a frame of 128 KiB, which is RabbitMQ's default.
const LARGEST_BODY: usize = (128 << 10) - 8;

/// The methods that the raw client knows.
pub const DELIVER: (u16, u16) = (60, 60);
pub const PUBLISHER_ACK: (u16, u16) = (60, 80);

/// What a task carries beside its body.
#[derive(Clone, Copy, Debug)]
pub enum Properties {
    /// That it is persistent.
    Persistent,
    /// As many bytes as a task of rabbit-work, which has an id and a time as well, and is mandatory.
    AsRabbitWork,
}

/// A connection with one channel.
#[derive(Debug)]
pub struct Wire {
    socket: TcpStream,
    read: Vec<u8>,
    begin: usize,
    end: usize,
}

/// A frame of the broker, without its envelope.
#[derive(Debug)]
pub enum Frame<'a> {
    Method((u16, u16), &'a [u8]),
    Body(&'a [u8]),
    Other,
}

impl Wire {
    pub fn open(url: &str) -> std::result::Result<Wire, rabbit_work_bench::Error> {
        let url = Url::parse(url)?;
        let host = url.host_str().ok_or("the URL has no host")?;
        let socket = TcpStream::connect((host, url.port().unwrap_or(5672)))?;
        socket.set_nodelay(true)?;
        let mut wire = Wire { socket, read: vec![0; 1 << 18], begin: 0, end: 0 };
        wire.log_in(&url)?;
        Ok(wire)
    }

    fn log_in(&mut self, url: &Url) -> Result<()> {
        let password = url.password().unwrap_or("guest");
        let user = if url.username().is_empty() { "guest" } else { url.username() };
        let answer = format!("\0{user}\0{password}");
        let vhost = match url.path().trim_start_matches('/') {
            "" => "/".to_string(),
            path => path.replace("%2f", "/").replace("%2F", "/"),
        };
        self.write(b"AMQP\0\0\x09\x01")?;
        self.await_method((10, 10))?;
        let start_ok =
            [&long(0)[..], &short_text("PLAIN"), &long_text(&answer), &short_text("en_US")];
        self.write(&method(0, (10, 11), &start_ok.concat()))?;
        let tune = self.await_method((10, 30))?;
        // Its limits of channels and of a frame, and no heartbeats.
        self.write(&method(0, (10, 31), &[&tune[..6], &[0, 0]].concat()))?;
        self.write(&method(0, (10, 40), &[&short_text(&vhost)[..], &[0, 0]].concat()))?;
        self.await_method((10, 41))?;
        self.call((20, 10), &[0], (20, 11))
    }

    pub fn declare(&mut self, queue: &str) -> Result<()> {
        const DURABLE: u8 = 0b10;
        let arguments = [&[0, 0][..], &short_text(queue), &[DURABLE], &long(0)].concat();
        self.call((50, 10), &arguments, (50, 11))
    }

    pub fn delete(&mut self, queue: &str) -> Result<()> {
        self.call((50, 40), &[&[0, 0][..], &short_text(queue), &[0]].concat(), (50, 41))
    }

    pub fn confirm(&mut self) -> Result<()> {
        self.call((85, 10), &[0], (85, 11))
    }

    pub fn consume(&mut self, queue: &str, prefetch: u16) -> Result<()> {
        let prefetch = [&long(0)[..], &prefetch.to_be_bytes(), &[0]].concat();
        self.call((60, 10), &prefetch, (60, 11))?;
        let arguments = [&[0, 0][..], &short_text(queue), &short_text(TAG), &[0], &long(0)];
        self.call((60, 20), &arguments.concat(), (60, 21))
    }

    /// Closes the channel: after that, the broker has taken each ack.
    pub fn close(&mut self) -> Result<()> {
        let arguments = [&200u16.to_be_bytes()[..], &short_text(""), &[0, 0, 0, 0]].concat();
        self.call((20, 40), &arguments, (20, 41))?;
        self.write(&method(0, (10, 50), &arguments))?;
        self.await_method((10, 51)).map(drop)
    }

    fn call(&mut self, name: (u16, u16), arguments: &[u8], answer: (u16, u16)) -> Result<()> {
        self.write(&method(CHANNEL, name, arguments))?;
        self.await_method(answer).map(drop)
    }

    /// The arguments of the next such method; passes over anything else.
    fn await_method(&mut self, awaited: (u16, u16)) -> Result<Vec<u8>> {
        loop {
            while let Some(frame) = self.next_frame() {
                match frame {
                    Frame::Method(name, arguments) if name == awaited => {
                        return Ok(arguments.to_vec());
                    }
                    Frame::Method((10, 50) | (20, 40), arguments) => {
                        let text = String::from_utf8_lossy(arguments).into_owned();
                        return Err(Error::other(format!("the broker closed: {text}")));
                    }
                    _ => {}
                }
            }
            self.receive()?;
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.write_all(bytes)
    }

    /// A handle to write beside a thread that reads.
    pub fn writer(&self) -> Result<TcpStream> {
        self.socket.try_clone()
    }

    /// Reads what there is, and waits until there is something.
    pub fn receive(&mut self) -> Result<()> {
        self.read.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        if self.end == self.read.len() {
            self.read.resize(2 * self.read.len(), 0);
        }
        match self.socket.read(&mut self.read[self.end..])? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            length => {
                self.end += length;
                Ok(())
            }
        }
    }

    /// The next frame of what was read.
    pub fn next_frame(&mut self) -> Option<Frame<'_>> {
        let read = &self.read[self.begin..self.end];
        let (head, rest) = read.split_first_chunk::<7>()?;
        let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        if rest.len() <= length {
            return None;
        }
        self.begin += 7 + length + 1;
        let payload = &rest[..length];
        Some(match (head[0], payload) {
            (METHOD, [a, b, c, d, arguments @ ..]) => Frame::Method(
                (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
                arguments,
            ),
            (BODY, _) => Frame::Body(payload),
            _ => Frame::Other,
        })
    }
}

/// The consumer tag.
const TAG: &str = "c";

/// The delivery tag of a delivery to our consumer.
pub fn delivery_tag(deliver: &[u8]) -> u64 {
    tag_at(deliver, 1 + TAG.len())
}

/// The delivery tag of a confirm, and whether it includes all before.
pub fn confirm_tag(ack: &[u8]) -> (u64, bool) {
    (tag_at(ack, 0), ack.get(8).is_some_and(|it| *it != 0))
}

fn tag_at(arguments: &[u8], at: usize) -> u64 {
    arguments.get(at..).and_then(|it| it.first_chunk()).map_or(0, |tag| u64::from_be_bytes(*tag))
}

/// An ack of one delivery, or of all up to it.
pub fn ack(tag: u64, multiple: u8) -> Vec<u8> {
    method(CHANNEL, (60, 80), &[&tag.to_be_bytes()[..], &[multiple]].concat())
}

/// A publish to a queue with all its frames.
pub fn publish(queue: &str, body: &[u8], properties: Properties) -> Vec<u8> {
    const DELIVERY_MODE: u16 = 1 << 12;
    const MESSAGE_ID: u16 = 1 << 7;
    const TIMESTAMP: u16 = 1 << 6;
    let (mandatory, properties) = match properties {
        Properties::Persistent => (0, [&DELIVERY_MODE.to_be_bytes()[..], &[2]].concat()),
        Properties::AsRabbitWork => {
            let flags = (DELIVERY_MODE | MESSAGE_ID | TIMESTAMP).to_be_bytes();
            let id = short_text("01234567-89ab-cdef-0123-456789abcdef");
            (1, [&flags[..], &[2], &id, &1_800_000_000u64.to_be_bytes()].concat())
        }
    };
    let arguments = [&[0, 0][..], &short_text(""), &short_text(queue), &[mandatory]].concat();
    let header = [&[0, 60, 0, 0][..], &(body.len() as u64).to_be_bytes(), &properties].concat();
    let body = body.chunks(LARGEST_BODY).flat_map(|it| frame(BODY, CHANNEL, it)).collect();
    [method(CHANNEL, (60, 40), &arguments), frame(HEADER, CHANNEL, &header), body].concat()
}

fn method(channel: u16, (class, method): (u16, u16), arguments: &[u8]) -> Vec<u8> {
    let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
    frame(METHOD, channel, &payload)
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let length = long(payload.len() as u32);
    [&[kind][..], &channel.to_be_bytes(), &length, payload, &[FRAME_END]].concat()
}

fn long(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

fn short_text(text: &str) -> Vec<u8> {
    [&[text.len() as u8][..], text.as_bytes()].concat()
}

fn long_text(text: &str) -> Vec<u8> {
    [&long(text.len() as u32)[..], text.as_bytes()].concat()
}
