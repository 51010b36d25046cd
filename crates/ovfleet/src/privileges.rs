//! What the process may: another user, more open files.

use std::fs;

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{Gid, Uid},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// Becomes another user and group, for good.
///
/// To be called before there is a second thread: the kernel knows the
/// identity of threads, and those to come inherit it.
pub(crate) fn become_user(user: Option<&str>, group: Option<&str>) -> Result<()> {
    let user = user.map(find_user).transpose()?;
    let group = match group {
        Some(group) => Some(find_group(group)?),
        None => user.and_then(|user| user.group),
    };
    // The groups first: a plain user may not change them.
    if let Some(group) = group {
        set_thread_groups(&[group])
            .context("cannot leave the supplementary groups; --group needs root")?;
        set_thread_res_gid(group, group, group)
            .with_context(|| format!("cannot become group {}", group.as_raw()))?;
    }
    if let Some(User { id, .. }) = user {
        set_thread_res_uid(id, id, id)
            .with_context(|| format!("cannot become user {}; --user needs root", id.as_raw()))?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    id: Uid,
    /// Its own group, where the system has a record of it.
    group: Option<Gid>,
}

fn find_user(name: &str) -> Result<User> {
    let table = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    match (record(&table, name), name.parse()) {
        (Some(fields), _) => {
            let [_, _, id, group, ..] = fields[..] else {
                bail!("/etc/passwd: {name}: too short")
            };
            Ok(User {
                id: Uid::from_raw(id.parse().with_context(|| format!("/etc/passwd: {name}"))?),
                group: group.parse().ok().map(Gid::from_raw),
            })
        }
        (None, Ok(id)) => Ok(User {
            id: Uid::from_raw(id),
            group: None,
        }),
        (None, Err(_)) => bail!("there is no user {name}"),
    }
}

fn find_group(name: &str) -> Result<Gid> {
    let table = fs::read_to_string("/etc/group").context("cannot read /etc/group")?;
    match (record(&table, name), name.parse()) {
        (Some(fields), _) => {
            let [_, _, id, ..] = fields[..] else {
                bail!("/etc/group: {name}: too short")
            };
            Ok(Gid::from_raw(
                id.parse().with_context(|| format!("/etc/group: {name}"))?,
            ))
        }
        (None, Ok(id)) => Ok(Gid::from_raw(id)),
        (None, Err(_)) => bail!("there is no group {name}"),
    }
}

/// The fields of the record with this name.
fn record<'a>(table: &'a str, name: &str) -> Option<Vec<&'a str>> {
    table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == name)
}

/// Allows as many open files as the system lets this process have: a session
/// and a caller each need one. Gives that number, if there is one.
pub(crate) fn raise_open_files() -> Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .context("cannot raise the limit of open files")?;
    Ok(limit.maximum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_by_their_whole_name() {
        let table = "root:x:0:0:root:/root:/bin/sh\nroots:x:7:8::/:\n";
        assert_eq!(record(table, "roots").unwrap()[2], "7");
        assert_eq!(record(table, "roo"), None);
        assert_eq!(find_user("root").unwrap().id, Uid::ROOT);
        assert_eq!(
            find_user("4711").unwrap(),
            User {
                id: Uid::from_raw(4711),
                group: None
            }
        );
        assert!(find_user("nobody-of-that-name").is_err());
        assert_eq!(find_group("root").unwrap(), Gid::ROOT);
    }

    #[test]
    fn the_limit_of_open_files_is_what_the_system_allows() {
        let allowed = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, allowed);
    }
}
