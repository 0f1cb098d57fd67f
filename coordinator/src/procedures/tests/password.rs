//! A cluster's password, changed while its primary cannot be reached, answers late, or not at all.

use std::sync::Arc;

use holdfast_common::error::Reason;
use holdfast_common::pki::{Keyring, MasterKey};

use super::world::{Fate, World};
use crate::cluster::Cluster;
use crate::directory::put;
use crate::operation;
use crate::procedures::records::cluster_key;
use crate::procedures::requests::Desk;
use crate::procedures::requests::connection::{Connection, Reveal};
use crate::store::memory::Memory;
use crate::store::{Shared, Txn};

/// A desk with one active cluster.
struct Bench {
    world: Arc<World>,
    store: Shared,
    desk: Desk,
}

async fn bench() -> Bench {
    let world = Arc::new(World::new(2));
    let store = Memory::shared();
    let cluster = world.active(2);
    store.txn(Txn::new().then(put(&cluster_key(&cluster.name), &cluster).unwrap())).await.unwrap();
    let means = world.means(&store);
    let operations = operation::Service::new(Arc::clone(&store), Arc::clone(&means)).handle();
    let keyring = Arc::new(Keyring::new(MasterKey::generate(), Vec::new()));
    Bench { world, store, desk: Desk { means, operations, keyring } }
}

impl Bench {
    fn cluster(&self) -> Cluster {
        self.world.cluster(&self.store).unwrap()
    }

    async fn reset(&self) -> Result<Connection, holdfast_common::error::Failure> {
        self.desk.reset_password(&self.cluster().name).await
    }

    /// Whether this is the password that is stored, and the primary has its verifier.
    fn lets_in(&self, connection: &Connection) -> bool {
        let access = self.cluster().access;
        let context = format!("clusters/{}/password", self.cluster().id);
        let stored = self.desk.keyring.open(&context, &access.password.sealed).unwrap();
        let told = connection.password.as_ref().expect("the answer has the password");
        *stored == *told.as_bytes() && self.world.password() == Some(access.password.verifier)
    }
}

#[tokio::test]
async fn a_reset_gives_the_password_that_the_primary_took() {
    let bench = bench().await;
    let first = bench.reset().await.unwrap();
    assert!(bench.lets_in(&first));
    let second = bench.reset().await.unwrap();
    assert!(bench.lets_in(&second) && !bench.lets_in(&first));
    assert!(bench.cluster().access.shown && bench.cluster().access.pending.is_none());
}

#[tokio::test]
async fn a_reset_that_was_not_sent_changes_nothing() {
    let bench = bench().await;
    let before = bench.cluster();
    bench.world.next_command_is(Fate::NotSent);
    bench.reset().await.unwrap_err();
    assert_eq!(bench.cluster(), before);
}

#[tokio::test]
async fn a_reset_is_refused_at_once_while_the_primarys_node_is_away() {
    let bench = bench().await;
    let before = bench.cluster();
    bench.world.go_away();
    let refused = bench.reset().await.unwrap_err();
    assert_eq!(refused.reason, Reason::AgentOffline);
    assert!(refused.message.contains("is offline; start its agent"), "{}", refused.message);
    assert_eq!(bench.cluster(), before);
    assert_eq!(bench.world.password(), None, "it was asked nevertheless");
}

#[tokio::test]
async fn a_reset_whose_answer_was_lost_is_finished_by_the_next() {
    let bench = bench().await;
    bench.world.next_command_is(Fate::Unanswered);
    bench.reset().await.unwrap_err();
    let taken = bench.world.password().expect("the primary has taken it");
    // Nobody is shown a password that may not work.
    let name = bench.cluster().name;
    let refused = bench.desk.connection(&name, Reveal::Yes).await.unwrap_err();
    assert_eq!(refused.reason, Reason::PreconditionFailed);
    assert!(refused.message.contains("reset it again"), "{}", refused.message);
    bench.desk.connection(&name, Reveal::No).await.expect("without the password it is told");
    let finished = bench.reset().await.unwrap();
    assert!(bench.lets_in(&finished));
    assert_eq!(bench.world.password(), Some(taken), "it is the one that the primary had taken");
}

#[tokio::test]
async fn what_the_primary_may_have_taken_is_not_forgotten_when_it_then_cannot_be_reached() {
    let bench = bench().await;
    bench.world.next_command_is(Fate::Unanswered);
    bench.reset().await.unwrap_err();
    let taken = bench.world.password().expect("the primary has taken it");
    bench.world.next_command_is(Fate::NotSent);
    bench.reset().await.unwrap_err();
    assert!(bench.cluster().access.pending.is_some(), "it may be the one that works");
    let finished = bench.reset().await.unwrap();
    assert!(bench.lets_in(&finished));
    assert_eq!(bench.world.password(), Some(taken));
}
