//! Checks that tests show each promise of docs/guarantees.md, and that docs/faults.md has each
//! fault that a test names.

mod of_programs;
mod of_tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::of_programs::OF_PROGRAMS;
use self::of_tasks::OF_TASKS;
use crate::support::command::Command;

const SOON: Duration = Duration::from_secs(30);
const PAGE: &str = include_str!("../../../docs/guarantees.md");
const FAULTS: &str = include_str!("../../../docs/faults.md");

/// The first words of a promise, and the tests that show it. A test is named without its modules, so
/// that it can move.
type Promise = (&'static str, &'static [&'static str]);

fn promises() -> impl Iterator<Item = Promise> {
    OF_TASKS.iter().chain(OF_PROGRAMS).copied()
}

#[test]
fn every_promise_has_a_test() {
    let shown: BTreeMap<_, _> = promises().collect();
    assert_eq!(shown.len(), promises().count(), "a promise is in the tables twice");

    let (promises, limits) = PAGE.split_once("## What is not promised").expect("its last section");

    let promised = first_words(promises);
    assert!(promised.len() > 50, "{promised:?}");
    let without_a_test: Vec<_> =
        promised.iter().filter(|it| shown.get(*it).is_none_or(|tests| tests.is_empty())).collect();
    assert!(without_a_test.is_empty(), "no test shows: {without_a_test:?}");
    let on_the_page: BTreeSet<_> = promised.into_iter().chain(first_words(limits)).collect();
    let unknown: Vec<_> = shown.keys().filter(|it| !on_the_page.contains(*it)).collect();
    assert!(unknown.is_empty(), "docs/guarantees.md does not say: {unknown:?}");
}

#[test]
fn every_test_that_shows_a_promise_exists() {
    let tests = names_of_tests();

    let named = promises().flat_map(|(_, tests)| tests);
    let gone: Vec<_> = named.filter(|it| !tests.contains(**it)).collect();
    assert!(gone.is_empty(), "no such tests: {gone:?}");
}

#[test]
fn every_fault_that_a_test_names_is_on_the_list() {
    let list: BTreeSet<&str> = FAULTS
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" |"))
        .map(|(number, _)| number)
        .collect();

    let tests = names_of_tests();

    let named: BTreeSet<&str> = tests.iter().flat_map(|test| faults_in(test)).collect();
    assert!(named.len() > 30, "{named:?}");
    let unknown: Vec<_> = named.difference(&list).collect();
    assert!(unknown.is_empty(), "docs/faults.md does not list: {unknown:?}");
}

/// The tests of this program, without their modules.
fn names_of_tests() -> BTreeSet<String> {
    let this = std::env::current_exe().expect("the path of this program");
    let list = Command::program(this, &["--list"]).run(SOON).success();
    let paths = list.lines().filter_map(|line| line.strip_suffix(": test"));
    paths.filter_map(|path| path.rsplit("::").next()).map(str::to_owned).collect()
}

/// `9` and `12` of `rows_9_and_12_a_program_that_…`.
fn faults_in(test: &str) -> impl Iterator<Item = &str> {
    let numbers = test.strip_prefix("row_").or_else(|| test.strip_prefix("rows_")).unwrap_or("");
    let is_number = |it: &&str| it.starts_with(|first: char| first.is_ascii_digit());
    let parts = numbers.split('_').take_while(move |it| *it == "and" || is_number(it));
    parts.filter(is_number)
}

/// The bold words at the start of each item.
fn first_words(section: &str) -> BTreeSet<&str> {
    section
        .lines()
        .filter_map(|line| line.strip_prefix("* **")?.split_once(".**"))
        .map(|(words, _)| words)
        .collect()
}
