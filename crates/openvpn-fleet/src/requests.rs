//! Request ids: a repetition of a request joins it and sends nothing twice.

use crate::action::Action;
use crate::name::{CallerName, RequestId};

/// Every action of the last 24 hours, by caller, method and request id.
#[derive(Debug, Default)]
pub(crate) struct Requests {}

impl Requests {
    pub(crate) fn action(&self, _caller: &CallerName, _request_id: &RequestId) -> Option<Action> {
        None
    }

    pub(crate) fn actions(&self, _before: Option<u64>, _limit: usize) -> Vec<Action> {
        Vec::new()
    }
}
