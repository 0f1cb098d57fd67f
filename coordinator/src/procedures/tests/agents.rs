//! The agents' part in the leases: members of the real protocol, whose engines do at once what they are told. They outlive the
//! coordinator; what talks for them ends with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use holdfast_common::id::NodeId;
use holdfast_common::link::Leased;
use holdfast_common::position::Position;
use holdfast_common::protocol::{
    Effect, Event, Gate, List, Member, Need, Record, Reign, Tail, Timings, ToCoordinator, ToMember, Version,
};
use holdfast_common::term::Term;
use tokio::task::AbortHandle;

use super::world::World;
use crate::cluster::Cluster;
use crate::lease::{Leases, Led};
use crate::store::Shared;

/// How often the coordinator says again what was not answered.
const REMIND: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(super) struct Agents {
    members: Mutex<BTreeMap<NodeId, Member>>,
    /// How many seals on their way to a node are still lost: they are told again.
    lost: Mutex<BTreeMap<NodeId, u32>>,
    talking: Mutex<Vec<AbortHandle>>,
}

/// The reign of a cluster whose primary has confirmed everything; none where there is no primary.
pub(super) fn settled(cluster: &Cluster) -> Option<Reign> {
    let led = Led::of(cluster)?;
    let need = Need::of(cluster.synchronous.count);
    let members = match need {
        Need::Any(_) => cluster.synchronous.nodes.clone(),
        Need::All => led.replicas,
    };
    let list = List::new(Version::FIRST, members, need);
    let first = Reign::first(led.primary, list);
    Some(Reign { term: led.term, enforced: true, ..first })
}

// === impl Agents ===

impl Agents {
    /// What they have on their disks.
    pub(super) fn populate(&self, cluster: &Cluster) {
        let Some(reign) = settled(cluster) else { return };
        let timings = cluster.lease_profile.timings();
        let record = |node| match node == reign.primary {
            true => Record::primary(reign.term, reign.newest().clone()),
            false => Record::replica(reign.term),
        };
        let member = |node| (node, Member::started(record(node), Gate::default(), &timings));
        *self.members.lock().unwrap() = cluster.members.iter().map(|it| member(it.node_id)).collect();
        // Long enough for the others to be sealed, and to be enough.
        *self.lost.lock().unwrap() = cluster.members.get(1).map(|it| (it.node_id, 4)).into_iter().collect();
    }

    /// Talks for them with this coordinator, and with none before it any more.
    pub(super) fn attach(world: &Arc<World>, leases: &Leases, store: &Shared) {
        let mut talking: Vec<AbortHandle> =
            world.nodes().iter().map(|node| talk(Arc::downgrade(world), leases.clone(), *node)).collect();
        let (weak, leases, store) = (Arc::downgrade(world), leases.clone(), Arc::clone(store));
        let remind = tokio::spawn(async move {
            while let Some(world) = weak.upgrade() {
                if let Some(led) = world.cluster(&store).as_ref().and_then(Led::of) {
                    // A store that has stopped ends the coordinator too.
                    let _stopped = leases.open_one(&led).await;
                }
                world.clock.advance(REMIND);
                drop(world);
                leases.remind(|_, _| None);
                tokio::time::sleep(REMIND).await;
            }
        });
        talking.push(remind.abort_handle());
        let before = std::mem::replace(&mut *world.agents().talking.lock().unwrap(), talking);
        before.iter().for_each(AbortHandle::abort);
    }

    /// What a node answers.
    fn obey(&self, node: NodeId, message: ToMember, timings: &Timings) -> Vec<ToCoordinator> {
        if let (ToMember::Seal { .. }, Some(left)) = (&message, self.lost.lock().unwrap().get_mut(&node))
            && *left > 0
        {
            *left -= 1;
            return Vec::new();
        }
        let mut members = self.members.lock().unwrap();
        let Some(member) = members.get_mut(&node) else { return Vec::new() };
        // Long enough for every promise to be over.
        member.pass(timings.promised());
        let mut effects = member.handle(Event::Told(message), timings);
        if let Some(list) = member.record.list.clone() {
            effects.extend(member.handle(Event::Enforced { version: list.version }, timings));
        }
        effects.into_iter().filter_map(answer).collect()
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.talking.lock().unwrap().iter().for_each(AbortHandle::abort);
    }
}

fn talk(world: Weak<World>, leases: Leases, node: NodeId) -> AbortHandle {
    let (attached, mut messages) = leases.attach(node);
    let talking = tokio::spawn(async move {
        let _attached = attached;
        while let Some(Leased { cluster_id, message }) = messages.recv().await {
            let Some(world) = world.upgrade() else { return };
            if world.is_lost(node) {
                continue;
            }
            let timings = world.draft(1, holdfast_common::role::Durability::Async).lease_profile.timings();
            if matches!(message, ToMember::Stop { .. }) {
                world.stop(node);
            }
            for said in world.agents().obey(node, message, &timings) {
                if let Some(work) = leases.hear(node, Leased { cluster_id, message: said }) {
                    work.await;
                }
            }
        }
    });
    talking.abort_handle()
}

fn answer(effect: Effect) -> Option<ToCoordinator> {
    let tail = Tail { term: Term::FIRST, position: Position { era: 1, offset: 100 } };
    match effect {
        Effect::Tell(message) => Some(message),
        Effect::TellStopped { term, attempt } => Some(ToCoordinator::Stopped { term, attempt, tail }),
        Effect::TellConfirmed { term, attempt } => Some(ToCoordinator::Confirmed { term, attempt, tail }),
        Effect::TellSealed { term } => Some(ToCoordinator::Sealed { term, tail }),
        _ => None,
    }
}
