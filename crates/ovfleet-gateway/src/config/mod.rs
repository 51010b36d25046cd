//! The configuration: one TOML file and those it includes.
//!
//! A file is read key by key, so that every mistake of every file is reported
//! at once, with file, line and key. What one instance suffers from alone (its
//! password file) is no mistake of the configuration: see [`Config::problems`].

mod address;
mod certificate;
mod definition;
mod dial_in;
mod discover;
mod error;
mod files;
mod instance;
mod limits;
mod listen;
mod mux;
mod reader;
mod secrets;
mod taken;
mod template;
#[cfg(test)]
mod tests;
mod tls;
mod value;

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use openvpn_fleet::GatewayName;
use openvpn_session::open_file;
use toml::{Spanned, de::DeTable};

pub use certificate::{CertificateName, Rights};
pub use definition::Defaults;
pub use discover::{DiscoverConfig, DiscoverSource};
pub use error::{ConfigError, ConfigErrors, Place};
pub use files::ConfigFiles;
pub use instance::InstanceConfig;
pub use limits::{JournalLimits, Limits};
pub use listen::{
    DEFAULT_SOCKET, GrpcListener, HttpListener, ListenConfig, SocketConfig, TlsFiles,
};
pub use mux::{MuxAddress, MuxConfig};

pub(crate) use taken::{Clash, Holder, Taken};

use error::Mistakes;
use files::ConfigFile;
use instance::{Blueprint, Settings};
use reader::{Section, Source};

/// Everything that `ovfleet serve` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this gateway.
    pub name: GatewayName,
    /// Where state is kept that outlives the process; only one process at a time may use it.
    pub state_dir: Option<PathBuf>,
    /// Where the gateway answers.
    pub listen: ListenConfig,
    /// How much of the past is kept.
    pub journal: JournalLimits,
    /// What callers may cost.
    pub limits: Limits,
    /// The instances, in order of their names.
    pub instances: Vec<InstanceConfig>,
    /// Where further instances are found.
    pub discover: Vec<DiscoverConfig>,
    /// What holds for instances that the API defines, where they do not say otherwise.
    pub defaults: Defaults,
    /// Whether a change of the files is a reload.
    pub watch_config: bool,
    /// Where all this is written; `None` is nowhere, and cannot be read again.
    pub files: Option<ConfigFiles>,
}

impl Default for Config {
    /// A gateway with the name of this machine that listens nowhere and has no instance.
    fn default() -> Self {
        Self {
            name: default_name(),
            state_dir: None,
            listen: ListenConfig {
                grpc: Vec::new(),
                http: Vec::new(),
            },
            journal: JournalLimits::default(),
            limits: Limits::default(),
            instances: Vec::new(),
            discover: Vec::new(),
            defaults: Defaults::default(),
            watch_config: true,
            files: None,
        }
    }
}

