//! An engine in memory, for swarms of agents and for the tests of procedures: it keeps state, refuses what the real one
//! refuses, replicates between the members of one [`World`], and fails where it is told to.
//!
//! Not a model of PostgreSQL: no SQL, no timelines, positions are a counter.

mod resync;
mod retuning;
mod state;
mod upgrade;
mod weather;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use holdfast_common::assignment::{MemberAssignment, RoleAssignment};
use holdfast_common::budget::Budget;
use holdfast_common::command::{
    Check, CheckMember, CheckedMember, CloneMember, DatabaseName, DestroyMember, InitialiseMember,
    InstallEngine, Progress, ResyncMember, RetuneMember, SetPassword, UpgradeEngine, Verifier,
};
use holdfast_common::engine::{Engine as Kind, EngineVersion};
use holdfast_common::id::{ClusterId, CommandId, NodeId};
use holdfast_common::protocol::Tail;
use holdfast_common::question::{Retuning, Upgrades};
use holdfast_common::report::EngineState;
use holdfast_common::role::Role;
use holdfast_common::set_aside::{Answer, Question};
use holdfast_common::telemetry::{EngineAvailability, EngineOffer};
use holdfast_common::term::Term;
use jiff::Timestamp;

use self::state::{Configured, Member, State, admitted};
use super::{Copied, Deed, Drift, Engine, Error, LocalMember, Observation, Resynced, Waker, Work};

/// The version that the fake has.
pub const VERSION: &str = "15";
/// Where a new database's log begins.
const FIRST_OFFSET: u64 = 0x0300_0000;
/// How large every copy is.
const COPY_BYTES: u64 = 32 * 1024 * 1024;

/// All fake members that can reach one another. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct World {
    state: Arc<Mutex<State>>,
}

/// The fake engine of one node.
#[derive(Debug, Clone)]
pub struct FakeEngine {
    node: NodeId,
    world: World,
}

/// What a fake does, as a place to fail at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Check,
    Install,
    Upgrade,
    Retune,
    Initialise,
    Clone,
    Destroy,
    SetPassword,
    Configure,
    Admit,
    Start,
    Stop,
    Checkpoint,
    Probe,
    Rest,
    Seal,
    Lead,
    Follow,
    Resync,
    /// The rewinding in a resync, which breaks in the middle.
    Rewind,
    /// The copying in a resync, which breaks in the middle.
    Replace,
}

// === impl World ===

impl World {
    /// The engine of a node in this world.
    pub fn engine(&self, node: NodeId) -> FakeEngine {
        FakeEngine { node, world: self.clone() }
    }

    /// Writes to a cluster's running primary; `false` if it has none.
    pub fn write(&self, cluster: ClusterId, bytes: u64) -> bool {
        let mut state = self.lock();
        let primary = state.members.iter_mut().find(|((id, _), member)| {
            *id == cluster && member.role == Role::Primary && member.running_since.is_some()
        });
        primary.map(|(_, member)| member.offset += bytes).is_some()
    }

    /// The next `step` on `node` fails with this message; several are used up in order.
    pub fn fail_next(&self, node: NodeId, step: Step, message: impl Into<String>) {
        self.lock().failures.entry((node, step)).or_default().push_back(message.into());
    }

    /// How often a step was begun on a node.
    pub fn count(&self, node: NodeId, step: Step) -> u64 {
        self.lock().deeds.get(&(node, step)).copied().unwrap_or(0)
    }

    /// What a database user's password was last set to.
    pub fn password(&self, cluster: ClusterId, node: NodeId, user: &DatabaseName) -> Option<Verifier> {
        self.lock().members.get(&(cluster, node))?.passwords.get(user.as_str()).cloned()
    }

    /// Whether the node has data of the cluster, complete or not.
    pub fn has_data(&self, cluster: ClusterId, node: NodeId) -> bool {
        self.lock().members.contains_key(&(cluster, node))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl FakeEngine ===

impl FakeEngine {
    fn deed<T: Send + 'static>(
        &self,
        step: Step,
        deed: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> Deed<'static, T> {
        let mut state = self.world.lock();
        let result = state.begin(self.node, step).and_then(|()| deed(&mut state));
        ready(result).boxed()
    }

    fn new_member(&self, member: &MemberAssignment, command: CommandId, role: Role) -> Member {
        Member {
            cluster_name: member.cluster_name.clone(),
            made_by: command,
            complete: true,
            system_identifier: String::new(),
            role,
            term: Term::NONE,
            sealed: false,
            running_since: None,
            build: None,
            offset: FIRST_OFFSET,
            begun: Vec::new(),
            broken: false,
            resynced: None,
            listens: None,
            configured: None,
            admitted: BTreeSet::new(),
            passwords: BTreeMap::new(),
        }
    }
}

impl Engine for FakeEngine {
    fn kind(&self) -> Kind {
        Kind::Postgresql
    }

