//! Owns a program while it runs for a task: its process group, its end, and the ways to hasten
//! that. Waits on descriptors only, so that an end, a time limit and a stop all wake it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, test_kill_process_group, waitid,
};

use crate::command::output::{Flow, Leftovers, OutputStream, Passing, Pipe};

/// A program, from its start until it is reaped.
pub(crate) struct Process {
    group: Group,
    /// Readable once the program has ended.
    end: OwnedFd,
    stage: Stage,
    output: Output,
}

/// How a program ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// Why it was told to, if it was.
    pub(crate) told: Option<Told>,
    /// The end of its standard error.
    pub(crate) stderr_tail: Vec<u8>,
    /// Why what it wrote could not be passed on, if so.
    pub(crate) unwritable: Option<io::Error>,
}

/// Why a program was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    OutOfTime,
    Cancelled,
}

/// A cancellation as descriptors, to be waited for together with others: each hangs up when its
/// stage has come.
#[derive(Debug)]
pub(crate) struct Bell {
    cancelled: Receiver<Infallible>,
    cancel: OwnedFd,
    kill: OwnedFd,
    roll: Arc<Roll>,
    /// Its end is that of the thread that rings.
    _alive: Sender<Infallible>,
}

/// The groups that run, each with what it was told last. Who attends a program can be held up by
/// a reader of our own output that does not read; it is told to end all the same.
#[derive(Debug, Default)]
struct Roll(Mutex<HashMap<Pid, Option<Signal>>>);

/// A group's place on the roll, to be left before its leader is reaped: its number may be
/// somebody else's then.
struct Listed<'a> {
    roll: &'a Roll,
    group: Pid,
}

/// How far a program has been asked to end.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Running { until: Option<Instant> },
    Terminated { told: Told, kill_at: Instant },
    Killed { told: Told },
}

/// The program with all that it started and that did not leave its process group. Dropped
/// before it was reaped, it is killed.
struct Group {
    leader: Child,
    id: Pid,
    status: Option<ExitStatus>,
}

/// What a program writes, as far as it comes through us.
#[derive(Default)]
struct Output {
    pipes: Vec<Pipe>,
    stderr_tail: Vec<u8>,
    unwritable: Option<io::Error>,
}

/// What can wake a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    End,
    Cancel,
    Kill,
    Pipe(OutputStream),
}

/// What a program gets between SIGTERM and SIGKILL.
pub(crate) const KILL_AFTER: Duration = Duration::from_secs(5);

/// How long after the bell a program counts as one whose attendant is held up.
const HELD_UP: Duration = Duration::from_millis(250);

/// How often the rest of a group is looked for after its leader has ended on SIGTERM: the
/// system tells of the end of a process, but not of a group's.
const LOOK_FOR_REST: Duration = Duration::from_millis(20);

impl Process {
    /// Starts the program in a process group of its own.
    pub(crate) fn start(
        command: &mut Command,
        limit: Option<Duration>,
        passing: &Passing,
    ) -> io::Result<Process> {
        let mut group = Group::of(command.process_group(0).spawn()?);
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let output = Output::of(&mut group.leader, passing);
        let end = notice_of_end(group.id)?;
        Ok(Process { group, end, stage: Stage::Running { until }, output })
    }

    /// Waits for its end: its own; or at the time limit, or when the bell rings, the one that
    /// SIGTERM to its group brings, or SIGKILL after that. What it left running in the
    /// background lives on, unless it was told to end.
    pub(crate) fn attend(mut self, bell: &Bell, leftovers: &Leftovers) -> io::Result<Ended> {
        let mut listed = Some(bell.roll.list(self.group.id));
        let status = loop {
            let woken_by = self.wait(bell)?;
            self.hasten(&woken_by, listed.as_ref());
            self.output.pass_on(&woken_by);
            if woken_by.contains(&Source::End) {
                listed = None;
                self.group.reap()?;
            }
            match self.group.status {
                Some(status) if !self.has_rest() => break status,
                _ => {}
            }
        };
        self.output.end(leftovers);
        let Output { stderr_tail, unwritable, .. } = self.output;
        Ok(Ended { status, told: self.stage.told(), stderr_tail, unwritable })
    }

