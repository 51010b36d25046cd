//! Actions whose task is lost.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use openvpn_session::Moment;

use super::*;
use crate::action::{Action, AsOf, Method, SignalReport};
use crate::fleet::{Fleet, FleetConfig};
use crate::journal::JournalConfig;
use crate::ledger::{Digest, Intent, KnownRun, Ledger, LedgerError, TargetResult};
use crate::name::{ActionRef, GatewayName, InstanceName};
use crate::requests::Begun;

/// Remembers the actions that were lost.
#[derive(Debug, Default)]
struct Losses(Mutex<Vec<u64>>);

impl Ledger for Losses {
    fn last_action(&self) -> u64 {
        0
    }

    fn intend(&self, _: Intent) -> BoxFuture<'static, Result<(), LedgerError>> {
        async { Ok(()) }.boxed()
    }

    fn plan(&self, _: Action, _: usize) -> BoxFuture<'static, Result<(), LedgerError>> {
        async { Ok(()) }.boxed()
    }

    fn note(&self, _: u64, _: usize, _: TargetResult<'_>) {}

    fn finish(&self, _: Action) -> BoxFuture<'static, bool> {
        async { true }.boxed()
    }

    fn forget(&self, _: u64) {}

    fn lose(&self, number: u64) {
        self.0.lock().expect("no panic holds it").push(number);
    }

    fn take_run(&self, _: &InstanceName, _: &str) -> Option<KnownRun> {
        None
    }
}

fn begin(shared: &Shared) -> Result<Begun, ActionError> {
    let request_id = RequestId::new("x").expect("an id");
    let empty = SignalReport {
        request_id: request_id.clone(),
        results: Vec::new(),
        validate_only: false,
        cut_short: false,
        as_of: AsOf {
            position: shared.journal.newest(),
            time: SystemTime::now(),
        },
        durability: shared.requests.durability(),
    };
    let action = ActionRef {
        request_id,
        caller: CallerName::new("alice"),
    };
    shared.requests.begin(
        action,
        Method::SignalInstances,
        Digest::default(),
        ActionResult::Signal(Arc::new(empty)),
        Moment::now(),
    )
}

/// A bug of ours must not leave those who wait for an action waiting, nor its id taken, nor pass for "not sent".
#[tokio::test]
async fn an_action_whose_task_panics_is_told_as_lost() {
    let config = FleetConfig {
        gateway: GatewayName::new("gw").expect("a name"),
        journal: JournalConfig {
            memory_bytes: 1 << 20,
            events_max: 1_000,
            age_max: Duration::from_secs(3_600),
            encode: |_| bytes::Bytes::new(),
            start: None,
        },
    };
    let losses = Arc::new(Losses::default());
    let ledger: Arc<dyn Ledger> = Arc::clone(&losses) as _;
    let fleet = Fleet::with_ledger(&config, Some(ledger));
    let shared = &fleet.shared;

    let Ok(Begun::New(running)) = begin(shared) else {
        panic!("it is the first")
    };
    let Ok(Begun::Joined(joined)) = begin(shared) else {
        panic!("it is under way")
    };
    let limits = Limits::unlimited();
    let work = async { panic!("a bug of ours, planted") };
    let (first, second) = tokio::join!(
        carry_out(shared, Arc::clone(&running), &limits, work),
        join(&joined, &limits)
    );
    for result in [first, second] {
        assert!(
            matches!(result, Err(ActionError::Lost { .. })),
            "{result:?}"
        );
    }
    assert_eq!(losses.0.lock().expect("no panic holds it").len(), 1);
    let again = begin(shared);
    assert!(matches!(again, Ok(Begun::New(_))), "its id is still taken");
}
