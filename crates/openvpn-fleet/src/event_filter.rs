//! Which events a stream shows.

use crate::event::{Event, EventClass, Gap, Kind};
use crate::filter::ClientFilter;
use crate::name::{GatewayName, InstanceName, Labels};
use crate::selector::Selector;

/// A set of kinds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KindSet(u32);

/// A text is not a kind, nor a group of kinds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no kind of event {text:?}; kinds are like `client.established` or `client.*`")]
pub struct KindError {
    /// The text.
    pub text: String,
}

impl KindSet {
    /// Every kind.
    #[must_use]
    pub fn all() -> Self {
        Kind::ALL.iter().copied().collect()
    }

    /// Every kind but the lines of daemon logs, which must be asked for.
    #[must_use]
    pub fn all_but_logs() -> Self {
        Kind::ALL
            .iter()
            .copied()
            .filter(|kind| *kind != Kind::InstanceLog)
            .collect()
    }

    /// The kinds with these names, or with `*` as the last part; of no name at all, [`all_but_logs`](Self::all_but_logs).
    ///
    /// # Errors
    /// [`KindError`] with the first that names nothing.
    pub fn parse<T: AsRef<str>>(names: &[T]) -> Result<Self, KindError> {
        if names.is_empty() {
            return Ok(Self::all_but_logs());
        }
        let mut set = Self(0);
        for name in names.iter().map(T::as_ref) {
            let matches = |kind: &Kind| match name.strip_suffix('*') {
                Some(prefix) => {
                    (prefix.is_empty() || prefix.ends_with('.'))
                        && kind.as_str().starts_with(prefix)
                }
                None => kind.as_str() == name,
            };
            let named: Self = Kind::ALL.iter().copied().filter(matches).collect();
            if named.0 == 0 {
                return Err(KindError {
                    text: name.to_owned(),
                });
            }
            set.0 |= named.0;
        }
        Ok(set)
    }

    /// Whether `kind` is among them.
    #[must_use]
    pub fn contains(self, kind: Kind) -> bool {
        self.0 & bit(kind) != 0
    }
}

fn bit(kind: Kind) -> u32 {
    1 << (kind as u8)
}

impl FromIterator<Kind> for KindSet {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        Self(kinds.into_iter().fold(0, |set, kind| set | bit(kind)))
    }
}

impl std::fmt::Debug for KindSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds = Kind::ALL.iter().filter(|kind| self.contains(**kind));
        f.debug_set()
            .entries(kinds.map(|kind| kind.as_str()))
            .finish()
    }
}

/// Which events a stream shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter {
    /// Of which instances; empty means all, and of the gateway itself too.
    pub selector: Selector,
    /// Of which clients; empty means events of everything.
    pub clients: ClientFilter,
    /// Of which kinds.
    pub kinds: KindSet,
}

impl EventFilter {
    /// Every event.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            selector: Selector::all(),
            clients: ClientFilter::default(),
            kinds: KindSet::all(),
        }
    }

    /// Whether `event` is shown.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        if !self.kinds.contains(event.kind()) {
            return false;
        }
        if !self.wants_instance(&event.gateway, event.instance.as_ref(), &event.labels) {
            return false;
        }
        if self.clients.is_empty() {
            return true;
        }
        match (&event.client, &event.instance) {
            (Some(client), Some(instance)) => self
                .clients
                .matches(&event.gateway, &client.identity(instance)),
            _ => false,
        }
    }

    /// Whether events of an instance (`None`: of the gateway itself) can be shown.
    #[must_use]
    pub fn wants_instance(
        &self,
        gateway: &GatewayName,
        instance: Option<&InstanceName>,
        labels: &Labels,
    ) -> bool {
        match instance {
            _ if self.selector.is_everything() => true,
            Some(instance) => self.selector.matches(gateway, instance, labels),
            None => false,
        }
    }

    /// Whether events of a kind can be shown.
    #[must_use]
    pub fn wants_kind(&self, kind: Kind) -> bool {
        self.kinds.contains(kind)
            && (self.clients.is_empty() || kind.as_str().starts_with("client."))
    }

    /// Whether events of a class can be shown.
    #[must_use]
    pub fn wants_class(&self, class: EventClass) -> bool {
        Kind::ALL
            .iter()
            .any(|kind| kind.class() == class && self.wants_kind(*kind))
    }

    /// Whether a hole can be one in what is shown.
    #[must_use]
    pub fn wants_gap(&self, gap: &Gap) -> bool {
        let instance = gap.instance.as_ref();
        (instance.is_none() || self.wants_instance(&gap.gateway, instance, &gap.labels))
            && match gap.class {
                Some(class) => self.wants_class(class),
                None => EventClass::ALL
                    .into_iter()
                    .any(|class| self.wants_class(class)),
            }
    }
}
