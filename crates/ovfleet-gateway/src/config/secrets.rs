//! `[inventory]`: which files an instance may name that a caller defines.
//!
//! Whoever controls the gateway says where an instance is, and what is in its password file is sent there: it must not be
//! any file of the host.

use std::path::{Path, PathBuf};

use super::{
    reader::Section,
    template::{Template, Values},
};

/// Which files an instance may name.
#[derive(Clone, Debug, Default)]
pub(crate) enum FileRule {
    /// Any: it is written in the configuration.
    #[default]
    Any,
    /// Of one that a caller defines: those under this directory.
    Under(Option<PathBuf>),
}

impl FileRule {
    /// The directory in which files must really be that seem to be there.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::Any => None,
            Self::Under(directory) => directory.clone(),
        }
    }

    /// Whether a caller may name `path`.
    pub(super) fn check_named(&self, path: &Path) -> Result<(), String> {
        let directory = match self {
            Self::Any => return Ok(()),
            Self::Under(Some(directory)) => directory,
            Self::Under(None) => {
                return Err(
                    "an instance that is made at run time may name no files: set secrets_dir under [inventory] in the \
                     configuration, and put the file there"
                        .to_owned(),
                );
            }
        };
        let is_there =
            path.starts_with(directory) && !path.components().any(|part| part.as_os_str() == "..");
        is_there.then_some(()).ok_or_else(|| {
            format!(
                "{} is not under {}, and an instance that is made at run time may name no other files: put it there, or \
                 change secrets_dir under [inventory] in the configuration",
                path.display(),
                directory.display()
            )
        })
    }

    /// Whether what a caller says leads a file name of the configuration elsewhere.
    pub(super) fn check_filled(
        &self,
        template: &Template,
        values: &Values<'_>,
    ) -> Result<(), String> {
        if matches!(self, Self::Any) {
            return Ok(());
        }
        let leads = |value: &&str| value.contains('/') || matches!(*value, "." | "..");
        match template.filled_in(values).find(leads) {
            None => Ok(()),
            Some(value) => Err(format!(
                "{value:?} cannot be part of a file name, where [defaults] puts it"
            )),
        }
    }
}

/// `secrets_dir`, if it is set.
pub(super) fn read(root: &mut Section<'_>) -> Option<PathBuf> {
    let mut section = root.take("inventory").and_then(|value| value.section())?;
    let directory = section.take("secrets_dir").and_then(|value| value.path());
    section.finish();
    directory
}
