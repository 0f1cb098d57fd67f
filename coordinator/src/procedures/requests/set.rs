//! `UpdateCluster`.

use std::collections::BTreeMap;

use holdfast_common::engine::{Parameters, TakesEffect};
use holdfast_common::error::{Failure, Violations};
use holdfast_common::name::ClusterName;
use holdfast_common::protocol::{Profile, Timings};
use holdfast_common::role::{Availability, Durability};

use super::members::active;
use super::policy::Settings;
use super::preconditions::{Precondition, about_node, online};
use super::promote::serves;
use super::restart::writes_go_on;
use super::retune::Previews;
use super::{Asker, Desk, Prepare, Prepared};
use crate::cluster::{Cluster, Member};
use crate::procedures::in_place;
use crate::procedures::records::cluster_key;
use crate::procedures::restart::Writes;
use crate::procedures::set::{Declared, Restarts, Set};
use crate::store::Compare;

/// The request, checked field by field as far as that can be done without the cluster.
#[derive(Debug, Clone)]
pub struct SetCluster {
    pub cluster: ClusterName,
    pub settings: Settings,
    pub parameters: Parameters,
    pub reset: Vec<String>,
    pub durability: Option<Durability>,
    pub lease_profile: Option<Profile>,
    /// Members decide their settings anew.
    pub retune: bool,
    pub writes: Writes,
}

impl SetCluster {
    /// Whether it is about more than the record.
    pub fn needs_operation(&self) -> bool {
        let paced = self.durability.is_some() || self.lease_profile.is_some();
        paced || self.retune || !self.parameters.is_empty() || !self.reset.is_empty()
    }

    /// What is to be declared, as it would be checked at a creation.
    fn declared(&self, cluster: &Cluster) -> Result<Declared, Failure> {
        let mut all = BTreeMap::from(cluster.parameters.clone());
        let mut violations = Violations::default();
        for (index, name) in self.reset.iter().enumerate() {
            let field = format!("reset_parameters[{index}]");
            if self.parameters.get(name).is_some() {
                violations.add(field, format!("names `{name}`, which is to be set too; do one of both"));
            } else if all.remove(name).is_none() {
                let shown = format!("`holdfast cluster show {}` names those that are", cluster.name);
                violations.add(field, format!("names `{name}`, which nobody has set; {shown}"));
            }
        }
        all.extend(self.parameters.iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        let all = violations.take("parameters", Parameters::try_from(all));
        let database = cluster.access.database.as_str();
        let all = all.map(|all| cluster.engine.with_needed(all, &cluster.extensions, database));
        let parameters = all.and_then(|all| violations.take("parameters", all));
        if let Some(parameters) = &parameters {
            violations.extend(cluster.engine.violations(parameters));
            violations.extend(cluster.engine.misfits(parameters, Some(&cluster.engine_version)));
        }
        let Some(parameters) = parameters.filter(|_| violations.is_empty()) else {
            return Err(violations.into_failure());
        };
        let Settings { max_lag_on_failover, on_replica_loss } = self.settings;
        Ok(Declared {
            parameters,
            durability: self.durability.unwrap_or(cluster.durability),
            max_lag_on_failover: max_lag_on_failover.unwrap_or(cluster.max_lag_on_failover),
            on_replica_loss: on_replica_loss.unwrap_or(cluster.on_replica_loss),
            lease_profile: self.lease_profile.unwrap_or(cluster.lease_profile),
        })
    }
}

impl Prepare for SetCluster {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let found = desk.cluster(&self.cluster).await?;
        let cluster = found.value;
        let to = self.declared(&cluster)?;
        let previews = if self.retune { Some(Previews::ask(desk, &cluster).await) } else { None };
        let retuned = previews.as_ref().is_some_and(|previews| previews.restarts(&to));
        let changes = Changes { retuned, ..Changes::of(&cluster, &to) };
        let mut preconditions = vec![active(&cluster)];
        preconditions.extend(previews.iter().flat_map(Previews::preconditions));
        // A restart of the others could leave one behind that cannot follow any more, and a promise must be as patient as the primary
        // thinks; all else waits for its return.
        let paced = cluster.lease_profile != to.lease_profile || cluster.lease_patience.is_some();
        let late: Vec<&Member> = match changes.restarts() {
            Restarts::None if !paced && !self.retune => {
                cluster.replicas().filter(|member| is_offline(desk, &cluster, member)).collect()
            }
            Restarts::None | Restarts::WhereNeeded => Vec::new(),
        };
        if self.needs_operation() {
            let members = cluster.members.iter().filter(|member| !late.contains(member));
            let named: Vec<_> = members.map(|member| (member.node_id, member.node_name.clone())).collect();
            preconditions.extend(online(&desk.means, cluster.id, &named));
            preconditions.extend(memory(desk, &cluster, &to));
        }
        if changes.restarts() == Restarts::WhereNeeded {
            preconditions
                .extend(cluster.primary_member().map(|primary| serves(&desk.means, &cluster, primary)));
            preconditions.extend(writes_go_on(desk, &cluster, cluster.replicas(), self.writes));
        }
        if cluster.durability == Durability::Async && to.durability == Durability::Quorum {
            preconditions.push(has_replica(&cluster));
        }
        let of_tuning = previews.as_ref().map(|previews| previews.notes(&to)).unwrap_or_default();
        let notes = match self.needs_operation() {
            true => {
                of_tuning.into_iter().chain(changes.notes(&cluster, &to)).chain(notes_of(&late)).collect()
            }
            false => vec!["recorded at once: nothing is done on the nodes".to_owned()],
        };
        let procedure = Set::new(&cluster, to.clone(), changes.restarts(), self.writes);
        let procedure = match &previews {
            Some(previews) => procedure.map(|set| set.retuning(previews.kept())),
            None => procedure,
        };
        let steps = procedure.as_ref().map(Set::plan).unwrap_or_default();
        let submit = procedure.map(|procedure| {
            let unchanged = Compare::unchanged(cluster_key(&cluster.name), found.revision);
            asker.submit(procedure, &cluster).when(unchanged)
        });
        Ok(Prepared { preconditions, steps, notes, submit })
    }
}

