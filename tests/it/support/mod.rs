//! What the tests share: faults, brokers, commands and the ledger.

// Each test uses a few of these helpers; a vocabulary is kept whole even while
// some of its words wait for the test that needs them.
#![allow(dead_code)]

pub(crate) mod acceptor;
pub(crate) mod broker;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod command;
#[cfg(all(feature = "tls", target_os = "linux"))]
pub(crate) mod front;
pub(crate) mod ledger;
pub(crate) mod proxy;
pub(crate) mod scripted;
pub(crate) mod terminal;
pub(crate) mod vhost;
pub(crate) mod wire;
pub(crate) mod working;
