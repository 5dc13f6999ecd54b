//! The broker's part of the handshake, whole and in steps.

use std::panic;
use std::time::Instant;

use super::{Client, PATIENCE, Session, TestIsOver, Tuning};
use crate::support::wire::{Arguments, Call, Field, Table};

impl Session {
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

    pub(super) fn tune(&mut self, tuning: Tuning) -> Client {
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

    /// Ends the script of a client that leaves without a word: a program that ends may just have begun
    /// to connect again.
    pub(crate) fn expect_protocol_header(&mut self) {
        if !self.read_protocol_header() {
            panic::resume_unwind(Box::new(TestIsOver));
        }
    }

    /// Says whether the peer is still there.
    pub(super) fn read_protocol_header(&mut self) -> bool {
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
}