    /// Returns what has happened, or nothing at the next deadline.
    fn wait(&self, bell: &Bell) -> io::Result<Vec<Source>> {
        let mut sources = Vec::with_capacity(5);
        if self.group.status.is_none() {
            sources.push((Source::End, self.end.as_fd()));
        }
        if matches!(self.stage, Stage::Running { .. }) {
            sources.push((Source::Cancel, bell.cancel.as_fd()));
        }
        if !matches!(self.stage, Stage::Killed { .. }) {
            sources.push((Source::Kill, bell.kill.as_fd()));
        }
        let pipes = self.output.pipes.iter();
        sources.extend(pipes.map(|pipe| (Source::Pipe(pipe.stream()), pipe.end())));
        ready(&sources, self.next_look())
    }

    fn next_look(&self) -> Option<Instant> {
        match self.stage {
            Stage::Running { until } => until,
            Stage::Terminated { kill_at, .. } if self.group.status.is_none() => Some(kill_at),
            Stage::Terminated { kill_at, .. } => Some(kill_at.min(Instant::now() + LOOK_FOR_REST)),
            Stage::Killed { .. } => None,
        }
    }

    /// Tells the group to end, if it is time for that.
    fn hasten(&mut self, woken_by: &[Source], listed: Option<&Listed<'_>>) {
        let now = Instant::now();
        let next = match self.stage {
            Stage::Running { .. } if woken_by.contains(&Source::End) => {
                return self.note_what_the_bell_told(listed);
            }
            Stage::Running { .. } if woken_by.contains(&Source::Kill) => {
                Stage::Killed { told: Told::Cancelled }
            }
            Stage::Running { .. } if woken_by.contains(&Source::Cancel) => {
                Stage::Terminated { told: Told::Cancelled, kill_at: now + KILL_AFTER }
            }
            Stage::Running { until: Some(until) } if until <= now => {
                Stage::Terminated { told: Told::OutOfTime, kill_at: now + KILL_AFTER }
            }
            Stage::Terminated { told, kill_at }
                if kill_at <= now || woken_by.contains(&Source::Kill) =>
            {
                Stage::Killed { told }
            }
            Stage::Running { .. } | Stage::Terminated { .. } | Stage::Killed { .. } => return,
        };
        let signal = match next {
            Stage::Killed { .. } => Signal::KILL,
            _ => Signal::TERM,
        };
        match listed {
            Some(listed) => listed.tell(signal),
            None => self.group.signal(signal),
        }
        self.stage = next;
    }

    /// Where this thread was held up, the bell told the group to end before this did.
    fn note_what_the_bell_told(&mut self, listed: Option<&Listed<'_>>) {
        let (told, now) = (Told::Cancelled, Instant::now());
        self.stage = match listed.and_then(Listed::told) {
            None => return,
            Some(Signal::KILL) => Stage::Killed { told },
            Some(_) => Stage::Terminated { told, kill_at: now + KILL_AFTER },
        };
    }

    /// Whether, after the leader, others of its group are to be waited for.
    fn has_rest(&self) -> bool {
        matches!(self.stage, Stage::Terminated { .. }) && self.group.lives()
    }
}

impl Stage {
    fn told(self) -> Option<Told> {
        match self {
            Stage::Running { .. } => None,
            Stage::Terminated { told, .. } | Stage::Killed { told } => Some(told),
        }
    }
}

impl Group {
    fn of(leader: Child) -> Group {
        let id = Pid::from_child(&leader);
        Group { leader, id, status: None }
    }

    /// Once the leader is reaped, only to be called shortly after it was seen to live: its
    /// number goes to nobody else before that.
    fn signal(&self, signal: Signal) {
        signal_group(self.id, signal);
    }

    /// To be asked when the leader is reaped; before that it counts, dead or alive.
    fn lives(&self) -> bool {
        test_kill_process_group(self.id) != Err(Errno::SRCH) && !only_zombies(self.id)
    }

    /// Waits for the leader, which has ended.
    fn reap(&mut self) -> io::Result<()> {
        if self.status.is_none() {
            self.status = Some(self.leader.wait()?);
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.signal(Signal::KILL);
            let _ = self.reap();
        }
    }
}

