//! The configuration: one TOML file and those it includes.
//!
//! A file is read key by key, so that every mistake of every file is reported
//! at once, with file, line and key. What one instance suffers from alone (its
//! password file) is no mistake of the configuration: see [`Config::problems`].

mod address;
mod certificate;
mod dial_in;
mod discover;
mod error;
mod instance;
mod limits;
mod listen;
mod mux;
mod reader;
mod template;
#[cfg(test)]
mod tests;
mod tls;
mod value;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use openvpn_fleet::GatewayName;
use openvpn_session::Address;
use toml::{Spanned, de::DeTable};

pub use certificate::{CertificateName, Rights};
pub use discover::{DiscoverConfig, DiscoverSource};
pub use error::{ConfigError, ConfigErrors, Place};
pub use instance::InstanceConfig;
pub use limits::{JournalLimits, Limits};
pub use listen::{
    DEFAULT_SOCKET, GrpcListener, HttpListener, ListenConfig, SocketConfig, TlsFiles,
};
pub use mux::{MuxAddress, MuxConfig};

use crate::listen::load_tls;
use error::Mistakes;
use instance::{Blueprint, Settings};
use reader::{Section, Source};

/// Largest file that is read; the largest sensible one has some megabytes of instances.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most files of one `include`.
const INCLUDES_MAX: usize = 10_000;

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
        }
    }
}

impl Config {
    /// Reads the file at `path` and those it includes.
    ///
    /// # Errors
    /// Every mistake in them.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let mistakes = Mistakes::default();
        let files = read_files(path, &mistakes);
        let config = read_config(&files, &mistakes);
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(mistakes.into_errors())
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
            for socket in &instance.mux {
                if let Some(file) = &socket.password_file
                    && let Err(message) = check_secret_file(file)
                {
                    let message = format!("instance {}: {message}", instance.spec.name);
                    mistakes.add(&instance.place, "mux.password_file", message);
                }
                if let MuxAddress::Tls(_, files) = &socket.address
                    && let Err(error) = load_tls(files, None)
                {
                    let message = format!("instance {}: {}", instance.spec.name, chain(&error));
                    mistakes.add(&instance.place, "mux.tls", message);
                }
            }
            let session = &instance.spec.session;
            if matches!(session.address, Address::Tls { .. })
                && let Err(error) = session.tls.check()
            {
                let message = format!("instance {}: {error}", instance.spec.name);
                mistakes.add(&instance.place, "instance.tls", message);
            }
            let Some(file) = &session.password_file else {
                continue;
            };
            let place = instance.password_place.as_ref().unwrap_or(&instance.place);
            if let Err(message) = check_secret_file(file) {
                mistakes.add(
                    place,
                    "password_file",
                    format!("instance {}: {message}", instance.spec.name),
                );
            }
        }
    }
}

/// What is wrong with a file that holds a secret: nobody but its owner may have access.
fn check_secret_file(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let file = fs::File::open(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
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

struct ConfigFile {
    path: Arc<Path>,
    text: String,
}

/// The main file, then the included ones in order of their names.
fn read_files(path: &Path, mistakes: &Mistakes) -> Vec<ConfigFile> {
    let Some(main) = read_file(path, mistakes) else {
        return Vec::new();
    };
    let included = {
        let source = Source {
            path: &main.path,
            text: &main.text,
            mistakes: &Mistakes::default(),
        };
        let table = source.parse();
        let mut root = source.root(table.get_ref());
        root.take("include").map(|value| {
            value
                .items()
                .iter()
                .filter_map(|item| item.path())
                .collect()
        })
    };
    let patterns: Vec<PathBuf> = included.unwrap_or_default();
    let mut files = vec![main];
    for pattern in patterns {
        files.extend(
            included_files(&pattern, mistakes)
                .iter()
                .filter_map(|path| read_file(path, mistakes)),
        );
    }
    files
}

/// The files that a pattern of `include` means. A path without wildcards has to exist.
fn included_files(pattern: &Path, mistakes: &Mistakes) -> Vec<PathBuf> {
    let text = pattern.to_string_lossy();
    if !text.contains(['*', '?', '[']) {
        return vec![pattern.to_owned()];
    }
    // A pattern that cannot be read is reported where `include` is.
    let Ok(paths) = glob::glob(&text) else {
        return Vec::new();
    };
    let paths: Vec<PathBuf> = paths
        .take(INCLUDES_MAX + 1)
        .filter_map(Result::ok)
        .collect();
    if paths.len() > INCLUDES_MAX {
        mistakes.add_file(
            pattern.to_owned(),
            format!("matches more than {INCLUDES_MAX} files"),
        );
    }
    paths
}

fn read_file(path: &Path, mistakes: &Mistakes) -> Option<ConfigFile> {
    let read = || {
        if fs::metadata(path)?.len() > FILE_BYTES_MAX {
            return Err(std::io::Error::other("the file is too large"));
        }
        fs::read_to_string(path)
    };
    match read() {
        Ok(text) => Some(ConfigFile {
            path: path.into(),
            text,
        }),
        Err(error) => {
            mistakes.add_file(path.to_owned(), format!("cannot read the file: {error}"));
            None
        }
    }
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
    let defaults = read_defaults(owner(&mut roots, "defaults"));
    for root in &mut roots {
        for section in root
            .take("instance")
            .map(|value| value.sections())
            .unwrap_or_default()
        {
            let blueprint = Blueprint::read(section, &defaults);
            config
                .instances
                .extend(blueprint.and_then(|(print, seed)| print.build(seed, mistakes)));
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
    find_clashes(&config.instances, mistakes);
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

/// Reports each instance whose name or address another one before it has. Two
/// sessions to one address would fight for the daemon's only slot.
fn find_clashes(instances: &[InstanceConfig], mistakes: &Mistakes) {
    let (mut names, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for instance in instances {
        if let Some(first) = names.insert(&instance.spec.name, &instance.place) {
            let message = format!(
                "two instances are called {}: the other is at {first}",
                instance.spec.name
            );
            mistakes.add(&instance.place, "instance.name", message);
        }
        let address = instance.spec.session.address.to_string();
        if let Some((name, place)) =
            addresses.insert(port(&address), (&instance.spec.name, &instance.place))
        {
            let message = format!("{address} is the address of instance {name} too, at {place}");
            mistakes.add(&instance.place, "instance.address", message);
        }
    }
    for instance in instances {
        for socket in &instance.mux {
            let address = socket.address.shown();
            let holder = (&instance.spec.name, &instance.place);
            if let Some((name, place)) = addresses.insert(port(&address), holder) {
                let message = format!("{address} is an address of instance {name} too, at {place}");
                mistakes.add(&instance.place, "instance.mux", message);
            }
        }
    }
}

/// An address without whether it speaks TLS: a port is taken by either.
fn port(address: &str) -> String {
    address
        .strip_prefix("tls:")
        .map_or_else(|| address.to_owned(), |port| format!("tcp:{port}"))
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
