//! The one integration test crate: the library and its commands against brokers, real and scripted.

mod addresses;
mod child;
mod cluster;
mod command;
mod connecting;
mod dead;
mod faults;
#[cfg(all(feature = "tls", target_os = "linux"))]
mod guarantees;
mod headers;
mod heartbeats;
mod hostile_broker;
mod letters;
mod library;
mod producer;
mod queue_type;
mod real_broker;
mod refusals;
mod republish;
mod retry;
mod soak;
mod support;
mod support_test;
mod threads;
#[cfg(all(feature = "tls", target_os = "linux"))]
mod tls;
mod worker;
