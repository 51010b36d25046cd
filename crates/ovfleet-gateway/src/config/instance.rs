//! `[[instance]]` and `[defaults]`: how one instance is reached and watched.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    time::Duration,
};

use openvpn_fleet::{InstanceName, InstanceSource, InstanceSpec, Labels};
use openvpn_session::{Address, DisconnectPolicy, HoldPolicy, SessionConfig, TlsConfig};

use super::{
    address::AddressParts,
    dial_in::DialInTemplate,
    error::{Mistakes, Place},
    mux::{self, MuxConfig, MuxTemplate},
    reader::{Section, Value},
    secrets::FileRule,
    template::{Template, Values},
    tls::TlsTemplate,
};

/// Longest value of a label, in bytes.
const LABEL_VALUE_BYTES_MAX: usize = 256;
/// Most labels of one instance.
const LABELS_MAX: usize = 64;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// One instance, every setting decided, and where it is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InstanceConfig {
    /// What the fleet needs to know of it.
    pub spec: InstanceSpec,
    /// The table, or the discovery source.
    pub place: Place,
    /// Where `password_file` is written.
    pub password_place: Option<Place>,
    /// Its virtual management sockets.
    pub mux: Vec<MuxConfig>,
}

/// A string with placeholders that knows its place.
#[derive(Clone, Debug)]
pub(super) struct Templated {
    template: Template,
    key: String,
    place: Place,
}

impl Templated {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let template = value.parsed(Template::parse)?;
        Some(Self {
            template,
            key: value.key().to_owned(),
            place: value.place().clone(),
        })
    }

    pub(super) fn error(&self, mistakes: &Mistakes, message: impl Into<String>) {
        mistakes.add(&self.place, &self.key, message);
    }

    fn expand(&self, values: &Values<'_>) -> Option<String> {
        self.template.expand(values).ok()
    }

    /// The text; a placeholder without a value is a mistake.
    pub(super) fn require(&self, values: &Values<'_>, mistakes: &Mistakes) -> Option<String> {
        self.template
            .expand(values)
            .map_err(|placeholder| {
                self.error(mistakes, format!("`{placeholder}` has no value here"))
            })
            .ok()
    }

    /// A file that is read: `text`, which this is with those values, as a path, see [`resolve`](Self::resolve).
    pub(super) fn file(
        &self,
        text: &str,
        values: &Values<'_>,
        mistakes: &Mistakes,
    ) -> Option<PathBuf> {
        let path = self.resolve(text, mistakes)?;
        let allowed = match self.place.file.as_os_str() == Place::API {
            true => values.files.check_named(&path),
            false => values.files.check_filled(&self.template, values),
        };
        allowed
            .map_err(|message| self.error(mistakes, message))
            .ok()?;
        Some(path)
    }

    /// A relative path is relative to the directory of the file it stands in, and a mistake where it stands in none.
    pub(super) fn resolve(&self, path: &str, mistakes: &Mistakes) -> Option<PathBuf> {
        let is_relative = Path::new(path).is_relative();
        if is_relative && self.place.file.as_os_str() == Place::API {
            self.error(mistakes, format!("{path:?} is no absolute path"));
            return None;
        }
        let directory = self.place.file.parent().unwrap_or(Path::new(""));
        Some(directory.join(path))
    }
}

/// The settings that `[defaults]`, `[[instance]]` and `[[discover]]` share;
/// `None` leaves the decision to the layer below.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    password_file: Option<Templated>,
    labels: BTreeMap<String, Templated>,
    hold: Option<HoldPolicy>,
    disconnect: Option<DisconnectPolicy>,
    dial_in: DialInTemplate,
    tls: Option<TlsTemplate>,
    log: Option<bool>,
    bytecount: Option<Option<Duration>>,
    status_interval: Option<Duration>,
    clients_max: Option<usize>,
    unresponsive_reconnect: Option<Duration>,
    mux: Option<Vec<MuxTemplate>>,
}

