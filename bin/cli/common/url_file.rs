//! Reads the broker's URLs from a file, where no other user sees the password.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use log::warn;

use crate::cli::common::error::CommandError;

const OPTION: &str = "--url-file";

/// The URLs in a file: one on each line, or separated by commas.
pub(crate) fn read(path: &Path) -> Result<Vec<String>, CommandError> {
    let refused = |reason: String| CommandError::usage(OPTION, reason);
    let text =
        fs::read_to_string(path).map_err(|it| refused(format!("{}: {it}", path.display())))?;
    warn_if_readable_by_others(path);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let urls: Vec<String> = lines.map(String::from).collect();
    if urls.is_empty() {
        return Err(refused(format!("{} is empty; write the broker's URL there", path.display())));
    }
    Ok(urls)
}

fn warn_if_readable_by_others(path: &Path) {
    let mode = fs::metadata(path).map_or(0, |it| it.permissions().mode());
    if mode & 0o004 != 0 {
        let path = path.display();
        warn!("every user of this machine may read the password in {path}; run: chmod o= {path}");
    }
}
