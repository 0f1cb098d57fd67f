//! Every procedure through the harness: each step twice, a failure at each step, the coordinator stopped around every write.

mod access;
mod agents;
mod deeds;
mod drain;
mod hung;
mod parts;
mod password;
mod reboot;
mod restart;
mod retune;
mod schedule;
mod set;
mod upgrade;
mod word;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_common::assignment::Synchronous;
use holdfast_common::command::ResyncMode;
use holdfast_common::id::NodeId;
use holdfast_common::protocol::Need;
use holdfast_common::report::EngineState;
use holdfast_common::role::Durability;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::add_member::AddMember;
use super::create::Create;
use super::delete::Delete;
use super::failover::Failover;
use super::promote::Promote;
use super::records::cluster_key;
use super::regroup::{self, Regroup};
use super::remove_member::RemoveMember;
use super::resync::Resync;
use super::steps::Absent;
use super::{Means, Procedures};
use crate::cluster::{Cluster, Member, MemberPhase, Phase};
use crate::directory::{node_key, put};
use crate::lease::reign_key;
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
    /// What it begins with, such as the primary's term or the newest list, is another after it: so a repeat is another request.
    only_once: bool,
}

/// Whose end is looked at by whoever begins it.
fn failover_of_three() -> Case {
    Case {
        before: |world| Some(world.active(3)),
        procedure: |world| Failover::new(&world.active(3), None).unwrap().into(),
        succeeded: |_, _| Ok(()),
        undone: |_, _| Ok(()),
        only_once: true,
    }
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
        let Some(cluster) = (self.before)(world) else { return Vec::new() };
        let record = put(&cluster_key(&cluster.name), &cluster).expect("it can be JSON");
        let reign = agents::settled(&cluster);
        let reign = reign.map(|reign| put(&reign_key(cluster.id), &reign).expect("it can be JSON"));
        let nodes = world.records().map(|node| put(&node_key(node.id), &node).expect("it can be JSON"));
        [record].into_iter().chain(reign).chain(nodes).collect()
    }

    fn procedure(&self, world: &World) -> Procedures {
        (self.procedure)(world)
    }

    fn can_be_repeated(&self) -> bool {
        !self.only_once
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
            if let Some((cluster, reign)) = cluster.as_ref().zip(world.reign(store)) {
                let same = (cluster.primary, cluster.term) == (Some(reign.primary), reign.term);
                is(same, "the record names another primary, or term, than the reign")?;
                let set = cluster.enforced_synchronous();
                let counted: BTreeSet<NodeId> = set.nodes.iter().copied().collect();
                let listed: BTreeSet<NodeId> = reign.newest().members().iter().copied().collect();
                is(
                    set.count == 0 || (reign.newest().need, &listed) == (Need::of(set.count), &counted),
                    "the primary is to count on others than the newest list has",
                )?;
                is(!operation.state.is_finished() || reign.intended.is_none(), "a term is still intended")?;
            }
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
            only_once: false,
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
        only_once: false,
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
        only_once: false,
    };
    harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
}

/// Where the new primary was stored and that was not heard, the operation has failed and the cluster is whole under the new one.
fn led_by(world: &World, cluster: Option<&Cluster>, index: usize) -> Result<(), String> {
    complete(world, cluster, 3)?;
    let primary = cluster.and_then(|cluster| cluster.primary);
    is(primary == Some(world.node(index)), "it has another primary")
}

