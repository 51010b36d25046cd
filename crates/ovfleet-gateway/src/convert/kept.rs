//! Answers that say how well they are kept.

use ovfleet_proto::v1::{self, Durability};
use prost::Message;

/// The answer of a call with a request id.
pub(crate) trait Kept: Message + Default {
    /// Makes it say how well it is kept.
    fn set_durability(&mut self, durability: Durability);
}

macro_rules! kept {
    ($($answer:ident)*) => {
        $(impl Kept for v1::$answer {
            fn set_durability(&mut self, durability: Durability) {
                self.durability = durability.into();
            }
        })*
    };
}

kept! {
    SetVerbResponse SetMuteResponse SetHoldResponse SetAuthRetryResponse SetBytecountResponse ForgetPasswordsResponse
    NotifyNetworkChangeResponse PushUpdateResponse AnswerQuestionResponse ExecuteCommandResponse
    CreateInstanceResponse UpdateInstanceResponse DeleteInstanceResponse PauseInstanceResponse ResumeInstanceResponse
    ReloadResponse
}
