//! The tests of the jobs of `jobs.rs`, and of a function that publishes, without a broker. A program has
//! them in `#[test]` functions.

#[allow(dead_code)]
#[path = "jobs.rs"]
mod jobs;

use rabbit_work::testing::{Recorder, Verdict, delivery, verdict};
use rabbit_work::{Error, Handler, Outcome, Publish, Queue, RetryPolicy, Task};

use self::jobs::{Store, jobs};

/// Takes an order for a photo.
fn order(producer: &mut impl Publish, photo: &str) -> Result<(), Error> {
    producer.publish(Task::json(photo)?.with_type("import"))?;
    Ok(())
}

fn task(kind: &str, body: &str) -> Task {
    Task::new(body).with_type(kind)
}

fn main() {
    let (store, queue, policy) = (Store::default(), Queue::new("jobs"), RetryPolicy::new());
    let jobs = jobs(&store, &queue);

    let import = delivery(task("import", r#""a.jpg""#).with_id("17")).build();
    jobs.handle(&import).expect("done");
    assert_eq!(store.photos()["a.jpg"], 4000);
    let [(to, resize)] = &import.follow_ups()[..] else { panic!("one job follows") };
    assert_eq!((to.name(), resize.type_name()), ("jobs", Some("resize")));
    assert_eq!(verdict(&jobs, resize.clone(), &policy), Verdict::Done);
    assert_eq!(store.photos()["a.jpg"], 640);

    let unknown = verdict(&jobs, task("resize", r#"["b.jpg", 640]"#), &policy);
    assert_eq!(unknown, Verdict::Dead { reason: "no such photo".into() });
    let wide = verdict(&jobs, task("resize", r#"["a.jpg", "wide"]"#), &policy);
    assert!(matches!(wide, Verdict::Dead { .. }), "bad input is rejected");
    let later = verdict(&jobs, delivery(task("rotate", "")).attempt(2), &policy);
    assert!(matches!(later, Verdict::Retried { after, .. } if after.as_secs() == 10));

    let recorder = Recorder::new();
    recorder.next_outcome(Outcome::nacked("the queue is full"));
    assert!(order(&mut recorder.clone(), "a.jpg").is_err(), "an error reaches the customer");
    order(&mut recorder.clone(), "b.jpg").expect("confirmed");
    let [ordered] = &recorder.tasks()[..] else { panic!("one task is confirmed") };
    assert_eq!((ordered.body(), ordered.type_name()), (&br#""b.jpg""#[..], Some("import")));

    println!("the jobs and the producer work as they should");
}