/// The changed parameters, by when they take effect.
struct Changes<'a> {
    at_once: Vec<&'a str>,
    at_start: Vec<&'a str>,
    as_the_server_says: Vec<&'a str>,
    lowered: Vec<&'static str>,
    /// A setting that is decided anew is read at a start alone.
    retuned: bool,
}

impl<'a> Changes<'a> {
    fn of(cluster: &'a Cluster, to: &'a Declared) -> Self {
        let lowered = cluster.engine.lowered(&cluster.parameters, &to.parameters);
        let mut changes = Self {
            at_once: Vec::new(),
            at_start: Vec::new(),
            as_the_server_says: Vec::new(),
            lowered,
            retuned: false,
        };
        for name in cluster.parameters.changed(&to.parameters) {
            match cluster.engine.takes_effect(name, &cluster.engine_version) {
                TakesEffect::AtOnce => changes.at_once.push(name),
                TakesEffect::AtStart => changes.at_start.push(name),
                TakesEffect::AsTheServerSays => changes.as_the_server_says.push(name),
            }
        }
        changes
    }

    fn restarts(&self) -> Restarts {
        let none = self.at_start.is_empty() && self.as_the_server_says.is_empty();
        if none && !self.retuned { Restarts::None } else { Restarts::WhereNeeded }
    }

    fn notes(&self, cluster: &Cluster, to: &Declared) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |names: &[&str], what: &str| {
            if !names.is_empty() {
                notes.push(format!("{}: {what}", names.join(", ")));
            }
        };
        note(&self.at_once, "taken over at once, without a restart");
        note(&self.at_start, "taken over when a server starts: each is restarted");
        note(
            &self.as_the_server_says,
            "of an extension: servers are restarted if they say that they need it",
        );
        note(&self.lowered, "lowered, so the primary takes it over first, and the replicas after it");
        if self.restarts() == Restarts::WhereNeeded {
            notes.push(in_place::note());
            if cluster.replicas().next().is_some() {
                notes.push("readers of a replica are cut off while it restarts".to_owned());
            }
        }
        let members = cluster.members.len();
        match (cluster.durability, to.durability) {
            (Durability::Async, Durability::Quorum) => notes.push(format!(
                "durability quorum: a commit is acknowledged once {} of {} replicas have it; recorded once the primary enforces it",
                Durability::Quorum.synchronous_count(members),
                members.saturating_sub(1)
            )),
            (Durability::Quorum, Durability::Async) => {
                notes.push("durability async: losing the primary may lose the last commits".to_owned());
            }
            (Durability::Async, Durability::Async) | (Durability::Quorum, Durability::Quorum) => {}
        }
        if cluster.lease_profile != to.lease_profile {
            let Timings { lease, .. } = to.lease_profile.timings();
            notes.push(format!(
                "lease profile {}: a lease lasts {} s; the others go by it first where it is longer, the primary where it is shorter; nobody is interrupted",
                to.lease_profile,
                lease.as_secs_f64()
            ));
        }
        notes.push("if a step fails, what was declared before is put back".to_owned());
        notes
    }
}

fn is_offline(desk: &Desk, cluster: &Cluster, member: &Member) -> bool {
    let state = desk.means.nodes.state(member.node_id, cluster.id);
    state.is_some_and(|state| state.availability == Availability::Offline)
}

fn notes_of<'a>(late: &'a [&Member]) -> impl Iterator<Item = String> + 'a {
    late.iter().map(|member| format!("{} is offline: it goes by this once it is back", member.node_name))
}

fn has_replica(cluster: &Cluster) -> Precondition {
    let met = cluster.replicas().next().is_some();
    let message = if met {
        "the cluster has a replica"
    } else {
        "it has one member only, and this would be durability quorum with nobody to wait for; add a member first, or stay with async"
    };
    Precondition::new("has_replica", format!("clusters/{}", cluster.name), met, message)
}

/// What asks for more memory than a member's machine has.
fn memory(desk: &Desk, cluster: &Cluster, to: &Declared) -> Vec<Precondition> {
    let beyond = |member: &Member| {
        let machine = desk.means.nodes.machine(member.node_id)?;
        let beyond = cluster.engine.beyond_memory(&to.parameters, machine.memory_bytes);
        let unmet = |it: holdfast_common::error::Violation| {
            Precondition::new(&it.name, about_node(&member.node_name), false, it.message)
        };
        Some(beyond.into_iter().map(unmet).collect::<Vec<_>>())
    };
    cluster.members.iter().filter_map(beyond).flatten().collect()
}
