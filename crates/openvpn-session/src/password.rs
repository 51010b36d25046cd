//! The file with the management password.

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use openvpn_management::{EncodeError, Secret};

use crate::file::open_file;

/// Longest first line taken; OpenVPN itself reads no more than 127 bytes of a management password.
const PASSWORD_BYTES_MAX: u64 = 1_024;

/// Access bits nobody but the owner may have.
const GROUP_AND_OTHERS: u32 = 0o077;

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// There is no file.
    #[error("the daemon asks for a password and none is configured: set password_file")]
    NotConfigured,
    /// The file cannot be read.
    #[error("the password file {} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Others than its owner have access to the file.
    #[error(
        "others may read the password file {path} (mode {mode:04o}): chmod 600 {path}",
        path = path.display()
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is no password in it.
    #[error("the first line of the password file {} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Its first line is too long.
    #[error(
        "the first line of the password file {} is longer than {PASSWORD_BYTES_MAX} bytes",
        path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It has bytes that cannot be sent.
    #[error("the password in {} cannot be sent: {error}", path.display())]
    NotSendable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: EncodeError,
    },
}

impl PasswordError {
    pub(crate) fn unreadable(path: &Path, error: io::Error) -> Self {
        Self::Unreadable {
            path: path.to_owned(),
            error,
        }
    }
}

/// The first line of the file, without its line end; see [`open_file`] for `within`. Blocks.
///
/// # Errors
/// [`PasswordError`].
pub fn read(path: &Path, within: Option<&Path>) -> Result<Secret, PasswordError> {
    let unreadable = |error| PasswordError::unreadable(path, error);
    let file = open_file(path, within).map_err(unreadable)?;
    // Of the open file, so that what is checked is what is read.
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(io::Error::other("it is not a regular file")));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & GROUP_AND_OTHERS != 0 {
        return Err(PasswordError::TooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    let mut bytes = Vec::new();
    file.take(PASSWORD_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(PasswordError::Empty {
            path: path.to_owned(),
        });
    }
    if line.len() as u64 > PASSWORD_BYTES_MAX {
        return Err(PasswordError::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(Secret::new(line.to_vec()))
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    inode: u64,
    length: u64,
    mode: u32,
    modified: Option<SystemTime>,
}

impl Fingerprint {
    /// `None` if the file cannot be looked at, which is a state of its own. Blocks.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata: Metadata = fs::metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            length: metadata.len(),
            mode: metadata.mode(),
            modified: metadata.modified().ok(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
        file
    }

    /// A password is everything up to the line end, spaces and quotes included: the daemon compares byte for byte.
    #[test]
    fn the_first_line_is_the_password() {
        for (content, expected) in [
            (&b"s3cret pass\n"[..], &b"s3cret pass"[..]),
            (b"no line end", b"no line end"),
            (b"dos\r\nsecond\n", b"dos"),
            (b" \"quoted\" \n", b" \"quoted\" "),
            (b"\xff\xfe\n", b"\xff\xfe"),
        ] {
            let file = file(content, 0o600);
            assert_eq!(read(file.path(), None).unwrap().expose(), expected);
        }
    }

    /// A file others may read is refused by name and mode, with the remedy.
    #[test]
    fn a_file_others_may_read_is_refused() {
        for mode in [0o640, 0o604, 0o660, 0o601] {
            let file = file(b"secret\n", mode);
            let error = read(file.path(), None).unwrap_err().to_string();
            let path = file.path().display().to_string();
            assert!(error.contains(&format!("mode {mode:04o}")), "{error}");
            assert!(error.contains(&format!("chmod 600 {path}")), "{error}");
        }
    }

    /// Nothing that is no password is ever sent.
    #[test]
    fn what_is_no_password_is_refused() {
        assert!(matches!(
            read(file(b"\nsecond\n", 0o600).path(), None),
            Err(PasswordError::Empty { .. })
        ));
        assert!(matches!(
            read(file(&[b'x'; 1_025], 0o600).path(), None),
            Err(PasswordError::TooLong { .. })
        ));
        assert!(matches!(
            read(Path::new("/nonexistent/password"), None),
            Err(PasswordError::Unreadable { .. })
        ));
        assert!(matches!(
            read(Path::new("/proc/self"), None),
            Err(PasswordError::Unreadable { .. })
        ));
    }
}
