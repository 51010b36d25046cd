//! One instance that the API defines: an `[[instance]]` table like those of the file, read by the same code.

use openvpn_fleet::InstanceSource;
use openvpn_session::Address;

use crate::listen::load_tls;

use super::{
    ConfigError, ConfigErrors, InstanceConfig, MuxAddress, Place, chain, check_secret_file,
    error::Mistakes,
    instance::{Blueprint, Settings},
    reader::Source,
};

/// `[defaults]`: what holds for every instance that does not say otherwise.
#[derive(Clone, Debug, Default)]
pub struct Defaults(pub(super) Settings);

impl Defaults {
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
        let (blueprint, mut seed) = Blueprint::read(section, &self.0);
        root.finish();
        seed.source = InstanceSource::Api;
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
            if let Some(file) = &socket.password_file
                && let Err(message) = check_secret_file(file)
            {
                let message = format!("instance {name}: {message}");
                mistakes.add(&self.place, "instance.mux.password_file", message);
            }
            if let MuxAddress::Tls(_, files) = &socket.address
                && let Err(error) = load_tls(files, None)
            {
                let message = format!("instance {name}: {}", chain(&error));
                mistakes.add(&self.place, "instance.mux.tls", message);
            }
        }
        let session = &self.spec.session;
        if matches!(session.address, Address::Tls { .. })
            && let Err(error) = session.tls.check()
        {
            let message = format!("instance {name}: {error}");
            mistakes.add(&self.place, "instance.tls", message);
        }
        if let Some(file) = &session.password_file
            && let Err(message) = check_secret_file(file)
        {
            let place = self.password_place.as_ref().unwrap_or(&self.place);
            let message = format!("instance {name}: {message}");
            mistakes.add(place, "password_file", message);
        }
    }
}
