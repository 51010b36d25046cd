//! Ends clients.

use std::sync::Arc;

use crate::action::{ActionContext, ActionError, KillReport, KillRequest};
use crate::fleet::Shared;

#[expect(clippy::unused_async, reason = "not written yet")]
pub(crate) async fn kill(
    _shared: &Arc<Shared>,
    _request: KillRequest,
    _context: ActionContext,
) -> Result<Arc<KillReport>, ActionError> {
    Err(ActionError::ShuttingDown)
}
