//! Users and groups of this machine.

use std::fs;

/// The number of a user, by number or name.
pub(crate) fn user(name: &str) -> Option<u32> {
    number("/etc/passwd", name)
}

/// The number of a group, by number or name.
pub(crate) fn group(name: &str) -> Option<u32> {
    number("/etc/group", name)
}

/// The third field of the line that begins with the name.
fn number(file: &str, name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let lines = fs::read_to_string(file).unwrap_or_default();
    lines
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?)
}