impl Settings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let hold = |text: &str| match text {
            "release" => Ok(HoldPolicy::Release),
            "keep" => Ok(HoldPolicy::Keep),
            _ => Err(format!("`{text}` is neither \"release\" nor \"keep\"")),
        };
        let disconnect = |text: &str| match text {
            "harmless" => Ok(DisconnectPolicy::Harmless),
            "destructive" => Ok(DisconnectPolicy::Destructive),
            _ => Err(format!(
                "`{text}` is neither \"harmless\" nor \"destructive\""
            )),
        };
        Self {
            password_file: section
                .take("password_file")
                .and_then(|value| Templated::read(&value)),
            labels: section
                .take("labels")
                .map(|value| read_labels(&value))
                .unwrap_or_default(),
            hold: section.take("hold").and_then(|value| value.parsed(hold)),
            disconnect: section
                .take("disconnect")
                .and_then(|value| value.parsed(disconnect)),
            dial_in: section
                .take("dial_in")
                .map(|value| DialInTemplate::read(&value))
                .unwrap_or_default(),
            tls: section
                .take("tls")
                .and_then(|value| TlsTemplate::read(&value)),
            log: section.take("log").and_then(|value| value.boolean()),
            bytecount: section
                .take("bytecount")
                .and_then(|value| read_bytecount(&value)),
            status_interval: section
                .take("status_interval")
                .and_then(|value| value.duration(SECOND..=DAY)),
            clients_max: section
                .take("clients_max")
                .and_then(|value| value.count(1..=1_000_000)),
            unresponsive_reconnect: section
                .take("unresponsive_reconnect")
                .and_then(|value| value.duration(30 * SECOND..=DAY)),
            mux: section.take("mux").map(|value| mux::read(&value)),
        }
    }

    /// These settings, and those of `below` where these say nothing.
    pub(super) fn over(self, below: &Self) -> Self {
        let mut labels = below.labels.clone();
        labels.extend(self.labels);
        Self {
            password_file: self.password_file.or_else(|| below.password_file.clone()),
            labels,
            hold: self.hold.or(below.hold),
            disconnect: self.disconnect.or(below.disconnect),
            dial_in: self.dial_in.over(&below.dial_in),
            tls: self.tls.or_else(|| below.tls.clone()),
            log: self.log.or(below.log),
            bytecount: self.bytecount.or(below.bytecount),
            status_interval: self.status_interval.or(below.status_interval),
            clients_max: self.clients_max.or(below.clients_max),
            unresponsive_reconnect: self.unresponsive_reconnect.or(below.unresponsive_reconnect),
            mux: self.mux.or_else(|| below.mux.clone()),
        }
    }

    fn session(&self, address: Address, password_file: Option<PathBuf>) -> SessionConfig {
        let mut session = SessionConfig::new(address);
        session.password_file = password_file;
        session.hold = self.hold.unwrap_or(session.hold);
        // Nothing that is written here changes what a daemon does that dials in.
        if !session.address.is_dial_in() {
            session.disconnect = self.disconnect.unwrap_or(session.disconnect);
        }
        session.log = self.log.unwrap_or(session.log);
        session.bytecount = self.bytecount.unwrap_or(session.bytecount);
        session.status_interval = self.status_interval.unwrap_or(session.status_interval);
        session.clients_max = self.clients_max.unwrap_or(session.clients_max);
        let timings = &mut session.timings;
        timings.unresponsive_reconnect = self
            .unresponsive_reconnect
            .unwrap_or(timings.unresponsive_reconnect);
        session
    }
}

/// An instance, or the pattern of many, before its placeholders are filled in.
#[derive(Clone, Debug)]
pub(super) struct Blueprint {
    /// `None` after a mistake.
    name: Option<Templated>,
    /// `None` in a pattern, where each seed brings its own, and after a mistake.
    address: Option<Templated>,
    settings: Settings,
    /// Whether `tls` is written for this very instance, and not among the defaults.
    has_own_tls: bool,
}

