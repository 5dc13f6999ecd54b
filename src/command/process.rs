//! Runs one program for a task: its process group, the wait for its end, and SIGTERM and SIGKILL at
//! a time limit or a stop. It waits on descriptors only, so that each of them wakes it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, test_kill_process_group, waitid};

use crate::command::cancel::{CancelPipe, KILL_AFTER, RegisteredGroup, signal_group};
use crate::command::kept::Kept;
use crate::command::output::{BackgroundPipes, Flow, OutputMode, OutputStream, Pipe};
use crate::command::pipe::pipe;
use crate::command::zombies::only_zombies;
use crate::model::program_end::ProgramEnd;

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
    /// Why it was stopped; `None` if it ended by itself.
    pub(crate) stopped_by: Option<StopCause>,
    /// What is kept of its output.
    pub(crate) kept: Kept,
    /// Why its output could not be forwarded.
    pub(crate) output_error: Option<io::Error>,
}

/// Why a program was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    TimeLimit,
    Cancelled,
}

/// What a program was sent so far: nothing, SIGTERM or SIGKILL.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Running { until: Option<Instant> },
    Terminated { cause: StopCause, kill_at: Instant },
    Killed { cause: StopCause },
}

/// The program and every process it started that did not leave its process group. Dropped before
/// the program is reaped, the group is killed.
struct Group {
    leader: Child,
    id: Pid,
    status: Option<ExitStatus>,
}

/// The pipes of a program that we read.
#[derive(Default)]
struct Output {
    pipes: Vec<Pipe>,
    kept: Kept,
    error: Option<io::Error>,
}

/// What can wake a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    End,
    Cancel,
    Kill,
    Pipe(OutputStream),
}

/// How often a group is checked for remaining processes after its leader has ended on SIGTERM: the
/// system reports the end of a process, but not of a group.
const GROUP_CHECK_INTERVAL: Duration = Duration::from_millis(20);

impl Process {
    /// Starts the program in a process group of its own. `kept_output` bytes are kept of the start of
    /// a piped standard output.
    pub(crate) fn start(
        command: &mut Command,
        limit: Option<Duration>,
        mode: &OutputMode,
        kept_output: usize,
    ) -> io::Result<Process> {
        let mut group = Group::of(command.process_group(0).spawn()?);
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let output = Output::of(&mut group.leader, mode, kept_output);
        let end = end_notice(group.id)?;
        Ok(Process { group, end, stage: Stage::Running { until }, output })
    }

    /// Waits for the program's end. At the time limit, or when it is cancelled, its group gets
    /// SIGTERM, and SIGKILL after that. What a program that ended by itself left running in the
    /// background lives on.
    pub(crate) fn wait(
        mut self,
        cancel: &CancelPipe,
        background: &BackgroundPipes,
    ) -> io::Result<Ended> {
        let mut registered = Some(cancel.register(self.group.id));
        let status = loop {
            let woken_by = self.next_events(cancel)?;
            self.escalate(&woken_by, registered.as_ref());
            self.output.forward(&woken_by);
            if woken_by.contains(&Source::End) {
                registered = None;
                self.group.reap()?;
            }
            match self.group.status {
                Some(status) if !self.waits_for_group() => break status,
                _ => {}
            }
        };
        self.output.end(background);
        let Output { kept, error: output_error, .. } = self.output;
        Ok(Ended { status, stopped_by: self.stage.stopped_by(), kept, output_error })
    }

