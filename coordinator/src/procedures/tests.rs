//! Every procedure through the harness: each step twice, a failure at each step, the coordinator stopped around every write.

mod access;
mod password;
mod world;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_common::report::EngineState;
use holdfast_common::role::Durability;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::add_member::AddMember;
use super::create::Create;
use super::delete::Delete;
use super::records::cluster_key;
use super::remove_member::RemoveMember;
use super::steps::Absent;
use super::{Means, Procedures};
use crate::cluster::{Cluster, MemberPhase, Phase};
use crate::directory::put;
use crate::operation::harness::{self, Subject};
use crate::operation::{Operation, Service, State, Submit};
use crate::store::memory::Memory;
use crate::store::{Op, Shared};
use world::World;

/// A procedure, what there is before it, and what must be there after it.
struct Case {
    before: fn(&World) -> Option<Cluster>,
    procedure: fn(&World) -> Procedures,
    succeeded: fn(&World, Option<&Cluster>) -> Result<(), String>,
    /// After a failure or a cancel: nothing is left behind.
    undone: fn(&World, Option<&Cluster>) -> Result<(), String>,
}

impl Subject for Case {
    type Procedure = Procedures;
    type World = World;

    fn world(&self) -> World {
        let world = World::new(3);
        if let Some(cluster) = (self.before)(&world)
            && cluster.phase != Phase::Creating
        {
            world.populate(&cluster);
        }
        world
    }

    fn means(&self, world: &Arc<World>, store: &Shared) -> Arc<Means> {
        world.means(store)
    }

    fn writes(&self, world: &World) -> Vec<Op> {
        let cluster = (self.before)(world);
        cluster
            .map(|cluster| put(&cluster_key(&cluster.name), &cluster).expect("it can be JSON"))
            .into_iter()
            .collect()
    }

    fn procedure(&self, world: &World) -> Procedures {
        (self.procedure)(world)
    }

    fn invariants<'a>(
        &'a self,
        world: &'a World,
        store: &'a Shared,
        operation: &'a Operation,
    ) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let cluster = world.cluster(store);
            if let Some(cluster) = &cluster {
                crate::cluster::invariants::check(cluster).map_err(|broken| broken.to_string())?;
            }
            world.at_most_once()?;
            match operation.state {
                State::Succeeded => (self.succeeded)(world, cluster.as_ref()),
                State::Failed | State::Cancelled => (self.undone)(world, cluster.as_ref()),
                State::Pending | State::Running | State::RollingBack | State::Blocked => Ok(()),
            }
        }
        .boxed()
    }
}

fn is(what: bool, message: &str) -> Result<(), String> {
    if what { Ok(()) } else { Err(message.to_owned()) }
}

fn complete(world: &World, cluster: Option<&Cluster>, members: usize) -> Result<(), String> {
    let cluster = cluster.ok_or("the record is gone")?;
    is(cluster.phase == Phase::Active, "the cluster is not active")?;
    is(cluster.members.len() == members, "it has another number of members")?;
    is(cluster.members.iter().all(|member| member.phase == MemberPhase::Active), "a member is not active")?;
    is(cluster.synchronous == cluster.wanted_synchronous(), "the durability is not enforced")?;
    is(cluster.strengthening.is_none(), "a stronger set is still pending")?;
    let data: Vec<_> = cluster.members.iter().map(|member| member.node_id).collect();
    is(world.nodes_with_data() == data, "data are on other nodes than the record says")
}

fn empty(world: &World, cluster: Option<&Cluster>) -> Result<(), String> {
    is(cluster.is_none(), "the record is still there")?;
    is(world.nodes_with_data().is_empty(), "data are still on a node")
}

#[tokio::test(start_paused = true)]
async fn creating_a_cluster_ends_whole_or_leaves_nothing() {
    for durability in [Durability::Async, Durability::Quorum] {
        let case = Case {
            before: match durability {
                Durability::Async => |world| Some(world.draft(3, Durability::Async)),
                Durability::Quorum => |world| Some(world.draft(3, Durability::Quorum)),
            },
            procedure: |world| Create::new(&world.draft(3, Durability::Async), world.node(0)).into(),
            succeeded: |world, cluster| complete(world, cluster, 3),
            undone: empty,
        };
        let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!(report.steps, 7);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_at_each_start_ends_the_creation_soon() {
    let world = Arc::new(World::new(1));
    let store = Memory::shared();
    let draft = world.draft(1, Durability::Async);
    let service = Service::<Procedures>::new(Arc::clone(&store), world.means(&store));
    let handle = service.handle();
    let procedure: Procedures = Create::new(&draft, world.node(0)).into();
    let submit = Submit::new(procedure, "clusters/demo", "operator/test")
        .then(put(&cluster_key(&draft.name), &draft).unwrap());
    let begun = Instant::now();
    let starts = async {
        loop {
            for (state, why) in [(EngineState::Failed, "FATAL:  no room"), (EngineState::Starting, "")] {
                world.refuse(state, why);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    let ended = async {
        let operation = handle.submit(submit).await.unwrap();
        handle.wait(operation.id).await.unwrap()
    };
    let ended = tokio::select! {
        ended = ended => ended,
        () = starts => unreachable!(),
        () = service.run(CancellationToken::new()) => unreachable!(),
    };
    let failure = ended.failure.unwrap();
    assert!(
        failure.message.contains("3 starts failed") && failure.message.contains("no room"),
        "{failure:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    empty(&world, world.cluster(&store).as_ref()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn adding_a_member_ends_whole_or_leaves_the_others_alone() {
    let case = Case {
        before: |world| Some(world.joining(2)),
        procedure: |world| AddMember::new(&world.active(2), world.node(2)).into(),
        succeeded: |world, cluster| complete(world, cluster, 3),
        undone: |world, cluster| {
            let cluster = cluster.ok_or("the record is gone")?;
            is(cluster.members.len() == 2, "the new member is still recorded")?;
            is(world.nodes_with_data().len() == 2, "its data are still there")
        },
    };
    harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
}

#[tokio::test(start_paused = true)]
async fn removing_a_member_leaves_the_others_alone() {
    let case = Case {
        before: |world| Some(world.active(3)),
        procedure: |world| {
            let cluster = world.active(3);
            let member = &cluster.members[2];
            RemoveMember::new(&cluster, member.node_id, member.node_name.clone(), Absent::Wait).into()
        },
        succeeded: |world, cluster| complete(world, cluster, 2),
        undone: |world, cluster| complete(world, cluster, 3),
    };
    harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
}

#[tokio::test(start_paused = true)]
async fn deleting_a_cluster_leaves_nothing() {
    let case = Case {
        before: |world| Some(world.active(3).deleting()),
        procedure: |world| Delete::new(&world.active(3), Absent::Wait).into(),
        succeeded: empty,
        undone: |_, _| Err("a deletion has no way back".into()),
    };
    harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
}
