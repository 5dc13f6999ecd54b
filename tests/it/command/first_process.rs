//! A worker that is process 1 of a container: it reaps what commands leave behind.

use super::{Bench, SOON, children, counts, state};
use crate::support::broker::poll;
use crate::support::command::{Command, Running};

/// What the system has to allow.
const APART: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];

/// The words that begin a process tree of its own, where that is permitted: to root, and elsewhere
/// to whoever may be root in a name space.
fn apart() -> Option<Vec<&'static str>> {
    let ways = [&APART[..], &[&["--user", "--map-root-user"], &APART[..]].concat()];
    let mut permitted = ways.into_iter().map(<[_]>::to_vec).filter(|way| {
        Command::program("unshare", &[&way[..], &["true"]].concat()).run(SOON).code == Some(0)
    });
    let way = permitted.next();
    if way.is_none() {
        eprintln!("skipped: this system permits no process tree of its own (unshare --pid)");
    }
    way
}

/// The first process there, a worker, by the number that it has here.
struct First {
    unshare: Running,
    id: String,
}

/// Starts a worker as process 1, in a process tree of its own.
fn start_apart(
    worker: &[&str],
    bench: &Bench,
    options: &[&str],
    command: &[&str],
) -> Option<Running> {
    let address = ["--url", bench.broker.url(), "--queue", &bench.queue];
    let words = [&apart()?[..], worker, &address, options, &["--"], command].concat();
    Some(Command::program("unshare", &words).current_dir(bench.dir.path()).start())
}

impl First {
    fn start(bench: &Bench, options: &[&str], command: &[&str]) -> Option<First> {
        let unshare = start_apart(&[env!("CARGO_BIN_EXE_worker")], bench, options, command)?;
        unshare.wait_for_stderr_line(|line| line.contains("consuming from"), SOON);
        let id = children(unshare.id()).pop().expect("the first process");
        Some(First { unshare, id })
    }

    fn zombies(&self) -> usize {
        let id = self.id.parse().expect("a number");
        children(id).iter().filter(|it| state(it) == Some('Z')).count()
    }

    fn signal(&self, name: &str) {
        Command::program("kill", &[&format!("-{name}"), &self.id]).run(SOON).success();
    }
}

#[test]
fn what_commands_leave_behind_is_reaped_and_each_has_its_own_status() {
    let bench = Bench::new("first");
    let bodies: Vec<String> = (0..60).map(|n| (n % 2).to_string()).collect();
    bench.publish(&bodies.iter().map(String::as_bytes).collect::<Vec<_>>());
    // Some end before they are looked at, some after.
    let script = "(setsid sh -c 'sleep 0.05; : >>left.$$' <&- >&- 2>&- &); exit $(cat)";
    let options = ["--threads", "4", "--json", "--max-attempts", "1"];
    let Some(first) = First::start(&bench, &options, &["sh", "-c", script]) else { return };
    let left = || std::fs::read_dir(bench.dir.path()).expect("a folder").count();

    poll("all have ended", SOON, || (left() == 60).then_some(()));
    poll("nothing is left of them", SOON, || (first.zombies() == 0).then_some(()));
    first.signal("TERM");
    let output = first.unshare.wait(SOON);

    output.assert_code(0);
    assert_eq!(counts(&output.stdout()), [30, 0, 30, 0]);
}

#[test]
fn signals_and_statuses_go_through_the_first_process() {
    let bench = Bench::new("firststop");
    bench.publish(&[b"x"]);
    let script = ["sh", "-c", "echo begun; exec sleep 600"];
    let Some(first) = First::start(&bench, &["--threads", "1"], &script) else { return };
    first.unshare.wait_for_stdout_line(|line| line == "begun", SOON);
    first.signal("INT");
    first.unshare.wait_for_stderr_line(|line| line.contains("stopping; a second signal"), SOON);
    first.signal("INT");
    first.unshare.wait(SOON).assert_code(130);
    assert_eq!(bench.left().len(), 1);
}

#[test]
fn the_one_program_is_a_worker_also_in_the_second_process() {
    let bench = Bench::new("firstone");
    let (program, link) = (env!("CARGO_BIN_EXE_rabbit-work"), bench.path("worker"));
    std::os::unix::fs::symlink(program, &link).expect("a link");
    for worker in [&[program, "worker"][..], &[link.to_str().expect("a path in UTF-8")]] {
        bench.publish(&[b"x"]);
        let options = ["--threads", "1", "--max-tasks", "1", "--json"];
        let Some(unshare) = start_apart(worker, &bench, &options, &["true"]) else { return };
        let output = unshare.wait(SOON);
        output.assert_code(0);
        assert_eq!(counts(&output.stdout()), [1, 0, 0, 0], "{worker:?}");
    }
}