    /// Waits for events; returns none at the next deadline.
    fn next_events(&self, cancel: &CancelPipe) -> io::Result<Vec<Source>> {
        let mut sources = Vec::with_capacity(5);
        if self.group.status.is_none() {
            sources.push((Source::End, self.end.as_fd()));
        }
        if matches!(self.stage, Stage::Running { .. }) {
            sources.push((Source::Cancel, cancel.cancel()));
        }
        if !matches!(self.stage, Stage::Killed { .. }) {
            sources.push((Source::Kill, cancel.kill()));
        }
        let pipes = self.output.pipes.iter();
        sources.extend(pipes.map(|pipe| (Source::Pipe(pipe.stream()), pipe.end())));
        ready(&sources, self.next_deadline())
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Running { until } => until,
            Stage::Terminated { kill_at, .. } if self.group.status.is_none() => Some(kill_at),
            Stage::Terminated { kill_at, .. } => {
                Some(kill_at.min(Instant::now() + GROUP_CHECK_INTERVAL))
            }
            Stage::Killed { .. } => None,
        }
    }

    /// Signals the group, if it is time for that.
    fn escalate(&mut self, woken_by: &[Source], registered: Option<&RegisteredGroup<'_>>) {
        if matches!(self.stage, Stage::Running { .. }) && woken_by.contains(&Source::End) {
            return self.adopt_cancellation(registered);
        }
        let Some(next) = self.stage.next(woken_by, Instant::now()) else { return };
        let signal = match next {
            Stage::Killed { .. } => Signal::KILL,
            _ => Signal::TERM,
        };
        match registered {
            Some(group) => group.signal(signal),
            None => self.group.signal(signal),
        }
        self.stage = next;
    }

    /// While this thread was blocked, the cancellation may have signalled the group first.
    fn adopt_cancellation(&mut self, registered: Option<&RegisteredGroup<'_>>) {
        let cause = StopCause::Cancelled;
        self.stage = match registered.and_then(RegisteredGroup::last_signal) {
            None => return,
            Some(Signal::KILL) => Stage::Killed { cause },
            Some(_) => Stage::Terminated { cause, kill_at: Instant::now() + KILL_AFTER },
        };
    }

    /// Whether other processes of the group are waited for after its leader.
    fn waits_for_group(&self) -> bool {
        matches!(self.stage, Stage::Terminated { .. }) && self.group.lives()
    }
}

impl Ended {
    /// The same for records.
    pub(crate) fn into_program_end(self, started: SystemTime, elapsed: Duration) -> ProgramEnd {
        ProgramEnd {
            started,
            elapsed,
            exit: self.status.code(),
            signal: self.status.signal(),
            stopped: self.stopped_by.is_some(),
            output_error: self.output_error.map(|error| error.to_string()),
            output_bytes: self.kept.stdout_bytes,
            output: self.kept.stdout_head,
        }
    }
}

impl Stage {
    /// The stage that follows now, if one does.
    fn next(self, woken_by: &[Source], now: Instant) -> Option<Stage> {
        let terminated = |cause| Stage::Terminated { cause, kill_at: now + KILL_AFTER };
        let (cancelled, killed) =
            (woken_by.contains(&Source::Cancel), woken_by.contains(&Source::Kill));
        match self {
            Stage::Running { .. } if killed => Some(Stage::Killed { cause: StopCause::Cancelled }),
            Stage::Running { .. } if cancelled => Some(terminated(StopCause::Cancelled)),
            Stage::Running { until } if until.is_some_and(|until| until <= now) => {
                Some(terminated(StopCause::TimeLimit))
            }
            Stage::Terminated { cause, kill_at } if killed || kill_at <= now => {
                Some(Stage::Killed { cause })
            }
            Stage::Running { .. } | Stage::Terminated { .. } | Stage::Killed { .. } => None,
        }
    }

    fn stopped_by(self) -> Option<StopCause> {
        match self {
            Stage::Running { .. } => None,
            Stage::Terminated { cause, .. } | Stage::Killed { cause } => Some(cause),
        }
    }
}

impl Group {
    fn of(leader: Child) -> Group {
        let id = Pid::from_child(&leader);
        Group { leader, id, status: None }
    }

    /// Once the leader is reaped, call it only right after the group was seen to live: until then
    /// its number cannot belong to another group.
    fn signal(&self, signal: Signal) {
        signal_group(self.id, signal);
    }