impl Output {
    fn of(leader: &mut Child, passing: &Passing) -> Output {
        let stdout = leader.stdout.take().map(OwnedFd::from);
        let stderr = leader.stderr.take().map(OwnedFd::from);
        let both = [(OutputStream::Stdout, stdout), (OutputStream::Stderr, stderr)];
        let piped = both.into_iter().filter_map(|(stream, end)| Some((stream, end?)));
        let pipes = piped.map(|(stream, end)| Pipe::new(end, stream, passing)).collect();
        Output { pipes, ..Output::default() }
    }

    fn pass_on(&mut self, woken_by: &[Source]) {
        for mut pipe in std::mem::take(&mut self.pipes) {
            if !woken_by.contains(&Source::Pipe(pipe.stream())) {
                self.pipes.push(pipe);
                continue;
            }
            match pipe.pass_on() {
                Ok(Flow::Open) => self.pipes.push(pipe),
                Ok(Flow::Ended) => self.keep_tail(&pipe),
                Err(error) => self.give_up(pipe, error),
            }
        }
    }

    /// Passes on what is there, after the program's end, and leaves the pipes that others hold
    /// to themselves.
    fn end(&mut self, leftovers: &Leftovers) {
        for mut pipe in std::mem::take(&mut self.pipes) {
            match pipe.pass_on_rest() {
                Ok(Flow::Ended) => self.keep_tail(&pipe),
                Ok(Flow::Open) => {
                    self.keep_tail(&pipe);
                    pipe.linger(leftovers);
                }
                Err(error) => self.give_up(pipe, error),
            }
        }
    }

    /// The program's next write to a pipe that we close ends it.
    fn give_up(&mut self, pipe: Pipe, error: io::Error) {
        self.keep_tail(&pipe);
        self.unwritable.get_or_insert(error);
    }

    fn keep_tail(&mut self, pipe: &Pipe) {
        if pipe.stream() == OutputStream::Stderr {
            self.stderr_tail = pipe.tail().to_vec();
        }
    }
}

impl Bell {
    /// Waits for the two signals in a thread that ends when the bell is dropped.
    pub(crate) fn hang(
        cancelled: &Receiver<Infallible>,
        killed: &Receiver<Infallible>,
    ) -> io::Result<Bell> {
        let (cancel, ring_cancel) = pipe_with(PipeFlags::CLOEXEC)?;
        let (kill, ring_kill) = pipe_with(PipeFlags::CLOEXEC)?;
        let (_alive, gone) = bounded::<Infallible>(0);
        let (heard, killed) = (cancelled.clone(), killed.clone());
        let roll = Arc::new(Roll::default());
        let called = Arc::clone(&roll);
        thread::Builder::new().name("rw-bell".into()).spawn(move || {
            select! {
                recv(gone) -> _ => return,
                recv(killed) -> _ => {}, // Both ring.
                recv(heard) -> _ => {},
            }
            drop(ring_cancel);
            for (patience, signal) in [(HELD_UP, Signal::TERM), (KILL_AFTER, Signal::KILL)] {
                select! {
                    recv(gone) -> _ => return,
                    recv(killed) -> _ => break,
                    default(patience) => called.tell_all(signal),
                }
            }
            select! {
                recv(gone) -> _ => return,
                recv(killed) -> _ => {},
            }
            drop(ring_kill);
            called.tell_all(Signal::KILL);
        })?;
        Ok(Bell { cancelled: cancelled.clone(), cancel, kill, roll, _alive })
    }

    pub(crate) fn rings_for(&self, cancelled: &Receiver<Infallible>) -> bool {
        self.cancelled.same_channel(cancelled)
    }
}

