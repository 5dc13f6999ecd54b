//! Replaying and purging dead letters selected by id, reason and age.

use std::fs;

use tempfile::TempDir;

use super::{SOON, died, json, queuectl};
use crate::support::broker::shared_broker;
use crate::support::command::Command;

fn ids(queue: &str, choice: &[&str]) -> Vec<String> {
    let listed = json(&queuectl(queue, &[&["dead", "list", "--json"], choice].concat()));
    let letters = listed.as_array().expect("an array").iter();
    letters.map(|letter| letter["id"].as_str().expect("an id").to_owned()).collect()
}

const FOUR: [(&str, &str, u64); 4] =
    [("1", "disk full", 7200), ("2", "no route", 7200), ("3", "disk full", 60), ("4", "-", 60)];

#[test]
fn letters_are_chosen_by_id_reason_and_age() {
    let queue = died("chosen", &FOUR);
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("ids");
    fs::write(&file, "4\n\n2\r\n").expect("written");
    let file = file.to_str().expect("UTF-8");

    assert_eq!(ids(&queue, &["--id", "3", "--id", "1"]), ["1", "3"]);
    assert_eq!(ids(&queue, &["--ids-from", file, "--id", "1"]), ["1", "2", "4"]);
    assert_eq!(ids(&queue, &["--reason", "disk"]), ["1", "3"]);
    assert_eq!(ids(&queue, &["--older", "1h"]), ["1", "2"]);
    assert_eq!(ids(&queue, &["--older", "1h", "--reason", "disk", "--id", "1"]), ["1"]);
    assert_eq!(ids(&queue, &["--reason", "disk", "--limit", "1"]), ["1"]);
    assert_eq!(ids(&queue, &["--reason", "-"]), ["4"]);
}

#[test]
fn no_ids_choose_no_letter() {
    let queue = died("none-chosen", &FOUR);
    let from_stdin = |deed: &[&str]| {
        let to = ["--url", shared_broker().url(), "--queue", &queue, "dead"];
        Command::queuectl(&[&to, deed, &["--ids-from", "-"]].concat()).stdin("\n").run(SOON)
    };

    assert_eq!(from_stdin(&["replay"]).success(), "0 replayed\n");
    assert_eq!(from_stdin(&["purge", "--yes"]).success(), "0 thrown away\n");
    assert_eq!(ids(&queue, &[]).len(), 4);
    queuectl(&queue, &["dead", "list", "--ids-from", "/none"]).assert_code(2);
}

#[test]
fn chosen_letters_are_replayed_in_one_go_and_those_that_are_missing_named() {
    let queue = died("some", &FOUR);
    let to = ["--url", shared_broker().url(), "--queue", &queue, "dead", "replay"];

    let would = queuectl(&queue, &["dead", "replay", "--dry-run", "--id", "5", "--id", "1"]);
    let replay = Command::queuectl(&to).args(&["--ids-from", "-"]).stdin("3\n5\n1\n6\n").run(SOON);

    would.assert_code(1);
    assert!(would.stdout().ends_with("1 would be replayed\n"), "{}", would.stdout());
    replay.assert_code(1);
    assert_eq!(replay.stdout(), "2 replayed\n");
    assert!(replay.stderr().contains("no such dead letter: 5, 6"), "{}", replay.stderr());
    assert_eq!(ids(&queue, &[]), ["2", "4"]);
    let back = shared_broker().client().get_all(&queue);
    let back: Vec<_> = back.iter().filter_map(|it| it.message_id.as_deref()).collect();
    assert_eq!(back, ["1", "3"]);
}

#[test]
fn chosen_letters_are_thrown_away_and_the_others_stay() {
    let queue = died("purged", &FOUR);

    queuectl(&queue, &["dead", "purge", "--reason", "disk"]).assert_code(2);
    assert_eq!(ids(&queue, &[]).len(), 4, "not without --yes");
    let purge = queuectl(&queue, &["dead", "purge", "--yes", "--reason", "disk", "--older", "1h"]);
    let missing = queuectl(&queue, &["dead", "purge", "--yes", "--id", "1", "--id", "2"]);

    assert_eq!(purge.success(), "1 thrown away\n");
    missing.assert_code(1);
    assert_eq!(missing.stdout(), "1 thrown away\n");
    assert!(missing.stderr().contains("no such dead letter: 1"), "{}", missing.stderr());
    assert_eq!(ids(&queue, &[]), ["3", "4"]);
    assert_eq!(
        queuectl(&queue, &["dead", "purge", "--yes", "--limit", "1"]).success(),
        "1 thrown away\n"
    );
    assert_eq!(ids(&queue, &[]), ["4"]);
}