    /// Call it when the leader is reaped: before that the leader counts, dead or alive.
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
    fn of(leader: &mut Child, mode: &OutputMode, kept_output: usize) -> Output {
        let stdout = leader.stdout.take().map(OwnedFd::from);
        let stderr = leader.stderr.take().map(OwnedFd::from);
        let both = [(OutputStream::Stdout, stdout), (OutputStream::Stderr, stderr)];
        let piped = both.into_iter().filter_map(|(stream, end)| Some((stream, end?)));
        let pipes = piped.map(|(stream, end)| Pipe::new(end, stream, mode, kept_output)).collect();
        Output { pipes, ..Output::default() }
    }

    fn forward(&mut self, woken_by: &[Source]) {
        for mut pipe in std::mem::take(&mut self.pipes) {
            if !woken_by.contains(&Source::Pipe(pipe.stream())) {
                self.pipes.push(pipe);
                continue;
            }
            match pipe.forward() {
                Ok(Flow::Open) => self.pipes.push(pipe),
                Ok(Flow::Ended) => self.keep(&pipe),
                Err(error) => self.close(pipe, error),
            }
        }
    }

    /// Forwards what is in the pipes after the program's end. A pipe that a background process
    /// holds open goes to a thread of its own.
    fn end(&mut self, background: &BackgroundPipes) {
        for mut pipe in std::mem::take(&mut self.pipes) {
            match pipe.forward_rest() {
                Ok(Flow::Ended) => self.keep(&pipe),
                Ok(Flow::Open) => {
                    self.keep(&pipe);
                    pipe.keep_forwarding(background);
                }
                Err(error) => self.close(pipe, error),
            }
        }
    }

    /// Closes the pipe: the program's next write to it raises SIGPIPE.
    fn close(&mut self, pipe: Pipe, error: io::Error) {
        self.keep(&pipe);
        self.error.get_or_insert(error);
    }

    fn keep(&mut self, pipe: &Pipe) {
        match pipe.stream() {
            OutputStream::Stdout => {
                self.kept.stdout_head = pipe.head().to_vec();
                self.kept.stdout_bytes = pipe.count();
            }
            OutputStream::Stderr => self.kept.stderr_tail = pipe.tail().to_vec(),
        }
    }
}

/// A descriptor that becomes readable when the process has ended. The process is not reaped then.
fn end_notice(process: Pid) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{PidfdFlags, pidfd_open};

        // Linux before 5.3 has none, and some containers do not allow it.
        if let Ok(end) = pidfd_open(process, PidfdFlags::empty()) {
            return Ok(end);
        }
    }
    end_notice_by_thread(process)
}

fn end_notice_by_thread(process: Pid) -> io::Result<OwnedFd> {
    let (end, held) = pipe()?;
    thread::Builder::new().name("rw-waiter".into()).spawn(move || {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(process), options), Err(Errno::INTR)) {}
        drop(held);
    })?;
    Ok(end)
}

