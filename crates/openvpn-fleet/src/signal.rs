//! Sends signals to daemons.

use std::sync::Arc;

use crate::action::{ActionContext, ActionError, SignalReport, SignalRequest};
use crate::fleet::Shared;

#[expect(clippy::unused_async, reason = "not written yet")]
pub(crate) async fn signal(
    _shared: &Arc<Shared>,
    _request: SignalRequest,
    _context: ActionContext,
) -> Result<Arc<SignalReport>, ActionError> {
    Err(ActionError::ShuttingDown)
}
