//! Keeps an instance's session, also when its task fails.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use openvpn_session::{Condition, ConditionChange, Moment, Observation, Observer, Pacer, Session};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::instance::Instance;

/// How long a session that panicked stays away before it is begun anew.
const RESTART_DELAY: Duration = Duration::from_millis(250);

/// Keeps one instance's session until cancelled; one that panics is begun anew, alone.
///
/// The session exists when this returns, so calls find it, and a daemon may dial in that is started from here on: it would
/// end if nobody listened.
pub(crate) fn keep_session<O: Observer + Clone>(
    instance: Arc<Instance>,
    observer: O,
    pacer: Arc<Pacer>,
    cancel: CancellationToken,
) -> impl Future<Output = ()> {
    let mut session = new_session(&instance, &observer, &pacer);
    async move {
        loop {
            let run = AssertUnwindSafe(session.run(cancel.clone()));
            if run.catch_unwind().await.is_ok() {
                return;
            }
            tell_panic(&instance, observer.clone());
            tokio::select! {
                () = cancel.cancelled() => return,
                () = sleep(RESTART_DELAY) => {}
            }
            session = new_session(&instance, &observer, &pacer);
        }
    }
}

/// The instance's session, not yet begun.
fn new_session<O: Observer + Clone>(
    instance: &Instance,
    observer: &O,
    pacer: &Arc<Pacer>,
) -> Session<O> {
    let config = Arc::clone(&instance.spec().session);
    let (handle, session) = Session::new(config, observer.clone(), Arc::clone(pacer));
    instance.set_handle(handle);
    session
}

/// Tells what a session that panicked could not say itself.
fn tell_panic(instance: &Instance, mut observer: impl Observer) {
    instance.count_panic();
    error!("the session's task panicked; it is begun anew");
    let reason = "the session failed and is begun anew".to_owned();
    if instance.with_table(|table| table.memory.is_greeted()) {
        let reason = reason.clone();
        observer.observe(Observation::Detached { reason }, Moment::now());
    }
    let change = ConditionChange {
        condition: Condition::Connecting,
        reason,
        next_attempt: None,
    };
    observer.observe(Observation::Condition(change), Moment::now());
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Instant, SystemTime};

    use openvpn_session::{Address, Hint, SessionConfig};
    use openvpn_simulator::Daemon;

    use super::*;
    use crate::journal::{Journal, JournalConfig};
    use crate::name::{GatewayName, InstanceName, InstanceUid, Labels};
    use crate::observer::InstanceObserver;
    use crate::spec::{InstanceSource, InstanceSpec};

    /// Panics at the first session's greeting.
    #[derive(Clone)]
    struct Fragile {
        inner: InstanceObserver,
        greetings: Arc<AtomicU32>,
    }

    impl Observer for Fragile {
        fn observe(&mut self, observation: Observation, at: Moment) -> Hint {
            let is_greeting = matches!(observation, Observation::Greeted { .. });
            let hint = self.inner.observe(observation, at);
            let is_first = is_greeting && self.greetings.fetch_add(1, Ordering::Relaxed) == 0;
            assert!(!is_first, "a bug of ours, planted");
            hint
        }
    }

    /// A bug that one daemon's words bring out must not cost the fleet that daemon, let alone the others.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_session_that_panics_is_back_within_a_second() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a");
        let daemon = Daemon::builder("a")
            .unix(&path)
            .start()
            .await
            .expect("it starts");
        let gateway = GatewayName::new("gw").expect("a name");
        let spec = InstanceSpec {
            name: InstanceName::new("a").expect("a name"),
            labels: Labels::default(),
            source: InstanceSource::File,
            session: SessionConfig::new(Address::Unix(path)).into(),
            paused: None,
            others: 0,
        };
        let instance = Arc::new(Instance::new(gateway.clone(), InstanceUid::new(1), spec));
        let config = JournalConfig {
            memory_bytes: 1 << 20,
            events_max: 1_000,
            age_max: Duration::from_secs(3_600),
            encode: |_| bytes::Bytes::new(),
            start: None,
        };
        let observer = Fragile {
            inner: InstanceObserver {
                instance: Arc::clone(&instance),
                journal: Arc::new(Journal::new(gateway, &config)),
                interner: Arc::default(),
            },
            greetings: Arc::default(),
        };
        let cancel = CancellationToken::new();
        let started = Instant::now();
        let pacer = Arc::new(Pacer::new());
        let keeper = tokio::spawn(keep_session(
            Arc::clone(&instance),
            observer,
            pacer,
            cancel.clone(),
        ));
        let attached = instance.wait_for(|table| {
            (table.status().is_attached() && table.status().sessions == 2).then_some(())
        });
        tokio::time::timeout(Duration::from_secs(20), attached)
            .await
            .expect("it comes back");
        // The machine may be slow; the promise is a second, a quarter of it the delay.
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{:?}",
            started.elapsed()
        );
        assert!(RESTART_DELAY < Duration::from_secs(1));
        assert_eq!(daemon.sessions(), 2);
        assert_eq!(instance.panics(), 1);
        assert!(instance.with_table(|table| table.status().since) <= SystemTime::now());
        cancel.cancel();
        keeper.await.expect("it ends");
    }
}