    /// Its servers end without a word: who relies on being woken looks again all the same.
    fn set_waker(&self, _waker: Waker) {}

    fn offers(&self) -> Deed<'_, Vec<EngineOffer>> {
        let offer = EngineOffer {
            engine: Kind::Postgresql.to_string(),
            version: "15.0".to_owned(),
            availability: EngineAvailability::Installed,
        };
        ready(Ok(vec![offer])).boxed()
    }

    fn check<'a>(&'a self, request: &'a CheckMember) -> Deed<'a, CheckedMember> {
        self.deed(Step::Check, |state| {
            let version: Option<EngineVersion> = VERSION.parse().ok();
            let known = request.engine_version.is_none() || request.engine_version == version;
            let vacant = !state.members.contains_key(&(request.cluster_id, self.node));
            let check = |name: &str, met: bool, message: &str| Check {
                name: name.to_owned(),
                met,
                message: message.to_owned(),
            };
            Ok(CheckedMember {
                checks: vec![
                    check("engine_version", known, "the fake is version 15"),
                    check("no_data", vacant, "whether the cluster has data here"),
                ],
                engine_version: version.filter(|_| known),
                engine_installed: true,
                memory_bytes: 4 << 30,
                cores: 2,
                free_bytes: 64 << 30,
                node_time: Timestamp::now(),
            })
        })
    }

