//! One instance that the API defines: an `[[instance]]` table like those of the file, read by the same code.

use std::path::PathBuf;

use openvpn_fleet::InstanceSource;
use openvpn_session::Address;

use crate::listen::load_tls_within;

use super::{
    ConfigError, ConfigErrors, InstanceConfig, MuxAddress, Place, chain, check_secret_file,
    error::Mistakes,
    instance::{Blueprint, Settings},
    reader::Source,
    secrets::FileRule,
};

/// What holds for an instance that the API defines: `[defaults]`, where it does not say otherwise, and which files it
/// may name.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    pub(super) settings: Settings,
    /// The directory of the files that it may name; `None`: it may name none.
    pub(super) secrets_dir: Option<PathBuf>,
}

impl Defaults {
    /// The built-in ones, with a directory of files that may be named.
    #[cfg(test)]
    pub(crate) fn with_secrets_dir(directory: Option<&str>) -> Self {
        Self {
            secrets_dir: directory.map(Into::into),
            ..Self::default()
        }
    }

    /// The instance that a table defines, given as the text of a file with this one `[[instance]]`.
    ///
    /// # Errors
    /// Every mistake in it. The keys are those of the file, such as `instance.address`.
    pub(crate) fn instance(&self, text: &str) -> Result<InstanceConfig, ConfigErrors> {
        let mistakes = Mistakes::default();
        let instance = self.read(text, &mistakes);
        match instance {
            Some(instance) if mistakes.is_empty() => Ok(instance),
            _ => Err(mistakes.into_errors()),
        }
    }

    fn read(&self, text: &str, mistakes: &Mistakes) -> Option<InstanceConfig> {
        let place = Place::api();
        let source = Source {
            path: &place.file,
            text,
            mistakes,
        };
        let table = source.parse();
        let mut root = source.root(table.get_ref());
        let section = root.require("instance")?.sections().into_iter().next()?;
        let (blueprint, mut seed) = Blueprint::read(section, &self.settings);
        root.finish();
        seed.source = InstanceSource::Api;
        seed.files = FileRule::Under(self.secrets_dir.clone());
        // Lines of that text are nobody's business.
        seed.place = place;
        blueprint.build(seed, mistakes)
    }
}

impl InstanceConfig {
    /// What will keep this instance from being attached, or a virtual socket of it from being opened: password files
    /// and certificates that cannot be used. Reads files.
    pub(crate) fn problems(&self) -> Vec<ConfigError> {
        let mistakes = Mistakes::default();
        self.find_problems(&mistakes);
        mistakes.into_errors().into_vec()
    }

    pub(super) fn find_problems(&self, mistakes: &Mistakes) {
        let name = &self.spec.name;
        for socket in &self.mux {
            let within = socket.files_within.as_deref();
            if let Some(file) = &socket.password_file
                && let Err(message) = check_secret_file(file, within)
            {
                let message = format!("instance {name}: {message}");
                mistakes.add(&self.place, "instance.mux.password_file", message);
            }
            if let MuxAddress::Tls(_, files) = &socket.address
                && let Err(error) = load_tls_within(files, None, within)
            {
                let message = format!("instance {name}: {}", chain(&error));
                mistakes.add(&self.place, "instance.mux.tls", message);
            }
        }
        let session = &self.spec.session;
        let within = session.files_within.as_deref();
        if matches!(session.address, Address::Tls { .. })
            && let Err(error) = session.tls.check(within)
        {
            let message = format!("instance {name}: {error}");
            mistakes.add(&self.place, "instance.tls", message);
        }
        if let Some(file) = &session.password_file
            && let Err(message) = check_secret_file(file, within)
        {
            let place = self.password_place.as_ref().unwrap_or(&self.place);
            let message = format!("instance {name}: {message}");
            mistakes.add(place, "password_file", message);
        }
    }
}
