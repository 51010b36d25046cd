//! The only file that makes a [`tonic::Status`]: codes, reasons and details of
//! every error that a caller can get.
//!
//! Every status carries a `google.rpc.ErrorInfo` with domain `ovfleet` and a
//! reason in capitals, which is stable; the message is for people and is not.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Domain of every reason.
pub const DOMAIN: &str = "ovfleet";

/// A status with a reason.
fn status(code: Code, reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, details(reason))
}

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

/// INVALID_ARGUMENT: this field of the request is malformed.
pub(crate) fn invalid(field: &str, reason: &str, description: impl Into<String>) -> Status {
    let description = description.into();
    let mut details = details(reason);
    details.add_bad_request_violation(field, description.clone());
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {description}"), details)
}

/// NOT_FOUND: no instance of this name.
pub(crate) fn instance_unknown(name: &str) -> Status {
    status(
        Code::NotFound,
        "INSTANCE_UNKNOWN",
        format!("there is no instance {name:?}; ListInstances names those there are"),
    )
}