    fn install<'a>(&'a self, _request: &'a InstallEngine, _work: &'a Work) -> Deed<'a, String> {
        self.deed(Step::Install, |_| Ok("15.0".to_owned()))
    }

    fn upgrades(&self, _cluster: ClusterId) -> Deed<'_, Upgrades> {
        ready(Ok(upgrade::offered(&self.world.lock(), self.node))).boxed()
    }

    fn upgrade<'a>(&'a self, _request: &'a UpgradeEngine, _work: &'a Work) -> Deed<'a, String> {
        self.deed(Step::Upgrade, |state| Ok(upgrade::upgrade(state, self.node)))
    }

    fn retuning(&self, _cluster: ClusterId) -> Deed<'_, Retuning> {
        ready(Ok(retuning::preview(&self.world.lock(), self.node))).boxed()
    }

    fn retune<'a>(&'a self, request: &'a RetuneMember) -> Deed<'a, Budget> {
        self.deed(Step::Retune, |state| Ok(retuning::retune(state, self.node, request)))
    }

    fn note_resized(&self, _cluster: ClusterId) -> Deed<'_, bool> {
        ready(Ok(retuning::note_resized(&mut self.world.lock(), self.node))).boxed()
    }

    fn initialise<'a>(&'a self, request: &'a InitialiseMember, work: &'a Work) -> Deed<'a, String> {
        let cluster = request.member.cluster_id;
        self.deed(Step::Initialise, |state| {
            work.check("initialise")?;
            if let Some(done) = state.vacancy(cluster, self.node, work.command)? {
                return Ok(done.system_identifier.clone());
            }
            state.systems += 1;
            let system_identifier = format!("{}", 7_000_000_000_000_000_000 + state.systems);
            let passwords = BTreeMap::from([(request.user.as_str().to_owned(), request.password.clone())]);
            let member = Member {
                system_identifier: system_identifier.clone(),
                passwords,
                ..self.new_member(&request.member, work.command, Role::Primary)
            };
            state.members.insert((cluster, self.node), member);
            Ok(system_identifier)
        })
    }

    fn copy_from<'a>(&'a self, request: &'a CloneMember, work: &'a Work) -> Deed<'a, Copied> {
        let cluster = request.member.cluster_id;
        self.deed(Step::Clone, |state| {
            work.check("clone")?;
            if let Some(done) = state.vacancy(cluster, self.node, work.command)? {
                return Ok(Copied { system_identifier: done.system_identifier.clone(), bytes: COPY_BYTES });
            }
            let unreachable = || Error::Unavailable {
                deed: format!("copy from {}", request.source.name),
                source: "connection refused".into(),
            };
            let source = state.upstream(cluster, self.node, &request.source).ok_or_else(unreachable)?;
            if !source.admitted.contains(&self.node) {
                return Err(unreachable());
            }
            let system_identifier = source.system_identifier.clone();
            if request
                .member
                .system_identifier
                .as_ref()
                .is_some_and(|expected| *expected != system_identifier)
            {
                return Err(Error::Unmet {
                    check: "system_identifier",
                    message: format!("the source is database system {system_identifier}"),
                });
            }
            let (offset, term, begun) = (source.offset, source.term, source.begun.clone());
            let passwords = source.passwords.clone();
            for done in [0, COPY_BYTES / 2, COPY_BYTES] {
                let (done_bytes, total_bytes) = (Some(done), Some(COPY_BYTES));
                work.tell(Progress { message: "copying".to_owned(), done_bytes, total_bytes });
            }
            let member = Member {
                system_identifier: system_identifier.clone(),
                offset,
                term,
                begun,
                passwords,
                ..self.new_member(&request.member, work.command, Role::Replica)
            };
            state.members.insert((cluster, self.node), member);
            Ok(Copied { system_identifier, bytes: COPY_BYTES })
        })
    }

    fn resync<'a>(&'a self, request: &'a ResyncMember, work: &'a Work) -> Deed<'a, Resynced> {
        self.deed(Step::Resync, |state| resync::resync(state, self.node, request, work))
    }

    fn set_aside<'a>(&'a self, _cluster: ClusterId, question: &'a Question) -> Deed<'a, Answer> {
        Box::pin(std::future::ready(resync::answer(question)))
    }

    fn destroy<'a>(&'a self, request: &'a DestroyMember, _work: &'a Work) -> Deed<'a, bool> {
        self.deed(Step::Destroy, |state| {
            let key = (request.cluster_id, self.node);
            let Some(member) = state.members.get(&key) else { return Ok(false) };
            if member.cluster_name != request.confirm {
                let (given, recorded) = (request.confirm.clone(), member.cluster_name.clone());
                return Err(Error::NotConfirmed { given, recorded });
            }
            Ok(state.members.remove(&key).is_some())
        })
    }

    fn set_password<'a>(&'a self, request: &'a SetPassword) -> Deed<'a, ()> {
        self.deed(Step::SetPassword, |state| {
            let member = state.complete_mut(request.cluster_id, self.node)?;
            if member.running_since.is_none() || member.role != Role::Primary {
                let message = "the member does not run as primary; send it to the primary's node".to_owned();
                return Err(Error::Unmet { check: "runs_as_primary", message });
            }
            let Some(password) = member.passwords.get_mut(request.user.as_str()) else {
                let message = "names no database user; give one that exists".to_owned();
                return Err(Error::Field { field: "user".to_owned(), message });
            };
            *password = request.password.clone();
            Ok(())
        })
    }

    fn members(&self) -> Deed<'_, Vec<LocalMember>> {
        let state = self.world.lock();
        let mine = state.members.iter().filter(|((_, node), _)| *node == self.node);
        let found = mine
            .map(|((cluster_id, _), member)| LocalMember {
                cluster_id: *cluster_id,
                cluster_name: member.cluster_name.clone(),
                complete: member.complete,
            })
            .collect();
        ready(Ok(found)).boxed()
    }

    fn observe(&self, cluster: ClusterId) -> BoxFuture<'_, Observation> {
        let observed = self.world.lock().observe(cluster, self.node);
        ready(observed).boxed()
    }

    fn compare<'a>(&'a self, member: &'a MemberAssignment, observed: &'a Observation) -> Deed<'a, Drift> {
        let state = self.world.lock();
        let drift = state.complete(member.cluster_id, self.node).map(|found| Drift {
            configuration: found.configured.as_ref() != Some(&Configured::of(member)),
            admission: observed.state == EngineState::Running
                && found.admitted != admitted(member, self.node),
        });
        ready(drift).boxed()
    }

    fn configure<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()> {
        self.deed(Step::Configure, |state| {
            state.complete_mut(member.cluster_id, self.node)?.configured = Some(Configured::of(member));
            Ok(())
        })
    }

    fn admit<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()> {
        self.deed(Step::Admit, |state| {
            state.complete_mut(member.cluster_id, self.node)?.admitted = admitted(member, self.node);
            Ok(())
        })
    }

    fn start<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()> {
        self.deed(Step::Start, |state| {
            let build = state.installed(self.node);
            let found = state.whole_mut(member.cluster_id, self.node)?;
            if found.running_since.is_none() {
                (found.running_since, found.build) = (Some(Timestamp::now()), Some(build));
            }
            found.listens = Some((member.address, member.replication_port.unwrap_or(member.port)));
            Ok(())
        })
    }

    fn stop(&self, cluster: ClusterId) -> Deed<'_, ()> {
        self.deed(Step::Stop, |state| {
            if let Some(member) = state.members.get_mut(&(cluster, self.node)) {
                member.running_since = None;
            }
            Ok(())
        })
    }

    fn halt(&self, cluster: ClusterId) -> Deed<'_, ()> {
        self.stop(cluster)
    }

    fn checkpoint(&self, cluster: ClusterId) -> Deed<'_, ()> {
        self.deed(Step::Checkpoint, |state| state.complete(cluster, self.node).map(drop))
    }

    fn probe(&self, cluster: ClusterId) -> Deed<'_, ()> {
        self.deed(Step::Probe, move |state| {
            let member = state.complete(cluster, self.node)?;
            if member.running_since.is_some() && member.role == Role::Primary {
                return Ok(());
            }
            let (deed, problem) = ("probe".to_owned(), "it takes no writes".to_owned());
            Err(Error::Wrong { deed, problem })
        })
    }

    fn rest(&self, cluster: ClusterId) -> Deed<'_, Tail> {
        self.deed(Step::Rest, |state| {
            state.followers(cluster, self.node);
            let member = state.complete_mut(cluster, self.node)?;
            member.running_since = None;
            Ok(member.tail())
        })
    }

    fn seal(&self, cluster: ClusterId) -> Deed<'_, Tail> {
        self.deed(Step::Seal, |state| {
            let member = state.complete_mut(cluster, self.node)?;
            member.sealed = true;
            if member.running_since.is_none() {
                let deed = "seal".to_owned();
                return Err(Error::Unavailable { deed, source: "it is stopped".into() });
            }
            Ok(member.tail())
        })
    }

    fn lead<'a>(&'a self, assigned: &'a MemberAssignment) -> Deed<'a, ()> {
        self.deed(Step::Lead, |state| {
            let member = state.complete_mut(assigned.cluster_id, self.node)?;
            if member.running_since.is_none() {
                let deed = "promote".to_owned();
                return Err(Error::Unavailable { deed, source: "it is stopped".into() });
            }
            if member.term != assigned.term {
                member.begun.push((assigned.term, member.offset));
                member.offset += 1;
            }
            (member.role, member.term, member.sealed) = (Role::Primary, assigned.term, false);
            Ok(())
        })
    }

    fn follow<'a>(&'a self, assigned: &'a MemberAssignment) -> Deed<'a, ()> {
        let cluster = assigned.cluster_id;
        self.deed(Step::Follow, |state| {
            let RoleAssignment::Replica { upstream } = &assigned.role else {
                let message = "is no replica's".to_owned();
                return Err(Error::Field { field: "role".to_owned(), message });
            };
            let has_all = state.has_all_of(cluster, self.node, upstream);
            let member = state.whole_mut(cluster, self.node)?;
            if member.role == Role::Primary {
                if member.running_since.is_some() {
                    return Err(Error::WouldDestroyData { why: "it runs".to_owned() });
                }
                let Some(has_all) = has_all else {
                    let deed = format!("ask {}", upstream.name);
                    return Err(Error::Unavailable { deed, source: "connection refused".into() });
                };
                if !has_all {
                    let message = "its log has more".to_owned();
                    return Err(Error::Unmet { check: "log_is_a_prefix", message });
                }
            }
            (member.role, member.sealed) = (Role::Replica, false);
            member.configured = Some(Configured::of(assigned));
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use holdfast_common::assignment::Peer;

    use super::*;
    use crate::engine::contract::{self, Bench};

    #[tokio::test]
    async fn it_keeps_the_contract() {
        let world = World::default();
        let node = |name: &str, last| {
            let node_id = NodeId::generate();
            let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
            let peer = Peer { node_id, name: name.parse().unwrap(), address, port: 5432 };
            Bench { engine: Arc::new(world.engine(node_id)), peer }
        };
        contract::a_cluster_lives_and_ends(&node("a", 1), &node("b", 2)).await;
    }
}
