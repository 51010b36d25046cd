//! `dial_in`: the socket on which a daemon dials in, and who may.

use openvpn_session::{Address, DialInConfig};

use super::{
    error::Mistakes,
    instance::Templated,
    listen::parse_mode,
    reader::{Section, Value},
    template::Values,
};
use crate::account;

/// The settings of `dial_in`; `None` leaves the decision to the layer below.
#[derive(Clone, Debug, Default)]
pub(super) struct DialInTemplate {
    mode: Option<u32>,
    owner: Option<Templated>,
    group: Option<Templated>,
    peer_user: Option<Templated>,
}

impl DialInTemplate {
    pub(super) fn read(value: &Value<'_>) -> Self {
        let Some(mut section) = value.section() else {
            return Self::default();
        };
        let mode = section
            .take("mode")
            .and_then(|value| value.parsed(parse_mode));
        let text = |section: &mut Section<'_>, key| {
            section.take(key).and_then(|value| Templated::read(&value))
        };
        let settings = Self {
            mode,
            owner: text(&mut section, "owner"),
            group: text(&mut section, "group"),
            peer_user: text(&mut section, "peer_user"),
        };
        section.finish();
        settings
    }

    /// These settings, and those of `below` where these say nothing.
    pub(super) fn over(self, below: &Self) -> Self {
        Self {
            mode: self.mode.or(below.mode),
            owner: self.owner.or_else(|| below.owner.clone()),
            group: self.group.or_else(|| below.group.clone()),
            peer_user: self.peer_user.or_else(|| below.peer_user.clone()),
        }
    }

    /// What holds for an instance at `address`; `None` after mistakes.
    pub(super) fn build(
        &self,
        address: &Address,
        values: &Values<'_>,
        mistakes: &Mistakes,
    ) -> Option<DialInConfig> {
        if let (Address::ListenTcp(_), Some(peer_user)) = (address, &self.peer_user) {
            // Whoever wrote it must not believe that it protects.
            peer_user.error(mistakes, "TCP does not tell who dials in: use listen-unix:");
            return None;
        }
        let default = DialInConfig::default();
        let Address::ListenUnix(_) = address else {
            return Some(default);
        };
        let number = |name: &Option<Templated>, find: fn(&str) -> Option<u32>| match name {
            None => Some(None),
            Some(template) => {
                let name = template.require(values, mistakes)?;
                let number = find(&name);
                if number.is_none() {
                    template.error(
                        mistakes,
                        format!("there is no account {name:?} on this machine"),
                    );
                }
                number.map(Some)
            }
        };
        Some(DialInConfig {
            mode: self.mode.unwrap_or(default.mode),
            owner: number(&self.owner, account::user)?,
            group: number(&self.group, account::group)?,
            peer_uid: number(&self.peer_user, account::user)?,
        })
    }
}
