//! A live connection: opens channels on it, and closes or aborts it within a limit, for a reason.

use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amiquip::{AmqpValue, ConnectionBlockedNotification};
use crossbeam_channel::{Receiver, RecvTimeoutError, never};
use log::debug;

use crate::amqp::call_timeout::{CallGuard, Watchdog};
use crate::amqp::channel::Channel;
use crate::amqp::close_reason::CloseReason;
use crate::amqp::ended_channels::EndedChannels;
use crate::amqp::guard::LARGEST_FRAME;
use crate::amqp::handshake::{Established, Handshake, Refused};
use crate::amqp::heartbeat::Heartbeat;
use crate::amqp::outbox::{Outbox, Publishes};
use crate::amqp::transport::PeerState;
use crate::model::address_order::Failures;
use crate::model::broker::Limits;
use crate::util::deadline::deadline_after;

/// A live connection. Its threads (one of ours, two of amiquip's) end with it.
pub(crate) struct Connection {
    /// `None` once it is being closed. A lent connection shares it.
    inner: Arc<Mutex<Option<amiquip::Connection>>>,
    /// Disconnects when the client library's I/O thread ends, whatever the cause.
    notices: Receiver<ConnectionBlockedNotification>,
    guard: CallGuard,
    /// Ends with the connection; `None` if that is lent.
    watchdog: Option<Watchdog>,
    heartbeat: Heartbeat,
    peer_state: Arc<PeerState>,
    outbox: Arc<Outbox>,
    address: String,
    /// What RabbitMQ shows as its name.
    name: String,
    /// The IP address and the port.
    peer: String,
    failures: Failures,
    limits: Limits,
}

/// What the broker says about the whole connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The broker reads nothing more from connections that publish, for this reason
    /// (<https://www.rabbitmq.com/docs/connection-blocked>).
    Blocked(String),
    /// It reads again.
    Unblocked,
}

/// How long the client library's I/O thread may take to end after its socket was shut.
const IO_THREAD_END_TIMEOUT: Duration = Duration::from_secs(1);

impl Connection {
    /// Logs in over a connected socket. Waits for the broker, at most the handshake limit.
    pub(crate) fn over(
        socket: TcpStream,
        watchdog: Watchdog,
        handshake: &Handshake<'_>,
    ) -> Result<Connection, Refused> {
        let Handshake { broker, address, limits, .. } = *handshake;
        let peer = socket.peer_addr()?.to_string();
        watchdog.watch_socket(socket.try_clone()?);
        let established = handshake.run(socket, watchdog.call_guard())?;
        let Established { mut inner, heartbeat, peer_state, outbox } = established;
        let notices = inner.listen_for_connection_blocked().map_err(CloseReason::from)?;
        heartbeat.start();
        watchdog.watch_heartbeat(&heartbeat);
        debug!("connected to {address}");
        Ok(Connection {
            inner: Arc::new(Mutex::new(Some(inner))),
            notices,
            guard: watchdog.call_guard().clone(),
            watchdog: Some(watchdog),
            heartbeat,
            peer_state,
            outbox,
            address: address.to_string(),
            name: broker.connection_name(),
            peer,
            failures: broker.failures().clone(),
            limits,
        })
    }

    /// The same connection for another thread, to open channels on. Only the owner ends it, and only
    /// the owner gets its notices, because each notice reaches a single receiver.
    pub(crate) fn lend(&self) -> Connection {
        let mut lent = self.share();
        lent.guard = self.guard.lent();
        lent
    }

