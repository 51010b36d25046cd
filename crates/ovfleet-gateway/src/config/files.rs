//! The files that a configuration consists of: the main one and those it includes.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{error::Mistakes, reader::Source};

/// Largest file that is read; the largest sensible one has some megabytes of instances.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most files of one `include`.
const INCLUDES_MAX: usize = 10_000;

/// Where a configuration came from, so that it can be read again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigFiles {
    /// The file that names the others.
    pub main: PathBuf,
    /// What it includes: paths, and patterns of paths.
    pub include: Vec<PathBuf>,
    /// Stands for what was read: another number than [`digest_now`](Self::digest_now) tells that there is something new.
    pub digest: u64,
}

impl ConfigFiles {
    /// Stands for what the files hold now. Blocks.
    #[must_use]
    pub fn digest_now(&self) -> u64 {
        let ignored = Mistakes::default();
        let included = self.include.iter();
        let included = included.flat_map(|pattern| included_files(pattern, &ignored));
        let paths = std::iter::once(self.main.clone()).chain(included);
        // A file that cannot be read is one state of it.
        digest(paths.map(|path| {
            let text = read_text(&path).ok();
            (path, text)
        }))
    }
}

fn digest<P: AsRef<Path>, T: AsRef<str>>(files: impl Iterator<Item = (P, Option<T>)>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (path, text) in files {
        path.as_ref().hash(&mut hasher);
        text.as_ref().map(AsRef::as_ref).hash(&mut hasher);
    }
    hasher.finish()
}

pub(super) struct ConfigFile {
    pub(super) path: Arc<Path>,
    pub(super) text: String,
}

/// The main file, then the included ones in order of their names; and what it includes.
pub(super) fn read(path: &Path, mistakes: &Mistakes) -> (Vec<ConfigFile>, ConfigFiles) {
    let mut origin = ConfigFiles {
        main: path.to_owned(),
        include: Vec::new(),
        digest: 0,
    };
    let Some(main) = read_file(path, mistakes) else {
        return (Vec::new(), origin);
    };
    let included = {
        let source = Source {
            path: &main.path,
            text: &main.text,
            mistakes: &Mistakes::default(),
        };
        let table = source.parse();
        let mut root = source.root(table.get_ref());
        root.take("include").map(|value| {
            value
                .items()
                .iter()
                .filter_map(|item| item.path())
                .collect()
        })
    };
    origin.include = included.unwrap_or_default();
    let mut files = vec![main];
    for pattern in &origin.include {
        files.extend(
            included_files(pattern, mistakes)
                .iter()
                .filter_map(|path| read_file(path, mistakes)),
        );
    }
    origin.digest = digest(files.iter().map(|file| (&file.path, Some(&file.text))));
    (files, origin)
}

/// The files that a pattern of `include` means. A path without wildcards has to exist.
fn included_files(pattern: &Path, mistakes: &Mistakes) -> Vec<PathBuf> {
    let text = pattern.to_string_lossy();
    if !text.contains(['*', '?', '[']) {
        return vec![pattern.to_owned()];
    }
    // A pattern that cannot be read is reported where `include` is.
    let Ok(paths) = glob::glob(&text) else {
        return Vec::new();
    };
    let paths: Vec<PathBuf> = paths
        .take(INCLUDES_MAX + 1)
        .filter_map(Result::ok)
        .collect();
    if paths.len() > INCLUDES_MAX {
        mistakes.add_file(
            pattern.to_owned(),
            format!("matches more than {INCLUDES_MAX} files"),
        );
    }
    paths
}

fn read_file(path: &Path, mistakes: &Mistakes) -> Option<ConfigFile> {
    match read_text(path) {
        Ok(text) => Some(ConfigFile {
            path: path.into(),
            text,
        }),
        Err(error) => {
            mistakes.add_file(path.to_owned(), format!("cannot read the file: {error}"));
            None
        }
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("the file is too large"));
    }
    fs::read_to_string(path)
}