/// What a source knows of one instance.
#[derive(Clone, Debug)]
pub(super) struct Seed {
    /// The address, where the blueprint has none.
    pub(super) address: Option<Address>,
    /// Labels; a label of the blueprint replaces one of the same name.
    pub(super) labels: BTreeMap<String, String>,
    /// Who says that the instance exists.
    pub(super) source: InstanceSource,
    /// Where.
    pub(super) place: Place,
    /// Which files it may name.
    pub(super) files: FileRule,
}

impl Blueprint {
    /// Reads an `[[instance]]`.
    pub(super) fn read(mut section: Section<'_>, defaults: &Settings) -> (Self, Seed) {
        let name = section
            .require("name")
            .and_then(|value| Templated::read(&value));
        let address = section
            .require("address")
            .and_then(|value| Templated::read(&value));
        let settings = Settings::read(&mut section);
        let has_own_tls = settings.tls.is_some();
        let settings = settings.over(defaults);
        let place = section.place().clone();
        section.finish();
        let seed = Seed {
            address: None,
            labels: BTreeMap::new(),
            source: InstanceSource::File,
            place,
            files: FileRule::Any,
        };
        let blueprint = Self {
            name,
            address,
            settings,
            has_own_tls,
        };
        (blueprint, seed)
    }

    /// The pattern of a discovery source; `default` names its instances where `name` does not.
    pub(super) fn pattern(
        name: Option<Templated>,
        default: Template,
        settings: Settings,
        place: &Place,
    ) -> Self {
        let name = name.unwrap_or_else(|| Templated {
            template: default,
            key: "discover.name".to_owned(),
            place: place.clone(),
        });
        Self {
            name: Some(name),
            address: None,
            settings,
            has_own_tls: false,
        }
    }

    /// Whether what is written here makes its instances such that the end of a session harms their daemons.
    pub(super) fn is_destructive(&self) -> bool {
        self.settings.disconnect == Some(DisconnectPolicy::Destructive)
    }

    /// The instance that `seed` and this blueprint make; `None` after mistakes, all of which are told.
    pub(super) fn build(&self, seed: Seed, mistakes: &Mistakes) -> Option<InstanceConfig> {
        let Seed {
            mut address,
            mut labels,
            source,
            place,
            files,
        } = seed;
        let mut parts = address.as_ref().map(AddressParts::of).unwrap_or_default();
        let mut name: Option<String> = None;
        let mut missing = self.settings.labels.clone();
        labels.retain(|label, _| !missing.contains_key(label));
        // Once told, a mistake shall not be told again as the placeholders that have no value for it.
        let mut is_incomplete =
            self.name.is_none() || (self.address.is_none() && address.is_none());
        // The name may need a label, a label the address, the address the name:
        // each round fills in what is known by then, until nothing changes.
        loop {
            let known = (name.is_some(), address.is_some(), missing.len());
            if name.is_none() {
                let template = self.name.as_ref();
                name = template.and_then(|name| name.expand(&parts.values(None, &labels)));
            }
            if let (None, Some(template), false) = (&address, &self.address, is_incomplete)
                && let Some(text) = template.expand(&parts.values(name.as_deref(), &labels))
            {
                match text.parse::<Address>() {
                    Ok(parsed) => {
                        parts = AddressParts::of(&parsed);
                        address = Some(parsed);
                    }
                    Err(error) => {
                        template.error(mistakes, format!("{error}"));
                        is_incomplete = true;
                    }
                }
            }
            let mut found = BTreeMap::new();
            missing.retain(|label, template| {
                let text = template.expand(&parts.values(name.as_deref(), &labels));
                text.map(|text| found.insert(label.clone(), text)).is_none()
            });
            labels.extend(found);
            if known == (name.is_some(), address.is_some(), missing.len()) {
                break;
            }
        }
        let secrets_dir = files.directory();
        let mut values = parts.values(name.as_deref(), &labels);
        values.files = files;
        let untold = Mistakes::default();
        let missing_value = if is_incomplete { &untold } else { mistakes };
        let templates = missing.values().chain(&self.address).chain(&self.name);
        let unfilled =
            templates.filter(|template| template.require(&values, missing_value).is_none());
        // Counted, so that each is told.
        let has_all = unfilled.count() == 0;
        let password_file = match &self.settings.password_file {
            Some(template) => {
                let text = template.require(&values, missing_value);
                text.and_then(|text| template.file(&text, &values, mistakes))
                    .map(Some)
            }
            None => Some(None),
        };
        let sockets = self.settings.mux.iter().flatten();
        let sockets: Vec<_> = sockets
            .map(|socket| socket.build(&values, mistakes))
            .collect();
        let mux: Option<Vec<_>> = sockets.into_iter().collect();
        let around = address.as_ref().map(|address| {
            let dial_in = self.settings.dial_in.build(address, &values, mistakes);
            (dial_in, self.tls(address, &values, &place, mistakes))
        });
        let named = name.as_ref().and_then(|name| {
            let checked = InstanceName::new(name);
            let told = |error| {
                if let Some(template) = &self.name {
                    template.error(mistakes, format!("{name:?} is no name: {error}"));
                }
            };
            checked.map_err(told).ok()
        });
        // A label that begins with two underscores serves placeholders only, as in Prometheus.
        labels.retain(|label, _| !label.starts_with("__"));
        if let Err(message) = check_labels(&labels) {
            mistakes.add(&place, "labels", message);
            return None;
        }
        let (dial_in, tls) = around?;
        if is_incomplete || !has_all {
            return None;
        }
        let mux = mux?;
        let mut session = SessionConfig {
            dial_in: dial_in?,
            tls: tls?,
            ..self.settings.session(address?, password_file?)
        };
        // One without files does not begin anew where the rules for them change.
        let tls = &session.tls;
        if session.password_file.is_some() || tls.ca.is_some() || tls.cert.is_some() {
            session.files_within = secrets_dir;
        }
        let password_place = self
            .settings
            .password_file
            .as_ref()
            .map(|template| template.place.clone());
        let spec = InstanceSpec {
            name: named?,
            labels: Labels::from(labels),
            source,
            session: session.into(),
            paused: None,
            others: fingerprint(&mux),
        };
        Some(InstanceConfig {
            spec,
            place,
            password_place,
            mux,
        })
    }
}

