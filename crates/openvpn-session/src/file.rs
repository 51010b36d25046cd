//! Files that a configuration names.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Opens a file to read it. One that is named under `within` must also be there when all links are followed: who may
/// name files under it, and no others, gets no others. Blocks.
///
/// # Errors
/// What the system says, or that the file is elsewhere.
pub fn open_file(path: &Path, within: Option<&Path>) -> io::Result<File> {
    let Some(within) = within.filter(|within| path.starts_with(within)) else {
        return File::open(path);
    };
    let real = path.canonicalize()?;
    if !real.starts_with(within.canonicalize()?) {
        let message = format!("links lead it out of {}", within.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let file = File::open(path)?;
    // What was looked at is what was opened, whoever changes a link in between.
    let (opened, looked_at) = (file.metadata()?, fs::metadata(real)?);
    if (opened.dev(), opened.ino()) != (looked_at.dev(), looked_at.ino()) {
        return Err(io::Error::other("it was replaced while it was opened"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Whoever may name files of one directory must not get at others, by no name of theirs.
    #[test]
    fn only_what_is_really_there_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let within = path("secrets");
        fs::create_dir_all(within.join("..data")).unwrap();
        fs::write(path("outside"), "x").unwrap();
        fs::write(within.join("inside"), "x").unwrap();
        fs::write(within.join("..data/mounted"), "x").unwrap();
        symlink("../outside", within.join("relative")).unwrap();
        symlink(path("outside"), within.join("absolute")).unwrap();
        symlink("..", within.join("up")).unwrap();
        symlink("..data/mounted", within.join("mounted")).unwrap();
        symlink(&within, path("alias")).unwrap();
        let open = |name: &str| open_file(&within.join(name), Some(&within)).map(drop);
        for name in ["inside", "mounted", "up/secrets/inside"] {
            open(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        for name in ["relative", "absolute", "up/outside", "../outside", "none"] {
            assert!(open(name).is_err(), "{name}");
        }
        let alias = path("alias");
        open_file(&alias.join("inside"), Some(&alias)).unwrap();
        // What is named elsewhere is none of its business.
        open_file(&path("outside"), Some(&within)).unwrap();
    }
}