#[tokio::test(start_paused = true)]
async fn promoting_a_member_ends_with_it_or_with_the_old_primary() {
    for durability in [Durability::Async, Durability::Quorum] {
        let case = Case {
            before: match durability {
                Durability::Async => |world| Some(waits_for_nobody(world.active(3))),
                Durability::Quorum => |world| Some(world.active(3)),
            },
            procedure: |world| {
                let cluster = world.active(3);
                Promote::new(&cluster, &cluster.members[1]).unwrap().into()
            },
            succeeded: |world, cluster| led_by(world, cluster, 1),
            undone: |world, cluster| led_by(world, cluster, 0).or_else(|_| led_by(world, cluster, 1)),
            only_once: true,
        };
        let report =
            harness::walk(&case).await.unwrap_or_else(|violation| panic!("{durability}: {violation}"));
        assert_eq!(report.steps, 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failover_ends_with_another_primary_or_with_the_old_one() {
    let case = Case {
        before: |world| Some(world.active(3)),
        procedure: |world| Failover::new(&world.active(3), Some(world.node(2))).unwrap().into(),
        succeeded: |world, cluster| led_by(world, cluster, 2),
        undone: |world, cluster| led_by(world, cluster, 0).or_else(|_| led_by(world, cluster, 2)),
        only_once: true,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 3);
}

fn waits_for_nobody(cluster: Cluster) -> Cluster {
    Cluster { durability: Durability::Async, synchronous: Synchronous::default(), ..cluster }
}

#[tokio::test(start_paused = true)]
async fn aligning_replicas_leaves_them_active_whether_it_succeeds_or_not() {
    for durability in [Durability::Async, Durability::Quorum] {
        let case = Case {
            before: match durability {
                Durability::Async => |world| Some(waits_for_nobody(world.active(3))),
                Durability::Quorum => |world| Some(world.active(3)),
            },
            procedure: |world| {
                let cluster = world.active(3);
                Resync::new(&cluster, &[&cluster.members[1], &cluster.members[2]], ResyncMode::Auto, false)
                    .into()
            },
            succeeded: |world, cluster| led_by(world, cluster, 0),
            // A quorum that is to count on it again is grown by whoever looks after the replicas.
            undone: |world, cluster| {
                let cluster = cluster.ok_or("the record is gone")?;
                let active = |member: &Member| member.phase == MemberPhase::Active;
                is(cluster.members.iter().all(active), "a member is not active")?;
                is(cluster.strengthening.is_none(), "a stronger set is still pending")?;
                is(world.nodes_with_data().len() == 3, "data are gone")
            },
            only_once: true,
        };
        let report =
            harness::walk(&case).await.unwrap_or_else(|violation| panic!("{durability}: {violation}"));
        assert_eq!(report.steps, 8);
    }
}

#[tokio::test(start_paused = true)]
async fn a_quorum_shrinks_and_grows_or_stays_as_it_was() {
    fn shrunk(cluster: Cluster) -> Cluster {
        let set = cluster.synchronous_without(cluster.members[2].node_id);
        cluster.with_relaxed(set).unwrap()
    }
    fn counts_on(cluster: Option<&Cluster>, replicas: usize) -> Result<(), String> {
        let cluster = cluster.ok_or("the record is gone")?;
        is(cluster.synchronous.nodes.len() == replicas, "it counts on other replicas")?;
        is(cluster.strengthening.is_none(), "a stronger set is still pending")
    }
    let shrink = Case {
        before: |world| Some(world.active(3)),
        procedure: |world| Regroup::new(&world.active(3), regroup::Step::Shrink(world.node(2))).into(),
        succeeded: |_, cluster| counts_on(cluster, 1),
        undone: |_, cluster| counts_on(cluster, 1).or_else(|_| counts_on(cluster, 2)),
        only_once: false,
    };
    let grow = Case {
        before: |world| Some(shrunk(world.active(3))),
        procedure: |world| {
            let cluster = world.active(3);
            let wanted = cluster.wanted_synchronous();
            Regroup::new(&cluster, regroup::Step::Grow(wanted)).into()
        },
        succeeded: |_, cluster| counts_on(cluster, 2),
        undone: |_, cluster| counts_on(cluster, 1).or_else(|_| counts_on(cluster, 2)),
        only_once: false,
    };
    for case in [shrink, grow] {
        harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    }
}

#[tokio::test(start_paused = true)]
async fn deleting_a_cluster_leaves_nothing() {
    let case = Case {
        before: |world| Some(world.active(3).deleting()),
        procedure: |world| Delete::new(&world.active(3), Absent::Wait).into(),
        succeeded: empty,
        undone: |_, _| Err("a deletion has no way back".into()),
        only_once: false,
    };
    harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
}