impl Roll {
    fn list(&self, group: Pid) -> Listed<'_> {
        self.lock().insert(group, None);
        Listed { roll: self, group }
    }

    fn tell_all(&self, signal: Signal) {
        for (group, told) in self.lock().iter_mut() {
            tell(*group, told, signal);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pid, Option<Signal>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed<'_> {
    /// What the group was told last, by whomever.
    fn told(&self) -> Option<Signal> {
        self.roll.lock().get(&self.group).copied().flatten()
    }

    fn tell(&self, signal: Signal) {
        if let Some(told) = self.roll.lock().get_mut(&self.group) {
            tell(self.group, told, signal);
        }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.roll.lock().remove(&self.group);
    }
}

/// Sends a group a signal, once; after SIGKILL there is nothing more to say.
fn tell(group: Pid, told: &mut Option<Signal>, signal: Signal) {
    if *told == Some(signal) || *told == Some(Signal::KILL) {
        return;
    }
    *told = Some(signal);
    signal_group(group, signal);
}

/// One that was stopped, as by reading from the terminal, hears of SIGTERM when it goes on.
fn signal_group(group: Pid, signal: Signal) {
    // It may have ended by itself.
    let _ = kill_process_group(group, signal);
    if signal == Signal::TERM {
        let _ = kill_process_group(group, Signal::CONT);
    }
}

/// Whether nothing is left of a group but what its new parent, the system's first process, has
/// not reaped yet; in a container that may take long, or for ever. Where this cannot be told, no.
fn only_zombies(group: Pid) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let mut found = None;
    for process in processes.flatten() {
        let Ok(stat) = fs::read_to_string(process.path().join("stat")) else { continue };
        match state_in_group(&stat, group) {
            Some('Z' | 'X') => found = Some(()),
            Some(_) => return false,
            None => {}
        }
    }
    found.is_some()
}

/// The state of a process that belongs to the group, from its `/proc/PID/stat`: the first word
/// after its name, which is in parentheses; the group is the third.
fn state_in_group(stat: &str, group: Pid) -> Option<char> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_ascii_whitespace();
    let state = words.next()?.chars().next()?;
    let its_group: i32 = words.nth(1)?.parse().ok()?;
    (its_group == group.as_raw_nonzero().get()).then_some(state)
}

/// A descriptor that becomes readable when the process has ended, and is not reaped yet.
fn notice_of_end(process: Pid) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{PidfdFlags, pidfd_open};

        // Linux before 5.3 has none, and some containers do not allow it.
        if let Ok(end) = pidfd_open(process, PidfdFlags::empty()) {
            return Ok(end);
        }
    }
    notice_by_thread(process)
}

fn notice_by_thread(process: Pid) -> io::Result<OwnedFd> {
    let (end, held) = pipe_with(PipeFlags::CLOEXEC)?;
    thread::Builder::new().name("rw-waiter".into()).spawn(move || {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(process), options), Err(Errno::INTR)) {}
        drop(held);
    })?;
    Ok(end)
}

