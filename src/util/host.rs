//! The name of this machine.

use std::fs;

/// Its name, or `unknown`.
pub(crate) fn host_name() -> String {
    let name = ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok());
    let name = name.unwrap_or_default().trim().to_string();
    if name.is_empty() { "unknown".into() } else { name }
}
