//! Changes of the inventory, one after the other, without a server around them.

use std::{
    fs,
    os::unix::net::{UnixListener, UnixStream},
    time::Duration,
};

use openvpn_fleet::{FleetConfig, GatewayName, InstanceUid, JournalConfig};
use ovfleet_proto::v1::MuxSocket;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::*;
use crate::{config::Limits, listen::Admission, state::State};

/// What a virtual socket may take to open.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// A keeper, what it keeps, and the directory of its configuration, for which `@` stands in every text.
struct Lab {
    directory: TempDir,
    state: State,
    keeper: Keeper,
}

impl Lab {
    async fn new(text: &str) -> Self {
        Self::on(tempfile::tempdir().unwrap(), text).await
    }

    async fn on(directory: TempDir, text: &str) -> Self {
        write(&directory, text);
        Self::begin(directory, State::open(None).unwrap()).await
    }

    async fn begin(directory: TempDir, state: State) -> Self {
        let fleet = Fleet::new(&FleetConfig {
            gateway: GatewayName::new("gw").unwrap(),
            journal: JournalConfig {
                memory_bytes: 1 << 20,
                events_max: 1_000,
                age_max: Duration::from_secs(60),
                encode: |_| bytes::Bytes::new(),
                start: None,
            },
        });
        let mux = MuxSockets::new(fleet.clone(), Admission::new(&Limits::default()));
        let config = Config::load(&directory.path().join("main.toml")).unwrap();
        let registry = Registry::new(state.clone());
        let (keeper, _) = Keeper::begin(fleet, mux, config, registry).await.unwrap();
        Self {
            directory,
            state,
            keeper,
        }
    }

    /// Another keeper in its place, which finds these virtual sockets as a crash leaves them.
    async fn after_a_crash(self, sockets: &[&str]) -> Self {
        self.keeper.mux.close().await;
        for name in sockets {
            drop(bind(&self.directory, name));
        }
        Self::begin(self.directory, self.state).await
    }

    fn definition(&self, name: &str, address: &str) -> InstanceDefinition {
        InstanceDefinition {
            name: name.to_owned(),
            address: filled(&self.directory, address),
            ..InstanceDefinition::default()
        }
    }

    fn with_mux(&self, name: &str, socket: &str) -> InstanceDefinition {
        let socket = MuxSocket {
            address: filled(&self.directory, &format!("unix:@/{socket}")),
            ..MuxSocket::default()
        };
        InstanceDefinition {
            mux: vec![socket],
            ..self.definition(name, "unix:@/elsewhere")
        }
    }

    async fn create(&mut self, definition: InstanceDefinition) -> Result<Done, InventoryError> {
        let order = Order::Create {
            definition: Box::new(definition),
            validate_only: false,
        };
        self.keeper.carry_out(order, None).await
    }

    async fn update(
        &mut self,
        definition: InstanceDefinition,
        etag: &str,
    ) -> Result<Done, InventoryError> {
        let order = Order::Update {
            definition: Box::new(definition),
            mask: Vec::new(),
            etag: etag.to_owned(),
            validate_only: false,
            force: false,
        };
        self.keeper.carry_out(order, None).await
    }

    async fn delete(&mut self, name: &str, etag: &str) -> Result<Done, InventoryError> {
        let order = Order::Delete {
            name: InstanceName::new(name).unwrap(),
            etag: etag.to_owned(),
            validate_only: false,
            force: false,
        };
        self.keeper.carry_out(order, None).await
    }

    async fn reload(&mut self, text: &str) {
        write(&self.directory, text);
        let order = Order::Reload {
            cause: ReloadCause::Signal,
            validate_only: false,
            force: true,
        };
        self.keeper.carry_out(order, None).await.unwrap();
    }

    /// Names and addresses of the instances there are.
    fn instances(&self) -> Vec<(String, String)> {
        let shown = format!("unix:{}/", self.directory.path().display());
        let instances = self.keeper.fleet.instances().into_iter();
        let of = |instance: Arc<openvpn_fleet::Instance>| {
            let address = instance.spec().session.address.to_string();
            (instance.name().to_string(), address.replace(&shown, "@/"))
        };
        instances.map(of).collect()
    }