/// The sources that are ready; none at the deadline.
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
    use std::convert::Infallible;
    use std::process::Stdio;
    use std::sync::Arc;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::util::shutdown::closer;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        command
    }

    fn run(script: &str, limit: Option<Duration>) -> Ended {
        let (_cancel, cancelled) = closer();
        let (_kill, killed) = closer();
        let cancel_pipe = CancelPipe::new(&cancelled, &killed).expect("a pipe");
        let process =
            Process::start(&mut shell(script), limit, &OutputMode::Plain, 0).expect("started");
        process.wait(&cancel_pipe, &BackgroundPipes::default()).expect("waited for")
    }

    #[test]
    fn it_ends_by_itself_with_its_status_and_its_last_words() {
        let ended = run("echo last words >&2; exit 7", None);
        assert_eq!((ended.status.code(), ended.stopped_by), (Some(7), None));
        assert_eq!(ended.kept.stderr_tail, b"last words\n");
    }

    #[test]
    fn out_of_time_the_whole_group_ends() {
        let started = Instant::now();
        let ended = run("sleep 1000 & sleep 1000", Some(Duration::from_millis(50)));
        assert_eq!(ended.stopped_by, Some(StopCause::TimeLimit));
        assert!(started.elapsed() < KILL_AFTER, "SIGTERM was enough");
    }

    #[test]
    fn a_background_program_is_not_waited_for() {
        let started = Instant::now();
        let ended = run("sleep 3 & exit 0", None);
        assert!(ended.status.success());
        assert!(started.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_thread_notices_an_end_where_the_system_has_no_descriptor_for_it() {
        let mut child = shell("exit 0").spawn().expect("started");
        let end = end_notice_by_thread(Pid::from_child(&child)).expect("a notice");
        let deadline = Some(Instant::now() + Duration::from_secs(20));
        let woken = ready(&[(Source::End, end.as_fd())], deadline).expect("polled");
        assert_eq!(woken, [Source::End]);
        assert!(child.wait().expect("reaped").success());
    }

    #[test]
    fn it_ends_though_nobody_reads_its_output() {
        let (cancel, cancelled) = closer();
        let (kill, killed) = closer();
        let cancel_pipe = CancelPipe::new(&cancelled, &killed).expect("a pipe");
        let (holding, held) = bounded(1);
        let (release, released) = bounded::<Infallible>(0);
        let sink = move |_: OutputStream, _: &[u8]| {
            let _ = holding.send(());
            let _ = released.recv();
            Ok(())
        };
        let mode = OutputMode::Tagged { tag: Arc::from([].as_slice()), sink: Arc::new(sink) };
        let script = "trap '' TERM; echo words >&2; while :; do sleep 1; done";
        let process = Process::start(&mut shell(script), None, &mode, 0).expect("started");
        let end = end_notice(process.group.id).expect("a notice");
        let waiting =
            thread::spawn(move || process.wait(&cancel_pipe, &BackgroundPipes::default()));
        held.recv().expect("the words come");

        cancel.close();
        kill.close();
        let deadline = Some(Instant::now() + Duration::from_secs(20));
        let woken = ready(&[(Source::End, end.as_fd())], deadline).expect("polled");

        assert_eq!(woken, [Source::End]);
        drop(release);
        let ended = waiting.join().expect("no panic").expect("waited for");
        assert_eq!(ended.status.signal(), Some(9));
    }

    #[test]
    fn signalled_while_its_thread_was_blocked_it_counts_as_cancelled() {
        let (_cancel, cancelled) = closer();
        let (kill, killed) = closer();
        let cancel_pipe = CancelPipe::new(&cancelled, &killed).expect("a pipe");
        let mut process =
            Process::start(&mut shell("sleep 60"), None, &OutputMode::Plain, 0).expect("started");
        let registered = cancel_pipe.register(process.group.id);
        kill.close();
        ready(&[(Source::End, process.end.as_fd())], None).expect("it ends");
        process.escalate(&[Source::End, Source::Kill], Some(&registered));
        assert_eq!(process.stage.stopped_by(), Some(StopCause::Cancelled));
    }

    #[test]
    fn cancelled_it_ends_and_killed_it_ends_whatever_it_does() {
        let (cancel, cancelled) = closer();
        let (kill, killed) = closer();
        let cancel_pipe = CancelPipe::new(&cancelled, &killed).expect("a pipe");
        let script = "trap '' TERM; while :; do sleep 1; done";
        let process =
            Process::start(&mut shell(script), None, &OutputMode::Plain, 0).expect("started");
        cancel.close();
        kill.close();
        let started = Instant::now();
        let ended = process.wait(&cancel_pipe, &BackgroundPipes::default()).expect("waited for");
        assert_eq!(ended.stopped_by, Some(StopCause::Cancelled));
        assert!(started.elapsed() < KILL_AFTER, "it was not given its time");
    }
}
