//! The terminal that a secret is typed on.

use std::{io, os::fd::AsFd};

use rustix::{
    fd::OwnedFd,
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr},
};

/// While it lives, what is typed is not shown.
#[derive(Debug)]
pub(crate) struct HiddenInput {
    terminal: OwnedFd,
    before: Termios,
}

/// Stops showing what is typed.
pub(crate) fn hide_input(terminal: &impl AsFd) -> io::Result<HiddenInput> {
    let terminal = terminal.as_fd().try_clone_to_owned()?;
    let before = tcgetattr(&terminal)?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&terminal, OptionalActions::Flush, &hidden)?;
    Ok(HiddenInput { terminal, before })
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        // Nothing can be done about it here; `stty sane` helps.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}
