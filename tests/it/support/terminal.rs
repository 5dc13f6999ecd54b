//! A command line on a terminal of its own, and what it writes there.

use std::path::Path;
use std::time::Duration;

use super::command::{Command, Output};

/// Runs a shell's command line on a terminal. Returns what it wrote there, each time that it began a
/// row, or the same one anew.
pub(crate) fn on_a_terminal(line: &str, dir: &Path, within: Duration) -> (Output, Vec<String>) {
    let line = format!("stty cols 120; {line}");
    let terminal = Command::program("script", &["-qefc", &line, "/dev/null"])
        .current_dir(dir)
        .env("TERM", "xterm");
    let output = terminal.run(within);
    let text = without_controls(&output.stdout());
    let rows = text.split(['\r', '\n']).map(str::trim_end);
    let rows = rows.filter(|row| !row.is_empty()).map(str::to_string);
    (output, rows.collect())
}

/// The text without what begins with an escape and ends with a letter.
fn without_controls(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let mut plain = parts.next().unwrap_or_default().to_string();
    for part in parts {
        plain +=
            part.split_once(|it: char| it.is_ascii_alphabetic()).map_or("", |(_, after)| after);
    }
    plain
}
