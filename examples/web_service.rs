//! A web service with a thread for each request. Each order becomes a task. All threads publish
//! through one producer, and `GET /health` says whether that is connected.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use rabbit_work::{
    Broker, Delivery, Producer, ProducerState, Queue, SharedProducer, Task, Worker, shutdown,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let queue = Queue::new("example.web_service");
    let mut producer = Producer::new(&broker, &queue);
    producer.connect()?; // reports a wrong password now, not to the first client
    let producer = producer.shared();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let service = listener.local_addr()?;
    thread::spawn(move || serve(&listener, &producer));
    for request in ["GET /health", "POST /orders/17", "POST /orders/18", "DELETE /orders/17"] {
        println!("{request}: {}", ask(service, request)?);
    }
    let (_trigger, shutdown) = shutdown();
    let summary = Worker::new(&broker, &queue).drain().run(|_: &Delivery| Ok(()), &shutdown)?;
    println!("{} tasks done", summary.done);
    Ok(())
}

fn serve(listener: &TcpListener, producer: &SharedProducer) {
    for client in listener.incoming().flatten() {
        let producer = producer.clone();
        thread::spawn(move || answer(&client, &producer));
    }
}

fn answer(mut client: &TcpStream, producer: &SharedProducer) -> io::Result<()> {
    let lines = BufReader::new(client).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|it| !it.is_empty()).collect();
    let request = head.first().map(String::as_str).unwrap_or_default();
    let status = match request.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/health", _] if producer.state() == ProducerState::Up => "200 OK",
        ["GET", "/health", _] => "503 Service Unavailable",
        ["POST", order, _] => match producer.publish(Task::new(order)) {
            Ok(_) => "202 Accepted",
            Err(_) => "503 Service Unavailable",
        },
        _ => "400 Bad Request",
    };
    write!(client, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn ask(service: SocketAddr, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(service)?;
    write!(stream, "{request} HTTP/1.1\r\nHost: {service}\r\n\r\n")?;
    let answer = io::read_to_string(stream)?;
    Ok(answer.lines().next().unwrap_or_default().to_string())
}
