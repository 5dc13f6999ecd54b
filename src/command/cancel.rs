//! Cancels running programs: turns a worker's stop into descriptors that a wait can poll, and
//! signals the process groups of programs whose own thread is blocked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::command::pipe::pipe;
use crate::model::handler::Delivery;
use crate::util::shutdown::is_closed;

/// The pipes of the runs that a command works for: one for all tasks of a run. Workers of several
/// queues may share a command, and each has a run of its own.
#[derive(Debug, Default)]
pub(crate) struct CancelPipes(Mutex<Vec<Arc<CancelPipe>>>);

/// The two stages of a cancellation as descriptors, to be polled together with others: each hangs
/// up when its stage comes.
#[derive(Debug)]
pub(crate) struct CancelPipe {
    cancelled: Receiver<Infallible>,
    cancel: OwnedFd,
    kill: OwnedFd,
    groups: Arc<ProcessGroups>,
    /// Dropping it ends the thread that holds the other ends.
    _alive: Sender<Infallible>,
}

/// The process groups that run, each with the last signal it got. A thread that waits for a
/// program can be blocked by a reader of our own output that does not read; its program is
/// signalled all the same.
#[derive(Debug, Default)]
struct ProcessGroups(Mutex<HashMap<Pid, Option<Signal>>>);

/// A registered process group. Drop it before the group's leader is reaped: after that the number
/// may belong to another group.
pub(crate) struct RegisteredGroup<'a> {
    groups: &'a ProcessGroups,
    group: Pid,
}

/// The time a program gets between SIGTERM and SIGKILL.
pub(crate) const KILL_AFTER: Duration = Duration::from_secs(5);

/// How long after a cancellation a program's own thread counts as blocked.
const BLOCKED_AFTER: Duration = Duration::from_millis(250);

impl CancelPipes {
    /// The pipe of the run that this delivery belongs to.
    pub(crate) fn of(&self, delivery: &Delivery) -> io::Result<Arc<CancelPipe>> {
        let mut pipes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = pipes.iter().find(|it| it.is_for(delivery.cancelled())) {
            return Ok(Arc::clone(pipe));
        }
        // A run that is cancelled starts no program. One that has ended is cancelled.
        pipes.retain(|it| !is_closed(&it.cancelled));
        let pipe = Arc::new(CancelPipe::new(delivery.cancelled(), delivery.killed())?);
        pipes.push(Arc::clone(&pipe));
        Ok(pipe)
    }
}

impl CancelPipe {
    /// Waits for both stages in a thread, which ends when the pipe is dropped.
    pub(crate) fn new(
        cancelled: &Receiver<Infallible>,
        killed: &Receiver<Infallible>,
    ) -> io::Result<CancelPipe> {
        let (cancel, cancel_writer) = pipe()?;
        let (kill, kill_writer) = pipe()?;
        let (_alive, dropped) = bounded(0);
        let groups = Arc::<ProcessGroups>::default();
        let watcher = Watcher {
            cancelled: cancelled.clone(),
            killed: killed.clone(),
            dropped,
            groups: Arc::clone(&groups),
        };
        let watch = move || watcher.watch(cancel_writer, kill_writer);
        thread::Builder::new().name("rw-cancel".into()).spawn(watch)?;
        Ok(CancelPipe { cancelled: cancelled.clone(), cancel, kill, groups, _alive })
    }

    fn is_for(&self, cancelled: &Receiver<Infallible>) -> bool {
        self.cancelled.same_channel(cancelled)
    }

    /// Hangs up when programs are to end.
    pub(crate) fn cancel(&self) -> BorrowedFd<'_> {
        self.cancel.as_fd()
    }

    /// Hangs up when programs are to be killed.
    pub(crate) fn kill(&self) -> BorrowedFd<'_> {
        self.kill.as_fd()
    }

    pub(crate) fn register(&self, group: Pid) -> RegisteredGroup<'_> {
        self.groups.lock().insert(group, None);
        RegisteredGroup { groups: &self.groups, group }
    }
}

/// What the thread of a [`CancelPipe`] waits for.
struct Watcher {
    cancelled: Receiver<Infallible>,
    killed: Receiver<Infallible>,
    dropped: Receiver<Infallible>,
    groups: Arc<ProcessGroups>,
}

impl Watcher {
    fn watch(&self, cancel: OwnedFd, kill: OwnedFd) {
        select! {
            recv(self.dropped) -> _ => return,
            recv(self.killed) -> _ => {}, // Both stages come.
            recv(self.cancelled) -> _ => {},
        }
        drop(cancel);
        for (delay, signal) in [(BLOCKED_AFTER, Signal::TERM), (KILL_AFTER, Signal::KILL)] {
            select! {
                recv(self.dropped) -> _ => return,
                recv(self.killed) -> _ => break,
                default(delay) => self.groups.signal_all(signal),
            }
        }
        select! {
            recv(self.dropped) -> _ => return,
            recv(self.killed) -> _ => {},
        }
        drop(kill);
        self.groups.signal_all(Signal::KILL);
    }
}

impl ProcessGroups {
    fn signal_all(&self, signal: Signal) {
        for (group, last) in self.lock().iter_mut() {
            signal_once(*group, last, signal);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pid, Option<Signal>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegisteredGroup<'_> {
    /// The last signal that the group got, from any thread.
    pub(crate) fn last_signal(&self) -> Option<Signal> {
        self.groups.lock().get(&self.group).copied().flatten()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(last) = self.groups.lock().get_mut(&self.group) {
            signal_once(self.group, last, signal);
        }
    }
}

impl Drop for RegisteredGroup<'_> {
    fn drop(&mut self) {
        self.groups.lock().remove(&self.group);
    }
}

/// Sends each signal once, and none after SIGKILL.
fn signal_once(group: Pid, last: &mut Option<Signal>, signal: Signal) {
    if *last == Some(signal) || *last == Some(Signal::KILL) {
        return;
    }
    *last = Some(signal);
    signal_group(group, signal);
}

/// SIGCONT follows SIGTERM: a stopped group, as one that read from the terminal, gets SIGTERM only
/// when it continues.
pub(crate) fn signal_group(group: Pid, signal: Signal) {
    // It may have ended by itself.
    let _ = kill_process_group(group, signal);
    if signal == Signal::TERM {
        let _ = kill_process_group(group, Signal::CONT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::handler::test_delivery;
    use crate::model::task::Task;
    use crate::util::shutdown::closer;

    #[test]
    fn the_runs_that_share_a_command_have_a_pipe_each() {
        let ((first, of_first), (_second, of_second)) = (closer(), closer());
        let pipes = CancelPipes::default();
        let pipe = |signal: &Receiver<Infallible>| {
            let mut delivery = test_delivery(Task::new(""));
            delivery.cancelled = signal.clone();
            pipes.of(&delivery).expect("a pipe")
        };
        let (one, two) = (pipe(&of_first), pipe(&of_second));
        assert!(!Arc::ptr_eq(&one, &two));
        for _ in 0..3 {
            assert!(Arc::ptr_eq(&pipe(&of_first), &one) && Arc::ptr_eq(&pipe(&of_second), &two));
        }
        first.close();
        let (_third, of_third) = closer();
        pipe(&of_third);
        assert_eq!(pipes.0.lock().expect("sound").len(), 2, "one of them has ended");
    }
}
