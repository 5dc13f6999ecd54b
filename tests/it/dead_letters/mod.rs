//! Dead letters: how `queuectl dead` lists, selects, replays and purges them.

mod listing;
mod replay;
mod selection;

use std::time::Duration;

use amiquip::{AmqpValue, FieldTable};
use rabbit_work::{Broker, Delivery, Failure, Producer, Queue, RetryPolicy, Task, Worker};
use serde_json::Value;

use crate::support::broker::shared_broker;
use crate::support::client::{persistent, unique_queue};
use crate::support::command::{Command, Output};
use crate::support::working::Working;

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);

pub(crate) fn queuectl(queue: &str, arguments: &[&str]) -> Output {
    let to = ["--url", shared_broker().url(), "--queue", queue];
    Command::queuectl(&[&to, arguments].concat()).run(LONG)
}

pub(crate) fn json(output: &Output) -> Value {
    output.assert_code(0);
    serde_json::from_str(&output.stdout()).expect("JSON")
}

pub(crate) fn broker() -> Broker {
    shared_broker().url().parse().expect("a URL")
}

/// Lets tasks with these ids die, each with its id as its reason.
pub(crate) fn let_die(queue: &str, ids: &[&str]) {
    let mut producer = Producer::new(&broker(), &Queue::new(queue));
    for id in ids {
        producer.publish(Task::new(format!("body of {id}")).with_id(*id)).expect("confirmed");
    }
    die(queue);
}

fn die(queue: &str) {
    let policy = RetryPolicy::new().max_attempts(1);
    let worker = Worker::new(&broker(), &Queue::new(queue)).threads(1).retry(policy).drain();
    let handler = |delivery: &Delivery| -> Result<(), Failure> {
        Err(Failure::retry(format!("reason of {}", delivery.task().id().unwrap_or_default())))
    };
    Working::start(&worker, handler).wait(SOON).expect("it ends well");
}

fn ids(listed: &Value) -> Vec<&str> {
    let letters = listed.as_array().expect("an array").iter();
    letters.map(|letter| letter["id"].as_str().expect("an id")).collect()
}

/// Dead letters, each with its id, reason, and how long ago it died. A look leaves them in this
/// order, which a quorum queue would change.
fn died(test: &str, letters: &[(&str, &str, u64)]) -> String {
    let queue = unique_queue(test);
    let mut client = shared_broker().client();
    client.declare(&queue);
    client.declare_classic(&format!("{queue}.dead"));
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    for (id, reason, ago) in letters {
        let mut headers = FieldTable::new();
        let text = AmqpValue::LongString((*reason).into());
        headers.insert("x-rabbit-work-reason".into(), text);
        headers.insert("x-rabbit-work-last-failure".into(), AmqpValue::Timestamp(now - ago));
        client.publish(&format!("{queue}.dead"), b"x", persistent(id).with_headers(headers));
    }
    queue
}
