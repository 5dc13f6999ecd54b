//! The one integration test crate: the library and its commands against brokers, real and scripted.

mod addresses;
mod child;
mod cluster;
mod connecting;
mod dead;
mod faults;
#[cfg(all(feature = "tls", target_os = "linux"))]
mod guarantees;
mod handover;
mod headers;
mod heartbeats;
mod letters;
mod library;
mod login;
mod node;
mod nonsense;
mod producer;
mod queue_type;
mod refusals;
mod retry;
mod shell_test;
mod soak;
mod support;
mod support_test;
mod threads;
#[cfg(all(feature = "tls", target_os = "linux"))]
mod tls;
mod worker;
