//! `FailoverCluster`.

use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::position::Position;
use holdfast_common::protocol::Need;
use holdfast_common::role::Availability;

use super::members::active;
use super::preconditions::{Precondition, about_node};
use super::{Asker, Desk, Prepare, Prepared, confirmed};
use crate::cluster::{Cluster, Member, MemberPhase};
use crate::lease::{self, Obstacle};
use crate::procedures::failover::{Failover, Word};
use crate::procedures::records::cluster_key;
use crate::store::Compare;

const OFF: &str = "--old-primary-is-off";

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct FailoverCluster {
    pub cluster: ClusterName,
    /// Who is to be primary; none: whoever has most.
    pub node: Option<NodeName>,
    pub confirm: String,
    /// Also where the old primary has, or may have, acknowledged what nobody else has.
    pub accept_data_loss: bool,
    /// Also where only the caller's word says that the old primary serves no more.
    pub old_primary_is_off: bool,
}

/// What could take the place of a primary that is gone.
#[derive(Debug)]
struct Prospect {
    /// What keeps it from being safe without a person's word.
    obstacle: Option<String>,
    /// Who could be reached then, and how far each is.
    reachable: Vec<(NodeId, Option<Position>)>,
    /// How far the old primary was when it last told.
    last: Option<Position>,
    /// What the best lacks of that, where no word is needed.
    behind: Option<u64>,
    need: Need,
}

impl Prepare for FailoverCluster {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let found = desk.cluster(&self.cluster).await?;
        let cluster = found.value;
        confirmed("cluster", self.cluster.as_str(), &self.confirm)?;
        let target = match &self.node {
            None => None,
            Some(name) => Some(cluster.member_named(name).ok_or_else(|| {
                let message = format!("cluster `{}` has no member on node `{name}`", self.cluster);
                Failure::about(Reason::MemberNotFound, "member", name, message)
            })?),
        };
        let mut preconditions = vec![active(&cluster)];
        let mut notes = Vec::new();
        let mut procedure = Failover::new(&cluster, target.map(|target| target.node_id));
        match prospect(desk, &cluster, target) {
            Err(unmet) => preconditions.push(unmet),
            Ok(prospect) => {
                let word = cluster
                    .primary_member()
                    .filter(|_| self.old_primary_is_off && prospect.obstacle.is_some())
                    .map(|primary| Word { by: asker.caller.clone(), of: primary.node_name.clone() });
                if self.old_primary_is_off {
                    preconditions.extend(cluster.primary_member().map(|primary| is_off(desk, primary)));
                }
                if self.old_primary_is_off && word.is_none() {
                    notes.push(format!("enough others can be reached: {OFF} is not needed, and not gone by"));
                }
                preconditions.push(possible(&cluster, &prospect, word.as_ref()));
                preconditions.push(self.loss_accepted(&cluster, &prospect, word.as_ref()));
                if let Some(word) = word {
                    notes.push(format!("you vouch for it: {word}; this is told with your name, and kept"));
                    procedure = procedure.map(|procedure| procedure.by_word(word));
                }
            }
        }
        let steps = procedure.as_ref().map(Failover::plan).unwrap_or_default();
        let submit = procedure.map(|procedure| {
            let key = cluster_key(&cluster.name);
            asker.submit(procedure, &cluster).when(Compare::unchanged(&key, found.revision))
        });
        notes.extend([
            "if the primary can still hand over, `cluster promote` does it without waiting for its lease".to_owned(),
            "an old primary that comes back follows if its log is a prefix of the new one's; else its own log is \
             set aside, and it is rewound or copied by itself"
                .to_owned(),
        ]);
        Ok(Prepared { preconditions, steps, notes, submit })
    }
}

/// Whether there could be one now.
fn possible(cluster: &Cluster, prospect: &Prospect, word: Option<&Word>) -> Precondition {
    let (met, message) = match (&prospect.obstacle, word) {
        (None, _) => (true, "another member could take over".to_owned()),
        (Some(obstacle), None) => {
            (false, format!("{obstacle}; {OFF} goes on nevertheless, if you vouch for that"))
        }
        (Some(_), Some(_)) if prospect.reachable.is_empty() => {
            (false, "whoever is to take over cannot be reached".to_owned())
        }
        (Some(obstacle), Some(_)) => (true, format!("by your word alone: {obstacle}")),
    };
    Precondition::new("failover_possible", format!("clusters/{}", cluster.name), met, message)
}

