//! `[[discover]]`: where instances are found that no `[[instance]]` names.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use openvpn_fleet::InstanceSource;
use openvpn_session::Address;

use super::{
    error::{ConfigErrors, Mistakes, Place},
    instance::{Blueprint, InstanceConfig, Seed, Settings, Templated},
    reader::{Section, Value},
    secrets::FileRule,
    template::Template,
};

/// How often a source is read again although nothing says that it changed.
const REFRESH: Duration = Duration::from_secs(30);
/// How long an instance whose socket vanished is kept: OpenVPN removes its
/// socket when it ends, also when it is only restarted.
const FORGET_AFTER: Duration = Duration::from_hours(24);

/// One discovery source.
#[derive(Clone, Debug)]
pub struct DiscoverConfig {
    /// What is looked at.
    pub source: DiscoverSource,
    /// How often it is read again although nothing says that it changed.
    pub refresh: Duration,
    /// How long an instance that vanished is kept.
    pub forget_after: Duration,
    /// Where it is written.
    pub place: Place,
    blueprint: Blueprint,
}

/// What a discovery source looks at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DiscoverSource {
    /// Unix sockets whose path matches the pattern.
    Glob(PathBuf),
    /// JSON files in the file_sd format of Prometheus whose path matches the pattern.
    File(PathBuf),
}

impl DiscoverConfig {
    pub(super) fn read(mut section: Section<'_>, defaults: &Settings) -> Option<Self> {
        let place = section.place().clone();
        let (glob, file) = (section.take("glob"), section.take("file"));
        let name = section.take("name").map(|value| Templated::read(&value));
        let refresh = duration(section.take("refresh"), Duration::from_secs(1), REFRESH);
        let forget_after = duration(section.take("forget_after"), Duration::ZERO, FORGET_AFTER);
        let settings = Settings::read(&mut section).over(defaults);
        let source = match (&glob, &file) {
            (Some(glob), None) => pattern(glob).map(DiscoverSource::Glob),
            (None, Some(file)) => pattern(file).map(DiscoverSource::File),
            _ => {
                section.error("", "needs one of glob and file");
                None
            }
        };
        section.finish();
        // A bad name must not become the default one.
        let name = match name {
            Some(name) => Some(name?),
            None => None,
        };
        let source = source?;
        let default_name = match source {
            DiscoverSource::Glob(_) => Template::stem(),
            DiscoverSource::File(_) => Template::host_and_port(),
        };
        let blueprint = Blueprint::pattern(name, default_name, settings, &place);
        let config = Self {
            source,
            refresh,
            forget_after,
            place,
            blueprint,
        };
        let mistakes = glob.as_ref().or(file.as_ref())?.mistakes();
        config.try_out(mistakes).then_some(config)
    }

    /// Whether the end of their session harms the daemons it finds: `disconnect` says so.
    #[must_use]
    pub fn is_destructive(&self) -> bool {
        self.blueprint.is_destructive()
    }

    /// The instance at `address`, which this source found at `place` with these labels.
    ///
    /// # Errors
    /// A placeholder has no value here, or a name or a label is not usable.
    pub fn instance(
        &self,
        address: Address,
        labels: BTreeMap<String, String>,
        place: Place,
    ) -> Result<InstanceConfig, ConfigErrors> {
        let mistakes = Mistakes::default();
        let seed = Seed {
            address: Some(address),
            labels,
            source: InstanceSource::Discovery,
            place,
            files: FileRule::Any,
        };
        match self.blueprint.build(seed, &mistakes) {
            Some(instance) => Ok(instance),
            None => Err(mistakes.into_errors()),
        }
    }

    /// Finds the placeholders that no socket of a glob can ever fill in. Labels
    /// of file_sd are known only when its files are read.
    fn try_out(&self, mistakes: &Mistakes) -> bool {
        if matches!(self.source, DiscoverSource::File(_)) {
            return true;
        }
        let seed = Seed {
            address: Some(Address::Unix(PathBuf::from("/example.sock"))),
            labels: BTreeMap::new(),
            source: InstanceSource::Discovery,
            place: self.place.clone(),
            files: FileRule::Any,
        };
        self.blueprint.build(seed, mistakes).is_some()
    }
}

fn duration(value: Option<Value<'_>>, least: Duration, default: Duration) -> Duration {
    let most = Duration::from_hours(24 * 365);
    value
        .and_then(|value| value.duration(least..=most))
        .unwrap_or(default)
}

/// A path that may have wildcards in it.
fn pattern(value: &Value<'_>) -> Option<PathBuf> {
    let path = value.path()?;
    match glob::Pattern::new(&path.to_string_lossy()) {
        Ok(_) => Some(path),
        Err(error) => {
            value.error(format!(
                "is no pattern: {} at character {}",
                error.msg,
                error.pos + 1
            ));
            None
        }
    }
}
