//! The one integration test crate: the library and its commands against brokers, real and scripted.

mod acks;
mod addresses;
mod batch;
mod child;
mod cluster;
mod command;
mod connecting;
mod connection_names;
mod dead_letters;
mod defer;
mod faults;
mod fleet;
mod follow_ups;
#[cfg(all(feature = "tls", target_os = "linux"))]
mod guarantees;
mod heartbeats;
mod hostile_broker;
mod late_tasks;
mod one_connection;
mod one_program;
mod own_thread;
#[cfg(all(feature = "tls", target_os = "linux"))]
mod own_tls;
mod producer;
mod producer_api;
mod producer_faults;
mod queue_type;
mod queuectl;
mod queuectl_delete;
mod real_broker;
mod records;
mod refusals;
mod republish;
mod retry;
mod round_trips;
mod run_limits;
mod shared_producer;
mod signals;
mod soak;
mod support;
mod support_test;
mod testing;
mod threads;
#[cfg(all(feature = "tls", target_os = "linux"))]
mod tls;
#[cfg(all(feature = "tls", target_os = "linux"))]
mod tls_urls;
mod used_as_it_is;
mod variables;
mod worker;
mod worker_api;
