//! The files that a configuration consists of: the main one and those it includes.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher as _},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{error::Mistakes, reader::Source};
use crate::directory_watch::{has_wildcards, matches};

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
        let main = FileRead::new(self.main.clone(), &ignored);
        let included = self.include.iter();
        let included = included.flat_map(|pattern| read_included(pattern, &ignored));
        digest(std::iter::once(main).chain(included))
    }
}

/// What came of reading a file, or a directory of them.
#[derive(Hash)]
struct FileRead {
    path: PathBuf,
    /// `None`: it cannot be read, which is one state of it.
    text: Option<String>,
}

fn digest(files: impl Iterator<Item = impl Hash>) -> u64 {
    let mut hasher = DefaultHasher::new();
    files.for_each(|file| file.hash(&mut hasher));
    hasher.finish()
}

pub(super) struct ConfigFile {
    pub(super) path: Arc<Path>,
    pub(super) text: String,
}

/// The main file, then the included ones in order of their names, as far as they can be read; and what it includes.
pub(super) fn read(path: &Path, mistakes: &Mistakes) -> (Vec<ConfigFile>, ConfigFiles) {
    let main = FileRead::new(path.to_owned(), mistakes);
    let include = main.include();
    let mut files = vec![main];
    for pattern in &include {
        files.extend(read_included(pattern, mistakes));
    }
    let origin = ConfigFiles {
        main: path.to_owned(),
        include,
        digest: digest(files.iter()),
    };
    let files = files.into_iter().filter_map(|file| {
        Some(ConfigFile {
            path: file.path.into(),
            text: file.text?,
        })
    });
    (files.collect(), origin)
}

/// The files that a pattern of `include` means. A path without wildcards has to exist.
fn read_included(pattern: &Path, mistakes: &Mistakes) -> Vec<FileRead> {
    if !has_wildcards(pattern) {
        return vec![FileRead::new(pattern.to_owned(), mistakes)];
    }
    // A pattern that cannot be read is reported where `include` is.
    let found = matches(pattern).take(INCLUDES_MAX + 1);
    let files: Vec<FileRead> = found
        .map(|found| match found {
            Ok(path) => FileRead::new(path, mistakes),
            Err(unreadable) => {
                mistakes.add_file(pattern.to_owned(), unreadable.to_string());
                let path = unreadable.path;
                FileRead { path, text: None }
            }
        })
        .collect();
    if files.len() > INCLUDES_MAX {
        mistakes.add_file(
            pattern.to_owned(),
            format!("matches more than {INCLUDES_MAX} files"),
        );
    }
    files
}

impl FileRead {
    fn new(path: PathBuf, mistakes: &Mistakes) -> Self {
        let text = read_text(&path).inspect_err(|error| {
            mistakes.add_file(path.clone(), format!("cannot read the file: {error}"));
        });
        let text = text.ok();
        Self { path, text }
    }

    /// What the file includes, whatever else is wrong with it.
    fn include(&self) -> Vec<PathBuf> {
        let Some(text) = &self.text else {
            return Vec::new();
        };
        let source = Source {
            path: &Arc::from(self.path.as_path()),
            text,
            mistakes: &Mistakes::default(),
        };
        let table = source.parse();
        let mut root = source.root(table.get_ref());
        let include = root.take("include").map(|value| {
            let items = value.items();
            items.iter().filter_map(|item| item.path()).collect()
        });
        include.unwrap_or_default()
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("the file is too large"));
    }
    fs::read_to_string(path)
}
