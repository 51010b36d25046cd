//! `completions` and `man`: what the definition of the command line gives for
//! free.

use std::{fs, io, path::Path};

use anyhow::Context as _;
use clap_complete::Shell;

use crate::{
    args::definition,
    failure::{Outcome, Verdict},
};

/// Writes the completion script of a shell to standard output.
pub(crate) fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut definition(), "ovfleet", &mut script);
    write(&script)
}

/// Writes the main page to standard output, or every page into a directory.
pub(crate) fn man(dir: Option<&Path>) -> Outcome {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(definition()).render(&mut page)?;
        return write(&page);
    };
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(definition(), dir))
        .with_context(|| format!("cannot write manual pages into {}", dir.display()))?;
    Ok(Verdict::Done)
}

fn write(text: &[u8]) -> Outcome {
    io::Write::write_all(&mut io::stdout().lock(), text)?;
    Ok(Verdict::Done)
}
