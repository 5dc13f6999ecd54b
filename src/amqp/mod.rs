//! The only code that knows amiquip, mio and TLS: connects, calls with a limit, closes with a reason.

pub(crate) mod call_timeout;
pub(crate) mod channel;
mod client_properties;
pub(crate) mod close_reason;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod consumer_tag;
mod encode;
pub(crate) mod ended_channels;
pub(crate) mod guard;
mod handshake;
pub(crate) mod heartbeat;
pub(crate) mod message;
mod outbox;
mod outgoing;
#[cfg(test)]
mod property;
mod publish_events;
pub(crate) mod reply_text;
mod socket;
mod subscription;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tls")]
mod tls_config;
#[cfg(feature = "tls")]
mod tls_refusal;
pub(crate) mod transport;
mod watch;