    /// Waits until a virtual socket takes connections.
    async fn wait_open(&self, name: &str) {
        let path = self.directory.path().join(name);
        let open = async {
            while UnixStream::connect(&path).is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(OPEN_WITHIN, open).await.expect(name);
    }

    fn etag(&self, name: &str) -> String {
        let instance = self.keeper.fleet.instance(name).unwrap();
        instance.spec_and_etag().1.to_string()
    }

    fn uid(&self, name: &str) -> Option<InstanceUid> {
        Some(self.keeper.fleet.instance(name)?.uid())
    }
}

fn filled(directory: &TempDir, text: &str) -> String {
    text.replace('@', &directory.path().display().to_string())
}

fn write(directory: &TempDir, text: &str) {
    let path = directory.path().join("main.toml");
    fs::write(path, filled(directory, text)).unwrap();
}

fn labelled(definition: InstanceDefinition, label: &str) -> InstanceDefinition {
    InstanceDefinition {
        labels: [(label.to_owned(), String::new())].into(),
        ..definition
    }
}

fn pairs(wanted: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |&(name, address): &(&str, &str)| (name.to_owned(), address.to_owned());
    wanted.iter().map(owned).collect()
}

/// The file takes the name of `a`, which the API made at `@/a`.
const FILE_HAS_A: &str = "[[instance]]\nname = \"a\"\naddress = \"unix:@/file\"";

/// Nobody named `b`: its session must not end because `a`, which is set aside, came to want its address.
#[tokio::test]
async fn one_set_aside_is_not_given_the_address_of_another() {
    let mut lab = Lab::new("").await;
    for name in ["a", "b"] {
        let definition = lab.definition(name, &format!("unix:@/{name}"));
        lab.create(definition).await.unwrap();
    }
    lab.reload(FILE_HAS_A).await;
    let as_it_was = [("a", "@/file"), ("b", "@/b")];
    assert_eq!(lab.instances(), pairs(&as_it_was));

    let address_of_b = lab.definition("a", "unix:@/b");
    let refused = lab.update(address_of_b, "").await.unwrap_err();
    let InventoryError::Taken { clash } = &refused else {
        panic!("{refused}");
    };
    assert!(
        matches!(clash, Clash::Address(_, holder) if holder.name.as_str() == "b"),
        "{clash}"
    );
    // What does not concern the clash it has can be changed.
    let definition = lab.definition("a", "unix:@/a");
    lab.update(labelled(definition, "x"), "").await.unwrap();
    assert_eq!(lab.instances(), pairs(&as_it_was));
}

/// An address that became free was given to `b`: `a`, which had it once and comes first by name, must wait until `b`
/// is gone.
#[tokio::test]
async fn one_in_force_loses_nothing_to_one_set_aside() {
    let mut lab = Lab::new("").await;
    let definition = lab.definition("a", "unix:@/x");
    lab.create(definition).await.unwrap();
    lab.reload(FILE_HAS_A).await;
    let b = lab.definition("b", "unix:@/x");
    lab.create(b.clone()).await.unwrap();
    let uid = lab.uid("b");

    lab.reload("").await;
    lab.keeper.look().await;
    lab.update(labelled(b, "x"), "").await.unwrap();
    assert_eq!(lab.instances(), pairs(&[("b", "@/x")]));
    assert_eq!(lab.uid("b"), uid);

    lab.delete("b", "").await.unwrap();
    assert_eq!(lab.instances(), pairs(&[("a", "@/x")]));
}

/// Two callers change what is set aside: the second, who has not seen what the first did, must be told. The etag of the
/// file's instance of that name says nothing of it.
#[tokio::test]
async fn the_etag_of_one_set_aside_is_its_own() {
    let mut lab = Lab::new("").await;
    let definition = lab.definition("a", "unix:@/a");
    lab.create(definition.clone()).await.unwrap();
    let its_address = "[[instance]]\nname = \"z\"\naddress = \"unix:@/a\"";
    for text in [FILE_HAS_A, its_address] {
        lab.reload("").await;
        let seen = lab.etag("a");
        lab.reload(text).await;
        if text == FILE_HAS_A {
            let of_file = lab.etag("a");
            expect_mismatch(lab.update(definition.clone(), &of_file).await, text);
            expect_mismatch(lab.delete("a", &of_file).await, text);
        }
        let change = labelled(definition.clone(), &seen);
        lab.update(change.clone(), &seen).await.expect(text);
        expect_mismatch(lab.update(change, &seen).await, text);
        expect_mismatch(lab.delete("a", &seen).await, text);
    }
}

fn expect_mismatch(done: Result<Done, InventoryError>, of: &str) {
    let done = done.map(drop);
    assert!(
        matches!(done, Err(InventoryError::EtagMismatch { .. })),
        "{of}: {done:?}"
    );
}

/// Discovery with virtual sockets that its own pattern matches.
const FOUND_WITH_MUX: &str = "[[discover]]\nglob = \"@/*.sock\"\nmux = \"unix:@/{stem}-mux.sock\"";

/// A virtual socket that is taken for a daemon gets a session and a virtual socket, which is found next; and the
/// instance of the API whose socket it is would be set aside.
#[tokio::test]
async fn virtual_sockets_are_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let _daemon = bind(&directory, "eu1.sock");
    let mut lab = Lab::on(directory, FOUND_WITH_MUX).await;
    let eu1 = ("eu1", "@/eu1.sock");
    assert_eq!(lab.instances(), pairs(&[eu1]));
    lab.wait_open("eu1-mux.sock").await;
    lab.keeper.look().await;
    assert_eq!(lab.instances(), pairs(&[eu1]));