impl Config {
    /// Reads the file at `path` and those it includes.
    ///
    /// # Errors
    /// Every mistake in them.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        Self::load_files(path).map_err(|(errors, _)| errors)
    }

    /// The same; with the mistakes comes what was read, for they may be mended in any of its files.
    ///
    /// # Errors
    /// Every mistake in them.
    pub(crate) fn load_files(path: &Path) -> Result<Self, (ConfigErrors, ConfigFiles)> {
        let mistakes = Mistakes::default();
        let (files, origin) = files::read(path, &mistakes);
        let config = read_config(&files, &mistakes);
        if mistakes.is_empty() {
            Ok(Self {
                files: Some(origin),
                ..config
            })
        } else {
            Err((mistakes.into_errors(), origin))
        }
    }

    /// Reads the configuration and checks what it points to as well: password
    /// files, certificates.
    ///
    /// # Errors
    /// Every mistake in it, or else every [problem](Self::problems).
    pub fn check(path: &Path) -> Result<Self, ConfigErrors> {
        let config = Self::load(path)?;
        let mistakes = Mistakes::default();
        config.find_problems(&mistakes);
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(mistakes.into_errors())
        }
    }

    /// What will keep single instances from being attached, while the gateway
    /// itself can start: password files that cannot be used.
    #[must_use]
    pub fn problems(&self) -> Vec<ConfigError> {
        let mistakes = Mistakes::default();
        self.find_problems(&mistakes);
        mistakes.into_errors().as_slice().to_vec()
    }

    fn find_problems(&self, mistakes: &Mistakes) {
        for instance in &self.instances {
            instance.find_problems(mistakes);
        }
    }

    /// The keys whose value differs from that in `running` and takes a restart.
    #[must_use]
    pub fn takes_restart(&self, running: &Self) -> Vec<&'static str> {
        [
            ("name", self.name != running.name),
            ("state_dir", self.state_dir != running.state_dir),
            ("listen", self.listen != running.listen),
            ("journal", self.journal != running.journal),
            ("limits", self.limits != running.limits),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

/// What is wrong with a file that holds a secret: nobody but its owner may have access.
fn check_secret_file(path: &Path, within: Option<&Path>) -> Result<(), String> {
    let shown = path.display();
    let file = open_file(path, within).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let metadata = file
        .metadata()
        .map_err(|error| format!("cannot read {shown}: {error}"))?;
    let mode = metadata.mode() & 0o777;
    if !metadata.is_file() {
        Err(format!("{shown} is not a regular file"))
    } else if mode & 0o077 != 0 {
        Err(format!(
            "others may access {shown} (mode {mode:04o}): run `chmod 600 {shown}`"
        ))
    } else {
        Ok(())
    }
}

/// The name of this machine, as far as it can name a gateway.
fn default_name() -> GatewayName {
    GatewayName::new(address::host_name())
        .or_else(|_| GatewayName::new("gateway"))
        .expect("a plain word is a name")
}

fn read_config(files: &[ConfigFile], mistakes: &Mistakes) -> Config {
    let sources: Vec<Source<'_>> = files
        .iter()
        .map(|file| Source {
            path: &file.path,
            text: &file.text,
            mistakes,
        })
        .collect();
    let tables: Vec<Spanned<DeTable<'_>>> = sources.iter().map(|source| source.parse()).collect();
    let mut roots: Vec<Section<'_>> = sources
        .iter()
        .zip(&tables)
        .map(|(source, table)| source.root(table.get_ref()))
        .collect();

    for (index, root) in roots.iter_mut().enumerate() {
        match root.take("include") {
            Some(value) if index > 0 => value.error("an included file cannot include others"),
            Some(value) => value.items().iter().for_each(|item| check_pattern(item)),
            None => {}
        }
    }
    if roots.is_empty() {
        return Config::default();
    }
    let mut config = Config::default();
    let root = owner(&mut roots, "name");
    let checked = |text: &str| {
        GatewayName::new(text).map_err(|error| format!("{text:?} is no name: {error}"))
    };
    if let Some(name) = root.take("name").and_then(|value| value.parsed(checked)) {
        config.name = name;
    }
    config.state_dir = owner(&mut roots, "state_dir")
        .take("state_dir")
        .and_then(|value| value.path());
    config.listen = listen::read(owner(&mut roots, "listen"));
    config.journal = limits::read_journal(owner(&mut roots, "journal"));
    config.limits = limits::read_limits(owner(&mut roots, "limits"));
    if let Some(watch) = owner(&mut roots, "watch_config")
        .take("watch_config")
        .and_then(|value| value.boolean())
    {
        config.watch_config = watch;
    }
    let secrets_dir = secrets::read(owner(&mut roots, "inventory"));
    let defaults = read_defaults(owner(&mut roots, "defaults"));
    for root in &mut roots {
        for section in root
            .take("instance")
            .map(|value| value.sections())
            .unwrap_or_default()
        {
            let (blueprint, seed) = Blueprint::read(section, &defaults);
            config.instances.extend(blueprint.build(seed, mistakes));
        }
        for section in root
            .take("discover")
            .map(|value| value.sections())
            .unwrap_or_default()
        {
            config
                .discover
                .extend(DiscoverConfig::read(section, &defaults));
        }
    }
    roots.into_iter().for_each(Section::finish);
    config
        .instances
        .sort_by(|a, b| (&a.spec.name, &a.place).cmp(&(&b.spec.name, &b.place)));
    taken::find_clashes(&config.instances, mistakes);
    config.defaults = Defaults {
        settings: defaults,
        secrets_dir,
    };
    config
}

fn read_defaults(root: &mut Section<'_>) -> Settings {
    let Some(mut section) = root.take("defaults").and_then(|value| value.section()) else {
        return Settings::default();
    };
    let settings = Settings::read(&mut section);
    section.finish();
    settings
}

/// The file that has a key which only one may have; the main one where none has it.
fn owner<'a, 'b>(roots: &'b mut [Section<'a>], key: &'static str) -> &'b mut Section<'a> {
    let mut holders = (0..roots.len()).filter(|index| roots[*index].contains(key));
    let first = holders.next().unwrap_or(0);
    let others: Vec<usize> = holders.collect();
    for index in others {
        let place = roots[first]
            .take(key)
            .map(|value| value.place().to_string())
            .unwrap_or_default();
        if let Some(value) = roots[index].take(key) {
            value.error(format!("is set already, at {place}"));
        }
    }
    &mut roots[first]
}

/// An error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn check_pattern(value: &reader::Value<'_>) {
    let Some(path) = value.path() else { return };
    if let Err(error) = glob::Pattern::new(&path.to_string_lossy()) {
        value.error(format!("is no pattern: {}", error.msg));
    }
}
