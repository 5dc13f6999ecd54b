//! Logs in over a connected socket, and distinguishes a refusal that a person has to act on from a
//! failure that may pass.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use amiquip::{Auth, ConnectionOptions, ConnectionTuning};

use crate::amqp::call_timeout::CallGuard;
use crate::amqp::close_reason::{ACCESS_REFUSED, CloseReason, NOT_ALLOWED, NOT_FOUND};
use crate::amqp::guard::LARGEST_FRAME;
use crate::amqp::heartbeat::Heartbeat;
use crate::amqp::outbox::Outbox;
use crate::amqp::reply_text::is_connection_limit;
#[cfg(feature = "tls")]
use crate::amqp::tls_config::Connector;
use crate::amqp::transport::{PeerState, Stream};
use crate::model::broker::{Broker, Limits};
use crate::model::error::Error;
use crate::model::tls_cause::{TlsCause, TlsFailure};
use crate::model::url::{Address, Login, Transport};
use crate::util::deadline::UNLIMITED;

/// Why one address gave no connection.
pub(crate) enum Refused {
    /// The same address may take us later, or another one now.
    Transient(CloseReason),
    /// A person has to act.
    Lasting(Error),
}

impl Refused {
    pub(crate) fn for_want_of_a_thread(source: std::io::Error) -> Refused {
        Refused::Lasting(Error::NoThread { source })
    }
}

impl From<CloseReason> for Refused {
    fn from(cause: CloseReason) -> Refused {
        Refused::Transient(cause)
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Refused {
        CloseReason::Lost(error.to_string()).into()
    }
}

/// How many messages of the client library may wait for its I/O thread, for each channel. An
/// ack is one. With its default of 16, the two threads switch at every sixteenth.
const IO_THREAD_BOUND: usize = 1024;

/// How much later than ours the client library's own limit on the handshake ends: it takes its
/// own for a refused login.
const CLIENT_LIMIT_SLACK: Duration = Duration::from_secs(5);

pub(crate) struct Handshake<'a> {
    pub(crate) broker: &'a Broker,
    /// `None` if the address has no TLS.
    #[cfg(feature = "tls")]
    pub(crate) connector: Option<&'a Connector>,
    pub(crate) address: &'a Address,
    pub(crate) limits: Limits,
}

/// What a handshake leads to.
pub(crate) struct Established {
    pub(crate) inner: amiquip::Connection,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) peer_state: Arc<PeerState>,
    pub(crate) outbox: Arc<Outbox>,
}

impl Handshake<'_> {
    /// Waits for the broker, at most the handshake limit.
    pub(crate) fn run(&self, socket: TcpStream, guard: &CallGuard) -> Result<Established, Refused> {
        let mut stream_state = None;
        let limit = self.limits.handshake;
        let opened = guard.with_timeout(limit, "waiting for the handshake", || {
            let mut stream = self.stream(socket)?;
            stream.set_name(self.broker.connection_name());
            stream_state = Some((stream.peer_state(), stream.heartbeat(), stream.outbox()));
            self.open(stream)
        });
        match (opened, stream_state) {
            (Ok(inner), Some((peer_state, heartbeat, outbox))) => {
                Ok(Established { inner, heartbeat, peer_state, outbox })
            }
            (Err(Refused::Lasting(error)), _) => Err(Refused::Lasting(error)),
            (Err(Refused::Transient(cause)), stream_state) => {
                let peer_state =
                    stream_state.map(|(peer_state, ..)| peer_state).unwrap_or_default();
                // The client library takes a close that it does not expect for a protocol error.
                let closed = peer_state.closed.get().map(CloseReason::closed_with);
                Err(self.classify(closed.or(guard.cause()).unwrap_or(cause), &peer_state))
            }
            (Ok(_), None) => Err(CloseReason::Disconnected.into()),
        }
    }

    fn open(&self, stream: Stream) -> Result<amiquip::Connection, Refused> {
        let tuning = ConnectionTuning::default().mem_channel_bound(IO_THREAD_BOUND);
        let opened = amiquip::Connection::insecure_open_stream(stream, self.options(), tuning);
        opened.map_err(|error| match error {
            amiquip::Error::ForkFailed { source } => Refused::for_want_of_a_thread(source),
            error => Refused::Transient(error.into()),
        })
    }

    fn stream(&self, socket: TcpStream) -> Result<Stream, Refused> {
        #[cfg(feature = "tls")]
        if let (Transport::Tls, Some(connector)) = (self.address.transport, self.connector) {
            let host = self.address.tls.server_name.as_ref().unwrap_or(&self.address.host);
            let stream = Stream::tls(socket, connector, host, self.heartbeat());
            return stream.map_err(|failure| CloseReason::from(failure).into());
        }
        match self.address.transport {
            Transport::Plain => Ok(Stream::plain(socket, self.heartbeat())?),
            Transport::Tls => {
                let failure = TlsFailure::new(TlsCause::Other, "not in this build");
                Err(CloseReason::Tls(failure).into())
            }
        }
    }

    fn options(&self) -> ConnectionOptions<Auth> {
        let auth = match self.address.login {
            Login::Plain => Auth::Plain {
                username: self.address.user.clone(),
                password: self.address.password.clone(),
            },
            Login::External => Auth::External,
        };
        ConnectionOptions::default()
            .auth(auth)
            .virtual_host(self.address.vhost.clone())
            .heartbeat(self.heartbeat())
            .frame_max(LARGEST_FRAME)
            .connection_timeout(Some(self.limits.handshake.min(UNLIMITED) + CLIENT_LIMIT_SLACK))
            .information(Some("client library: amiquip".into()))
    }

    fn heartbeat(&self) -> u16 {
        self.limits.heartbeat.as_secs().try_into().unwrap_or(u16::MAX)
    }

    fn classify(&self, cause: CloseReason, peer_state: &PeerState) -> Refused {
        let address = &self.address;
        match cause {
            // After it has accepted a login, the broker first proposes its limits.
            CloseReason::ConnectionClosed { code: ACCESS_REFUSED, .. }
                if peer_state.frame.get().is_none() =>
            {
                let user = (address.login == Login::Plain).then(|| address.user.clone());
                Refused::Lasting(Error::LoginRefused { address: address.to_string(), user })
            }
            CloseReason::NoSuchLogin(text) => {
                let reason = format!("{address}: {text}");
                Refused::Lasting(Error::setting("auth_mechanism", reason))
            }
            // Of the virtual host, of the user or of the node: other connections may close.
            CloseReason::ConnectionClosed { ref text, .. } if is_connection_limit(text) => {
                Refused::Transient(cause)
            }
            CloseReason::ConnectionClosed {
                code: NOT_ALLOWED | ACCESS_REFUSED | NOT_FOUND,
                text,
            } => Refused::Lasting(Error::VhostRefused { vhost: address.vhost.clone(), text }),
            CloseReason::Tls(TlsFailure { cause, text }) => {
                Refused::Lasting(Error::Tls { cause, reason: format!("{address}: {text}") })
            }
            cause => Refused::Transient(cause),
        }
    }
}
