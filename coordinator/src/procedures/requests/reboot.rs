//! `RebootNode`.

use holdfast_common::error::Failure;
use holdfast_common::name::NodeName;

use super::drain::{Moves, moves};
use super::preconditions::{Precondition, about_node};
use super::{Asker, Desk, Prepare, Prepared, store_failure};
use crate::cluster::Cluster;
use crate::directory::Node;
use crate::procedures::drain::{Drain, Purpose, Unmovable};
use crate::procedures::reboot::{self, Reboot, Service};
use crate::procedures::restart;

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct RebootNode {
    pub node: NodeName,
    /// May be empty.
    pub reason: String,
    pub service: Service,
}

impl Prepare for RebootNode {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let node = desk.node("name", &self.node).await?;
        let all = desk.means.records.all().await.map_err(|error| store_failure(&error))?;
        let unmovable = match self.service {
            Service::GoesOn => Unmovable::Refuse,
            Service::MayStop => Unmovable::Leave,
        };
        let Moves { preconditions, mut notes, clusters } = moves(desk, &all, &node, unmovable).await?;
        let mut preconditions: Vec<_> = preconditions
            .into_iter()
            .map(|condition| in_words_of_a_reboot(condition, self.service))
            .collect();
        preconditions.push(in_session(desk, &node));
        for cluster in reboot::members_of(&all, node.id) {
            preconditions.extend(writes_go_on(desk, cluster, &node, self.service));
            notes.extend(alone_meanwhile(desk, cluster, &node));
        }
        match &node.drained {
            Some(drained) => notes.push(format!("the node stays drained, {drained}")),
            None => {
                notes.push(format!("no new role comes to {} until its members are whole again", self.node))
            }
        }
        notes.push("it can be cancelled until the machine is told to shut down".to_owned());
        let mark = reboot::mark(asker.caller.clone(), desk.means.clock.now(), &self.reason);
        let drain = Drain::new(&node, mark, (unmovable, Purpose::Reboot), clusters);
        let procedure = Reboot::new(drain, self.service);
        let steps = procedure.plan();
        let submit = Some(asker.submit_on_node(procedure, &self.node));
        Ok(Prepared { preconditions, steps, notes, submit })
    }
}

/// What a primary that stays means here.
fn in_words_of_a_reboot(condition: Precondition, service: Service) -> Precondition {
    let message = match service {
        Service::GoesOn => condition.message.replace(
            "--force leaves its primary where it is",
            "--force reboots it nevertheless, and nobody serves the cluster meanwhile",
        ),
        Service::MayStop => condition.message.replace(
            "its primary may stay where it is",
            "its primary may stay where it is, and nobody serves the cluster meanwhile",
        ),
    };
    Precondition { message, ..condition }
}

fn in_session(desk: &Desk, node: &Node) -> Precondition {
    let met = desk.means.nodes.boot(node.id).is_some();
    let message = match met {
        true => "its agent is in session",
        false => "its agent is not in session, and cannot be told; start it, or the machine, by other ways",
    };
    Precondition::new("node_in_session", about_node(&node.name), met, message)
}

/// Whether the commits of a quorum have enough replicas without it.
fn writes_go_on(desk: &Desk, cluster: &Cluster, node: &Node, service: Service) -> Option<Precondition> {
    let (there, needed) = restart::without(&desk.means, cluster, node.id);
    if needed == 0 {
        return None;
    }
    let enough = there >= needed;
    let message = match (enough, service) {
        (true, _) => format!("without {} {there} replicas receive, and commits wait for {needed}", node.name),
        (false, Service::MayStop) => format!("writes may wait while {} is away", node.name),
        (false, Service::GoesOn) => {
            format!("{}; --force reboots it nevertheless", reboot::too_few(cluster, there, needed))
        }
    };
    let met = enough || service == Service::MayStop;
    Some(Precondition::new("writes_go_on", format!("clusters/{}", cluster.name), met, message))
}

/// A cluster that has nobody to take over while this one is away.
fn alone_meanwhile(desk: &Desk, cluster: &Cluster, node: &Node) -> Option<String> {
    let receives = |member: &&crate::cluster::Member| {
        member.node_id != node.id
            && desk.means.nodes.state(member.node_id, cluster.id).is_some_and(|state| state.receives())
    };
    // The primary that moves is one of those that stay.
    let moves = cluster.primary == Some(node.id);
    let others = cluster.replicas().filter(receives).count();
    (others == usize::from(moves) && cluster.members.len() > 1).then(|| {
        format!("while {} is away, nobody could take over from the primary of {}", node.name, cluster.name)
    })
}
