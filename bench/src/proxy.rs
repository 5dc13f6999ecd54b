//! A broker that is some milliseconds away: passes bytes on, each after a delay.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use url::Url;

use rabbit_work_bench::Error;

/// Starts a proxy to the broker of this URL. Returns the URL of the proxy, which lives as long as
/// this process.
pub fn start(url: &str, delay: Duration) -> Result<String, Error> {
    let mut url = Url::parse(url)?;
    let host = url.host_str().ok_or("the URL has no host")?;
    let to = format!("{host}:{}", url.port().unwrap_or(5672));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    url.set_port(Some(listener.local_addr()?.port())).map_err(|()| "the URL takes no port")?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that the broker refuses sees that its connection ends.
            _ = join(client, &to, delay);
        }
    });
    Ok(url.into())
}

fn join(client: TcpStream, to: &str, delay: Duration) -> Result<(), Error> {
    let broker = TcpStream::connect(to)?;
    pass_on(client.try_clone()?, broker.try_clone()?, delay);
    pass_on(broker, client, delay);
    Ok(())
}

/// One thread reads and another writes, so that what is delayed does not delay what comes after.
fn pass_on(from: TcpStream, to: TcpStream, delay: Duration) {
    let (bytes, delayed) = channel();
    thread::spawn(move || read(from, &bytes, delay));
    thread::spawn(move || write(to, &delayed));
}

fn read(mut from: TcpStream, bytes: &Sender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut buffer = [0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if bytes.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
            return;
        }
    }
}

fn write(mut to: TcpStream, delayed: &Receiver<(Instant, Vec<u8>)>) {
    _ = to.set_nodelay(true);
    for (due, bytes) in delayed {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    _ = to.shutdown(Shutdown::Both);
}
