//! The page of promises names tests; a promise whose test has gone is shown by nothing.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use crate::support::command::Command;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn every_test_that_the_page_of_guarantees_names_is_there() {
    let page = fs::read_to_string("docs/GUARANTEES.md").expect("the page is there");
    let this = std::env::current_exe().expect("the path of this program");

    let list = Command::program(this, &["--list"]).run(SOON).success();

    let there: BTreeSet<&str> =
        list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let named: Vec<&str> = page.split('`').skip(1).step_by(2).filter(|it| is_test(it)).collect();
    assert!(named.len() > 50, "{named:?}");
    let gone: Vec<_> = named.into_iter().filter(|it| !there.contains(it)).collect();
    assert!(gone.is_empty(), "no such tests: {gone:?}");
}

fn is_test(quoted: &str) -> bool {
    quoted.contains("::") && !quoted.contains(' ')
}
