//! Kills that a crash cuts off: what is said of them afterwards, and what the daemons have received.

use anyhow::{Context as _, Result, bail, ensure};
use ovfleet_proto::v1::{
    self, Durability, GetActionRequest, KillClientsRequest, KillClientsResponse, KillMode, Outcome,
};
use ovfleet_tests::{
    Api,
    api::{by_name, named, reason, timed},
    poll_until,
};
use tonic::{Code, Status};

use super::{DIES, lab::Lab};

/// A kill that was asked for: its id, its only target, and what was answered, if anything was.
pub(super) struct Asked {
    pub(super) id: String,
    pub(super) lane: usize,
    pub(super) cid: u64,
    pub(super) name: String,
    pub(super) answer: Option<KillClientsResponse>,
}

/// Kills until it is answered, or the gateway is gone.
pub(super) async fn kill(mut api: Api, asked: &Asked) -> Option<KillClientsResponse> {
    ask(&mut api, asked).await.ok()?.ok()
}

/// What a gateway says to a kill. A disk that a busy machine makes wait is no answer.
async fn ask(api: &mut Api, asked: &Asked) -> Result<Result<KillClientsResponse, Status>> {
    let said = poll_until("the kill to be taken", DIES, async || {
        match api.kill(request(asked)).await {
            Err(status) if reason(&status).as_deref() == Some("STATE_UNAVAILABLE") => Ok(None),
            said => Ok(Some(said)),
        }
    });
    said.await
}

fn request(asked: &Asked) -> KillClientsRequest {
    KillClientsRequest {
        selector: named(&[&format!("sim{}", asked.lane)]),
        filter: Some(by_name(&asked.name)),
        mode: KillMode::Halt.into(),
        request_id: asked.id.clone(),
        ..Default::default()
    }
}

/// What an action says of its one target; none when it had none.
pub(super) fn outcome(response: &KillClientsResponse) -> Option<Outcome> {
    response.results.first().map(|result| result.outcome())
}

/// The action of that id, if the gateway knows it.
pub(super) async fn action(api: &mut Api, id: &str) -> Result<Option<KillClientsResponse>> {
    let request = GetActionRequest {
        request_id: id.to_owned(),
    };
    match api.control.get_action(timed(request)).await {
        Ok(response) => {
            let action = response.into_inner().action.context("no action")?;
            ensure!(
                action.finished_time.is_some(),
                "unfinished after a restart: {action:#?}"
            );
            match action.result {
                Some(v1::action::Result::KillClients(killed)) => Ok(Some(killed)),
                other => bail!("{other:?}"),
            }
        }
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// After the crash: asks again with the same id, and compares what is said with what the daemon
/// has received.
pub(super) async fn settle(
    lab: &mut Lab,
    api: &mut Api,
    asked: &Asked,
) -> Result<(Option<KillClientsResponse>, String)> {
    let sent_before = lab.was_received(asked);
    let kept = action(api, &asked.id).await?;
    if let Some(answer) = &asked.answer {
        let kept = kept.as_ref().context("answered, and forgotten")?;
        // A slow disk may not have the outcome yet, and the answer says so.
        ensure!(
            outcome(kept) == outcome(answer) || answer.durability() == Durability::Memory,
            "answered {answer:#?}, and now {kept:#?}"
        );
    }
    let said = kept.as_ref().and_then(outcome);
    match said {
        Some(Outcome::Accepted | Outcome::Confirmed) => ensure!(sent_before, "{said:?}, not sent"),
        Some(Outcome::NotSent | Outcome::Stale) => {
            ensure!(!sent_before, "{said:?}, and it was sent")
        }
        _ => {}
    }
    // Only what was never promised may be sent now.
    let again = match ask(api, asked).await? {
        Ok(again) => again,
        Err(status) if status.code() == Code::Aborted => {
            // The id is spent, and it says what became of it.
            let reason = reason(&status).context("no reason")?;
            lab.look()?;
            ensure!(
                lab.was_received(asked) == sent_before,
                "sent after all: {status:?}"
            );
            let nothing_sent = reason == "NOT_SENT";
            ensure!(
                !(nothing_sent && sent_before),
                "sent, and denied: {status:?}"
            );
            ensure!(
                asked.answer.is_none(),
                "answered, and forgotten: {status:?}"
            );
            return Ok((None, reason));
        }
        Err(status) => return Err(status.into()),
    };
    lab.look()?;
    if let Some(kept) = &kept {
        ensure!(
            outcome(&again) == outcome(kept),
            "kept {kept:#?}, and then {again:#?}"
        );
        ensure!(lab.was_received(asked) == sent_before, "sent after all");
    } else {
        ensure!(!sent_before, "sent, and forgotten");
    }
    let label = match (&kept, said) {
        (None, _) => "never begun".to_owned(),
        (Some(_), said) => format!("{said:?}"),
    };
    Ok((Some(again), label))
}
