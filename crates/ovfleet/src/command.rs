//! The commands that call a gateway, each in its module.

pub(crate) mod actions;
pub(crate) mod clients;
pub(crate) mod events;
pub(crate) mod instance;
pub(crate) mod instances;
pub(crate) mod inventory;
pub(crate) mod kill;
pub(crate) mod question;
pub(crate) mod routes;
pub(crate) mod signal;
pub(crate) mod summary;
pub(crate) mod watch;
