//! Recognizes process groups of which only zombies are left.

use std::fs;

use rustix::process::Pid;

/// Whether only zombies are left of a group. Its new parent, the system's first process, reaps them;
/// in a container it may never do so. False if this cannot be found out.
pub(crate) fn only_zombies(group: Pid) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_is_distinguished_from_the_living() {
        let group = Pid::from_raw(7).expect("a number");
        let stat = |state: &str, group: &str| format!("12 (a ) (b)) {state} 1 {group} 3 0 -1");
        assert_eq!(state_in_group(&stat("Z", "7"), group), Some('Z'));
        assert_eq!(state_in_group(&stat("S", "7"), group), Some('S'));
        assert_eq!(state_in_group(&stat("S", "8"), group), None);
        assert_eq!(state_in_group("", group), None);
    }
}
