//! Looks up a host name, and opens a socket, each within a limit.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;

use crate::amqp::close_reason::CloseReason;
use crate::amqp::handshake::Refused;

/// Looks a name up in a thread that may be left behind: the system's own limit may be minutes away,
/// and nothing can interrupt the lookup.
pub(super) fn look_up(
    name: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    limit: Duration,
) -> Result<Vec<SocketAddr>, Refused> {
    let (answer, answered) = bounded(1);
    let thread = thread::Builder::new().name("rw-lookup".into()).spawn(move || {
        let _ = answer.send(name());
    });
    thread.map_err(Refused::for_want_of_a_thread)?;
    let cause = match answered.recv_timeout(limit) {
        Ok(Ok(targets)) => return Ok(targets),
        Ok(Err(error)) => CloseReason::Lost(format!("the host name does not resolve: {error}")),
        Err(_) => CloseReason::TimedOut { doing: "looking up the host name", limit },
    };
    Err(cause.into())
}

/// Opens the socket. The client library would set neither TCP_NODELAY, without which a lone publish
/// waits 40 ms for its confirm, nor a timeout (amiquip 0.4.2 connection.rs:446).
pub(super) fn connect(target: SocketAddr, limit: Duration) -> Result<TcpStream, CloseReason> {
    let lost = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => CloseReason::TimedOut { doing: "connecting", limit },
        _ => CloseReason::Lost(error.to_string()),
    };
    // Zero is an error to the system.
    let at_least = limit.max(Duration::from_millis(1));
    let socket = TcpStream::connect_timeout(&target, at_least).map_err(lost)?;
    socket.set_nodelay(true).map_err(lost)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    use crate::util::deadline::UNLIMITED;

    #[test]
    fn small_frames_are_sent_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let socket = connect(address, UNLIMITED).expect("connected");
        assert!(socket.nodelay().expect("an option"));
    }

    #[test]
    fn a_lookup_that_hangs_is_left_behind() {
        let (_never, hangs) = bounded::<()>(0);
        let hanging = move || {
            let _ = hangs.recv();
            Ok(Vec::new())
        };
        let limit = Duration::from_millis(20);
        let doing = "looking up the host name";
        let Err(Refused::Transient(cause)) = look_up(hanging, limit) else {
            panic!("it is not left behind")
        };
        assert_eq!(cause, CloseReason::TimedOut { doing, limit });
    }
}
