//! A worker of the library in a thread of the test, waited for with a limit.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, unbounded};
use rabbit_work::{Delivery, Error, Event, EventKind, Handler, Summary, Trigger, Worker, shutdown};

/// A running worker. Dropping it asks it to stop.
pub(crate) struct Working {
    trigger: Trigger,
    events: Receiver<Event>,
    ended: Receiver<Result<Summary, Error>>,
}

/// A handler that waits in each task until the test lets it go on.
pub(crate) struct Gate {
    pub(crate) entered: Receiver<String>,
    /// Each message lets one task go on; dropping it lets all go on.
    pub(crate) open: crossbeam_channel::Sender<()>,
}

impl Working {
    pub(crate) fn start(worker: &Worker, handler: impl Handler + 'static) -> Working {
        let (tell, events) = unbounded();
        let worker = worker.clone().observer(move |event| drop(tell.send(event.clone())));
        let (trigger, shutdown) = shutdown();
        let (end, ended) = bounded(1);
        thread::spawn(move || end.send(worker.run(handler, &shutdown)));
        Working { trigger, events, ended }
    }

    pub(crate) fn trigger(&self) -> &Trigger {
        &self.trigger
    }

    /// Waits for the next event of this kind; gives the task's id.
    pub(crate) fn wait_for(&self, kind: EventKind, within: Duration) -> String {
        let deadline = std::time::Instant::now() + within;
        loop {
            let event = self.events.recv_deadline(deadline);
            let event = event.unwrap_or_else(|_| panic!("no event {kind} within {within:?}"));
            if event.kind == kind {
                return event.task;
            }
        }
    }

    /// How many events of this kind came that were not waited for.
    pub(crate) fn count(&self, kind: EventKind) -> usize {
        self.events.try_iter().filter(|event| event.kind == kind).count()
    }

    /// Waits for its end.
    pub(crate) fn wait(self, within: Duration) -> Result<Summary, Error> {
        let ended = self.ended.recv_timeout(within);
        ended.unwrap_or_else(|_| panic!("the worker has not ended after {within:?}"))
    }

    /// Asks it to stop, and waits for its end.
    pub(crate) fn stop(self, within: Duration) -> Summary {
        self.trigger.stop();
        self.wait(within).expect("a stopped worker ends well")
    }
}

/// A gate, and the handler that stands at it.
pub(crate) fn gate() -> (Gate, impl Handler + 'static) {
    let (tell, entered) = unbounded();
    let (open, opened) = unbounded();
    let handler = move |delivery: &Delivery| {
        let _ = tell.send(String::from_utf8_lossy(delivery.body()).into_owned());
        let _ = opened.recv();
        Ok(())
    };
    (Gate { entered, open }, handler)
}

/// The bodies of the tasks as they come, and the handler that passes them on.
pub(crate) fn bodies() -> (Receiver<Vec<u8>>, impl Handler + 'static) {
    let (tell, bodies) = unbounded();
    let handler = move |delivery: &Delivery| {
        let _ = tell.send(delivery.body().to_vec());
        Ok(())
    };
    (bodies, handler)
}
