//! An embedded worker with a store and three kinds of jobs, one of which leads to another. `testing`
//! has its tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rabbit_work::{
    Broker, Delivery, Error, OrFail, Producer, Queue, Router, Task, Worker, shutdown,
};

/// The widths of the photos by name: a table of SQLite in a real program.
#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<BTreeMap<String, u32>>>);

impl Store {
    pub(crate) fn photos(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The jobs. Each may run twice, and does no harm then.
pub(crate) fn jobs(store: &Store, queue: &Queue) -> Router {
    let (queue, importing) = (queue.clone(), store.clone());
    let (resizing, deleting) = (store.clone(), store.clone());
    let import = move |delivery: &Delivery, photo: String| {
        importing.photos().insert(photo.clone(), 4000);
        // Published and confirmed before this job is acked.
        delivery.follow_up(&queue, Task::json(&(photo, 640))?.with_type("resize"))?;
        Ok(())
    };
    let resize = move |_: &Delivery, (photo, to): (String, u32)| {
        let mut photos = resizing.photos();
        *photos.get_mut(&photo).ok_or("no such photo").or_reject()? = to;
        Ok(())
    };
    let delete = move |_: &Delivery, photo: String| {
        deleting.photos().remove(&photo);
        Ok(())
    };
    Router::new().on("import", import).on("resize", resize).on("delete", delete)
}

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL");
    let broker: Broker = url.as_deref().unwrap_or("amqp://guest:guest@localhost:5672").parse()?;
    let (queue, store) = (Queue::new("example.jobs"), Store::default());

    let mut producer = Producer::new(&broker, &queue);
    for (kind, photo) in [("import", "a.jpg"), ("import", "b.jpg"), ("delete", "c.jpg")] {
        producer.publish(Task::json(photo)?.with_type(kind))?;
    }
    let (_trigger, shutdown) = shutdown();
    let worker = Worker::new(&broker, &queue).threads(2).drain();
    println!("{} jobs done", worker.run(jobs(&store, &queue), &shutdown)?.done);
    println!("{:?}", store.photos());
    Ok(())
}