/// Those that have something to say, which comes at the latest at the deadline; then none.
fn ready(
    sources: &[(Source, BorrowedFd<'_>)],
    deadline: Option<Instant>,
) -> io::Result<Vec<Source>> {
    let mut fds: Vec<PollFd<'_>> =
        sources.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        let left = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        match poll(&mut fds, left.as_ref()) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    let woken = sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
    Ok(woken.map(|((source, _), _)| *source).collect())
}

fn timespec(left: Duration) -> Timespec {
    // Longer than any program runs.
    Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i32::MAX.into(), tv_nsec: 0 })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    use super::*;
    use crate::util::shutdown::closer;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        command
    }

    fn attend(script: &str, limit: Option<Duration>) -> Ended {
        let (_cancel, cancelled) = closer();
        let (_kill, killed) = closer();
        let bell = Bell::hang(&cancelled, &killed).expect("a bell");
        let process = Process::start(&mut shell(script), limit, &Passing::Plain).expect("started");
        process.attend(&bell, &Leftovers::default()).expect("attended")
    }

    #[test]
    fn it_ends_by_itself_with_its_status_and_its_last_words() {
        let ended = attend("echo last words >&2; exit 7", None);
        assert_eq!((ended.status.code(), ended.told), (Some(7), None));
        assert_eq!(ended.stderr_tail, b"last words\n");
    }

    #[test]
    fn out_of_time_the_whole_group_ends() {
        let started = Instant::now();
        let ended = attend("sleep 1000 & sleep 1000", Some(Duration::from_millis(50)));
        assert_eq!(ended.told, Some(Told::OutOfTime));
        assert!(started.elapsed() < KILL_AFTER, "SIGTERM was enough");
    }

    #[test]
    fn a_zombie_is_told_from_the_living() {
        let group = Pid::from_raw(7).expect("a number");
        let stat = |state: &str, group: &str| format!("12 (a ) (b)) {state} 1 {group} 3 0 -1");
        assert_eq!(state_in_group(&stat("Z", "7"), group), Some('Z'));
        assert_eq!(state_in_group(&stat("S", "7"), group), Some('S'));
        assert_eq!(state_in_group(&stat("S", "8"), group), None);
        assert_eq!(state_in_group("", group), None);
    }

    #[test]
    fn a_background_program_is_not_waited_for() {
        let started = Instant::now();
        let ended = attend("sleep 3 & exit 0", None);
        assert!(ended.status.success());
        assert!(started.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_thread_notices_an_end_where_the_system_has_no_descriptor_for_it() {
        let mut child = shell("exit 0").spawn().expect("started");
        let end = notice_by_thread(Pid::from_child(&child)).expect("a notice");
        let deadline = Some(Instant::now() + Duration::from_secs(20));
        let woken = ready(&[(Source::End, end.as_fd())], deadline).expect("polled");
        assert_eq!(woken, [Source::End]);
        assert!(child.wait().expect("reaped").success());
    }

    #[test]
    fn it_ends_though_nobody_takes_its_words() {
        let (cancel, cancelled) = closer();
        let (kill, killed) = closer();
        let bell = Bell::hang(&cancelled, &killed).expect("a bell");
        let (holding, held) = bounded(1);
        let (release, released) = bounded::<Infallible>(0);
        let sink = move |_: OutputStream, _: &[u8]| {
            let _ = holding.send(());
            let _ = released.recv();
            Ok(())
        };
        let passing = Passing::Tagged { tag: Arc::from([].as_slice()), sink: Arc::new(sink) };
        let script = "trap '' TERM; echo words >&2; while :; do sleep 1; done";
        let process = Process::start(&mut shell(script), None, &passing).expect("started");
        let end = notice_of_end(process.group.id).expect("a notice");
        let attending = thread::spawn(move || process.attend(&bell, &Leftovers::default()));
        held.recv().expect("the words come");

        cancel.close();
        kill.close();
        let deadline = Some(Instant::now() + Duration::from_secs(20));
        let woken = ready(&[(Source::End, end.as_fd())], deadline).expect("polled");

        assert_eq!(woken, [Source::End]);
        drop(release);
        let ended = attending.join().expect("no panic").expect("attended");
        assert_eq!(ended.status.signal(), Some(9));
    }

    #[test]
    fn told_by_the_bell_while_nobody_attended_it_is_cancelled_all_the_same() {
        let (_cancel, cancelled) = closer();
        let (kill, killed) = closer();
        let bell = Bell::hang(&cancelled, &killed).expect("a bell");
        let mut process =
            Process::start(&mut shell("sleep 60"), None, &Passing::Plain).expect("started");
        let listed = bell.roll.list(process.group.id);
        kill.close();
        ready(&[(Source::End, process.end.as_fd())], None).expect("it ends");
        process.hasten(&[Source::End, Source::Kill], Some(&listed));
        assert_eq!(process.stage.told(), Some(Told::Cancelled));
    }

    #[test]
    fn cancelled_it_ends_and_killed_it_ends_whatever_it_does() {
        let (cancel, cancelled) = closer();
        let (kill, killed) = closer();
        let bell = Bell::hang(&cancelled, &killed).expect("a bell");
        let script = "trap '' TERM; while :; do sleep 1; done";
        let process = Process::start(&mut shell(script), None, &Passing::Plain).expect("started");
        cancel.close();
        kill.close();
        let started = Instant::now();
        let ended = process.attend(&bell, &Leftovers::default()).expect("attended");
        assert_eq!(ended.told, Some(Told::Cancelled));
        assert!(started.elapsed() < KILL_AFTER, "it was not given its time");
    }
}
