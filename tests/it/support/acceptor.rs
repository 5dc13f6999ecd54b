//! The acceptor: a listener on 127.0.0.1 whose accept loop runs in a thread and can be stopped.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Hands every connection to a function; closes the listener when dropped.
pub(crate) struct Acceptor {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Listens on `port` of 127.0.0.1 (0: a free one).
    pub(crate) fn start(port: u16, accepted: impl FnMut(TcpStream) + Send + 'static) -> Acceptor {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .unwrap_or_else(|error| panic!("cannot listen on 127.0.0.1:{port}: {error}"));
        let address = listener.local_addr().expect("a listener has an address");
        let stopped = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stopped = Arc::clone(&stopped);
            move || accept_until(&stopped, &listener, accepted)
        });
        Acceptor { address, stopped, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // A blocking accept has no other wake-up that works on every Unix.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept_until(stopped: &AtomicBool, listener: &TcpListener, mut accepted: impl FnMut(TcpStream)) {
    loop {
        let connection = listener.accept();
        if stopped.load(Ordering::SeqCst) {
            return;
        }
        match connection {
            Ok((stream, _)) => accepted(stream),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => panic!("cannot accept on {:?}: {error}", listener.local_addr()),
        }
    }
}