    /// The same connection for another thread of its owner, whose calls keep their limits.
    pub(crate) fn share(&self) -> Connection {
        Connection {
            inner: Arc::clone(&self.inner),
            notices: never(),
            guard: self.guard.clone(),
            watchdog: None,
            heartbeat: self.heartbeat.clone(),
            peer_state: Arc::clone(&self.peer_state),
            outbox: Arc::clone(&self.outbox),
            address: self.address.clone(),
            name: self.name.clone(),
            peer: self.peer.clone(),
            failures: self.failures.clone(),
            limits: self.limits,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<amiquip::Connection>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_lent(&self) -> bool {
        self.watchdog.is_none()
    }

    /// What has to be ended; `None` if the connection is lent or has ended.
    fn take(&self) -> Option<amiquip::Connection> {
        if self.is_lent() { None } else { self.lock().take() }
    }

    /// Opens a channel. Waits for the broker, at most the call limit, and for other threads that open
    /// one.
    pub(crate) fn open_channel(&self) -> Result<Channel, CloseReason> {
        let guard = self.guard.clone();
        let mut held = self.lock();
        let Some(inner) = held.as_mut() else {
            return Err(CloseReason::Lost("the connection is closed".into()));
        };
        let limit = self.limits.call;
        let opened =
            guard.with_idle_timeout(limit, "opening a channel", || inner.open_channel(None));
        let publishes = Publishes::new(&self.outbox, self.largest_frame());
        Ok(Channel::new(opened.map_err(CloseReason::from)?, guard, limit, publishes))
    }

    /// The broker's notices, as amiquip sends them: see
    /// [`inbox`](crate::amqp::subscription::Subscription::inbox). Disconnected once the connection is dead.
    pub(crate) fn notices(&self) -> &Receiver<impl Into<Notice> + use<>> {
        &self.notices
    }

    pub(crate) fn call_guard(&self) -> &CallGuard {
        &self.guard
    }

    pub(crate) fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    /// What RabbitMQ shows as its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How long a call may wait for the broker.
    pub(crate) fn call_limit(&self) -> Duration {
        self.limits.call
    }

    /// What its broker said; still readable after the connection has ended.
    pub(crate) fn peer_state(&self) -> Arc<PeerState> {
        Arc::clone(&self.peer_state)
    }

    /// The channels that the broker has ended.
    pub(crate) fn ended_channels(&self) -> &EndedChannels {
        &self.peer_state.ended_channels
    }

    /// The largest frame that we and the broker agreed on.
    pub(crate) fn largest_frame(&self) -> usize {
        let proposed = self.peer_state.frame.get().filter(|frame| **frame > 0);
        proposed.map_or(LARGEST_FRAME, |frame| LARGEST_FRAME.min(*frame)) as usize
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The broker's version, major and minor, if it states one.
    pub(crate) fn broker_version(&self) -> Option<(u32, u32)> {
        let held = self.lock();
        let properties = held.as_ref()?.server_properties();
        let AmqpValue::LongString(version) = properties.get("version")? else { return None };
        let mut parts = version.split('.').map_while(|part| part.parse().ok());
        Some((parts.next()?, parts.next()?))
    }

    /// Closes a live connection in order. Every channel must have been closed before: the client
    /// library discards without an error what is still queued on one (amiquip 0.4.2
    /// io_loop/mod.rs:768).
    /// Waits for the broker, at most the close limit. Only logs if that fails: everything is answered.
    pub(crate) fn close(self) {
        let Some(inner) = self.take() else { return };
        let guard = &self.guard;
        let closed =
            guard.with_timeout(self.limits.close, "closing the connection", || inner.close());
        self.shut_for_all();
        match closed {
            Ok(()) => drop(self.peer_state.closed_in_order.set(())),
            Err(error) => {
                let cause = guard.cause().unwrap_or_else(|| error.into());
                debug!("the connection was not closed cleanly: {cause}");
            }
        }
    }

    /// Ends a connection on which something failed: closes it after a channel error, and aborts it
    /// otherwise. Returns the cause as well as it is known.
    pub(crate) fn end(self, cause: Option<CloseReason>) -> CloseReason {
        match cause {
            Some(cause) if cause.is_channel_error() => {
                self.close();
                cause
            }
            cause => self.abort(cause),
        }
    }

    /// Ends a connection that is dead or cannot be trusted. Returns why it died, as far as `known` and
    /// the client library can say. Takes milliseconds, at most some seconds.
    ///
    /// It asks nothing of the I/O thread before that has ended: a request that meets the broker's
    /// close makes the thread panic, and the reason is lost (amiquip 0.4.2 io_loop/mod.rs:447).
    fn abort(self, known: Option<CloseReason>) -> CloseReason {
        let Some(inner) = self.take() else {
            return known.unwrap_or_else(|| CloseReason::Lost("the connection is closed".into()));
        };
        let guard = &self.guard;
        if !ends_within(&self.notices, Duration::from_millis(200)) {
            guard.abort();
            ends_within(&self.notices, IO_THREAD_END_TIMEOUT);
        }
        let close_reason_of_client =
            match guard
                .with_timeout(IO_THREAD_END_TIMEOUT, "ending the connection", || inner.close())
            {
                Ok(()) => CloseReason::Lost("the connection was closed".into()),
                Err(error) => error.into(),
            };
        self.shut_for_all();
        let known = known.filter(|cause| *cause != CloseReason::Disconnected);
        let closed = self.peer_state.closed.get().map(CloseReason::closed_with);
        let cause = guard.cause().or(closed).or(known).unwrap_or(close_reason_of_client);
        for address in [&self.address, &self.peer] {
            self.failures.note(address, cause.failure());
        }
        cause
    }

    /// Shuts the socket of a connection that has ended. A thread that still calls the handler holds a
    /// clone of it: only this notifies a broker that the connection has ended, which may keep its tasks
    /// until then.
    fn shut_for_all(&self) {
        self.guard.abort();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The client library's own drop waits for the broker without a limit, and may meet its
        // dying I/O thread; see `abort`.
        if let Some(inner) = self.take() {
            self.guard.abort();
            ends_within(&self.notices, IO_THREAD_END_TIMEOUT);
            drop(inner);
        }
    }
}

impl From<ConnectionBlockedNotification> for Notice {
    fn from(notice: ConnectionBlockedNotification) -> Notice {
        match notice {
            ConnectionBlockedNotification::Blocked(reason) => Notice::Blocked(reason),
            ConnectionBlockedNotification::Unblocked => Notice::Unblocked,
        }
    }
}

fn ends_within(notices: &Receiver<ConnectionBlockedNotification>, limit: Duration) -> bool {
    let deadline = deadline_after(limit);
    loop {
        match notices.recv_deadline(deadline) {
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}