    lab.create(lab.with_mux("a", "api.sock")).await.unwrap();
    lab.wait_open("api.sock").await;
    lab.keeper.look().await;
    let both = [("a", "@/elsewhere"), eu1];
    assert_eq!(lab.instances(), pairs(&both));
    let mut lab = lab.after_a_crash(&["eu1-mux.sock", "api.sock"]).await;
    assert_eq!(lab.instances(), pairs(&both));
    lab.wait_open("api.sock").await;

    // Nothing is left of them as of a daemon that restarts.
    lab.delete("a", "").await.unwrap();
    lab.keeper.look().await;
    assert_eq!(lab.instances(), pairs(&[eu1]));
    lab.reload("[[discover]]\nglob = \"@/*.sock\"").await;
    lab.keeper.look().await;
    assert_eq!(lab.instances(), pairs(&[eu1]));
}

/// A virtual socket that is written down with the address of a daemon cannot be opened; it must not cost that daemon
/// its session.
#[tokio::test]
async fn a_daemon_that_was_found_stays_one() {
    let directory = tempfile::tempdir().unwrap();
    let _daemons = (bind(&directory, "eu1.sock"), bind(&directory, "eu2.sock"));
    let with_mux =
        |mux: &str| format!("[[discover]]\nglob = \"@/*.sock\"\nmux = \"unix:@/{mux}.sock\"");
    let mut lab = Lab::on(directory, &with_mux("{stem}")).await;
    let both = [("eu1", "@/eu1.sock"), ("eu2", "@/eu2.sock")];
    assert_eq!(lab.instances(), pairs(&both));
    let refused = lab.create(lab.with_mux("a", "eu1.sock")).await.unwrap_err();
    assert!(
        matches!(
            &refused,
            InventoryError::Taken {
                clash: Clash::Mux(..)
            }
        ),
        "{refused}"
    );
    lab.reload(&with_mux("eu1")).await;
    lab.keeper.look().await;
    assert_eq!(lab.instances(), pairs(&both));
}

fn bind(directory: &TempDir, name: &str) -> UnixListener {
    UnixListener::bind(directory.path().join(name)).unwrap()
}
