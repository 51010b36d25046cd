//! Mistakes in a configuration, each with its place.

use std::{
    cell::RefCell,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where something stands: a file and, counted from 1, a line of it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The file, as it was named.
    pub file: Arc<Path>,
    /// The line; 0 means the file as a whole.
    pub line: usize,
}

/// One mistake: `file:line: key: what is wrong and what would be right`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ConfigError {
    /// Where it stands.
    pub place: Place,
    /// The key with its tables, such as `instance.hold`; empty when no key is to blame.
    pub key: String,
    /// What is wrong, in words for the person who edits the file.
    pub message: String,
}

/// Every mistake of a configuration, in the order of the files; never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl Place {
    /// What stands for the file of what no file defines.
    pub(crate) const API: &str = "the API";

    /// The place of what no file defines.
    pub(crate) fn api() -> Self {
        Self {
            file: Path::new(Self::API).into(),
            line: 0,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

impl ConfigErrors {
    /// The mistakes.
    #[must_use]
    pub fn as_slice(&self) -> &[ConfigError] {
        &self.0
    }

    pub(super) fn into_vec(self) -> Vec<ConfigError> {
        self.0
    }
}

/// One mistake per line.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects mistakes while a configuration is read, so that all are reported at once.
#[derive(Debug, Default)]
pub(super) struct Mistakes(RefCell<Vec<ConfigError>>);

impl Mistakes {
    pub(super) fn add(&self, place: &Place, key: &str, message: impl Into<String>) {
        self.0.borrow_mut().push(ConfigError {
            place: place.clone(),
            key: key.to_owned(),
            message: message.into(),
        });
    }

    /// A mistake of a file as a whole, such as one that cannot be read.
    pub(super) fn add_file(&self, file: PathBuf, message: impl Into<String>) {
        self.add(
            &Place {
                file: file.into(),
                line: 0,
            },
            "",
            message,
        );
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    pub(super) fn into_errors(self) -> ConfigErrors {
        let mut errors = self.0.into_inner();
        errors.sort();
        // Two instances with one bad default are one mistake.
        errors.dedup();
        ConfigErrors(errors)
    }
}