/// Whether it may be true that it is off.
fn is_off(desk: &Desk, primary: &Member) -> Precondition {
    let silent = desk.means.nodes.is_silent(primary.node_id);
    let heard = match silent {
        true => "nothing is heard of it",
        false => "it is heard of, so it is not off; fence it with `cluster failover` alone, or turn it off",
    };
    Precondition::new("old_primary_is_off", about_node(&primary.node_name), silent, heard)
}

impl FailoverCluster {
    /// Whether what it would lose is accepted.
    fn loss_accepted(&self, cluster: &Cluster, prospect: &Prospect, word: Option<&Word>) -> Precondition {
        let (lossless, found) = match prospect.loss(word.is_some()) {
            Loss::Nothing(why) => (true, why.to_owned()),
            Loss::AtLeast(bytes) => (
                false,
                format!(
                    "{bytes} bytes of what the primary last reported are on no member that can be reached"
                ),
            ),
            Loss::Unknown => (false, "how much the primary has beyond its replicas is not known".to_owned()),
        };
        let met = lossless || self.accept_data_loss;
        let remedy = if met { "" } else { "; --accept-data-loss goes on nevertheless" };
        Precondition::new("loss_accepted", format!("clusters/{}", cluster.name), met, found + remedy)
    }
}

/// What would be lost.
enum Loss {
    Nothing(&'static str),
    AtLeast(u64),
    Unknown,
}

impl Prospect {
    fn loss(&self, by_word: bool) -> Loss {
        let best = self.reachable.iter().filter_map(|(_, position)| *position).max();
        match (by_word, self.need, self.behind) {
            // It may have acknowledged more than it has reported, and members that cannot be reached may have that.
            (true, _, _) => match best.zip(self.last).map(|(best, last)| best.behind(last)) {
                Some(bytes) => Loss::AtLeast(bytes),
                None => Loss::Unknown,
            },
            (false, Need::Any(_), _) => Loss::Nothing("nothing that was acknowledged is lost"),
            (false, Need::All, Some(0)) => {
                Loss::Nothing("the best replica has all that the primary last reported")
            }
            (false, Need::All, Some(bytes)) => Loss::AtLeast(bytes),
            (false, Need::All, None) => Loss::Unknown,
        }
    }
}

/// Looks at who could take over.
///
/// # Errors
/// What is in the way whatever anybody vouches for.
fn prospect(desk: &Desk, cluster: &Cluster, target: Option<&Member>) -> Result<Prospect, Precondition> {
    let subject = format!("clusters/{}", cluster.name);
    let unmet = |message: &str| Precondition::new("failover_possible", subject.clone(), false, message);
    if target.is_some_and(|target| cluster.primary == Some(target.node_id)) {
        return Err(unmet("it is the primary already; name another member"));
    }
    let Some(lease::View { reign, last, .. }) = desk.means.leases.view(cluster.id) else {
        return Err(unmet("the cluster's lease is not known yet; try again in a moment"));
    };
    let report = |node| {
        let state = desk.means.nodes.state(node, cluster.id)?;
        Some((state.availability, state.report?.0))
    };
    let position = |node| {
        let (availability, report) = report(node)?;
        (availability == Availability::Online).then_some(report.position)
    };
    let last = report(reign.primary).and_then(|(_, report)| report.position).max(last);
    let outlook = lease::outlook(&reign, last, position);
    if outlook.obstacle == Some(Obstacle::UnderWay) {
        return Err(unmet(&Obstacle::UnderWay.to_string()));
    }
    let candidates = cluster.replicas().filter(|member| member.phase == MemberPhase::Active);
    let candidates = candidates.filter(|member| target.is_none_or(|target| target.node_id == member.node_id));
    let reachable = candidates.filter_map(|member| Some((member.node_id, position(member.node_id)?)));
    let stranger = target.filter(|target| !reign.is_promotable(target.node_id)).map(|target| {
        format!("the primary did not count on {}, so it may lack what was acknowledged", target.node_name)
    });
    Ok(Prospect {
        obstacle: outlook.obstacle.map(|obstacle| obstacle.to_string()).or(stranger),
        reachable: reachable.collect(),
        last,
        behind: outlook.behind,
        need: reign.newest().need,
    })
}