/// Stands for the virtual sockets of an instance.
fn fingerprint(mux: &[MuxConfig]) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{mux:?}").hash(&mut hasher);
    hasher.finish()
}

impl Blueprint {
    /// `None` after mistakes.
    fn tls(
        &self,
        address: &Address,
        values: &Values<'_>,
        place: &Place,
        mistakes: &Mistakes,
    ) -> Option<TlsConfig> {
        match (address, &self.settings.tls) {
            (Address::Tls { .. }, Some(tls)) => tls.build(values, mistakes),
            (Address::Tls { .. }, None) => {
                let message = "nothing tells which server is the right one: add tls = { ca = \"...\" }, or a pin";
                mistakes.add(place, "instance.tls", message);
                None
            }
            (_, Some(tls)) if self.has_own_tls => {
                tls.refuse(address, mistakes);
                None
            }
            _ => Some(TlsConfig::default()),
        }
    }
}

fn read_labels(value: &Value<'_>) -> BTreeMap<String, Templated> {
    let entries = value.entries().into_iter();
    entries
        .filter_map(|(label, value)| Some((label, Templated::read(&value)?)))
        .collect()
}

#[expect(
    clippy::option_option,
    reason = "the outer is \"not said\", the inner \"off\""
)]
fn read_bytecount(value: &Value<'_>) -> Option<Option<Duration>> {
    if value.string()? == "off" {
        return Some(None);
    }
    value.duration(SECOND..=HOUR).map(Some)
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    if labels.len() > LABELS_MAX {
        return Err(format!(
            "{} labels are more than {LABELS_MAX}",
            labels.len()
        ));
    }
    for (label, text) in labels {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if label.is_empty() || !label.chars().all(fits) {
            return Err(format!(
                "{label:?} is no label: use letters, digits, `-`, `_`, `.` and `/`"
            ));
        }
        if text.len() > LABEL_VALUE_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(format!(
                "the value of label {label} is too long or has control characters"
            ));
        }
    }
    Ok(())
}
