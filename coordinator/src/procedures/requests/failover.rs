//! `FailoverCluster`.

use holdfast_common::error::{Failure, Reason};
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::protocol::Need;
use holdfast_common::role::Availability;

use super::members::active;
use super::preconditions::{Precondition, about_node};
use super::{Asker, Desk, Prepare, Prepared, confirmed};
use crate::cluster::Cluster;
use crate::lease;
use crate::procedures::failover::{self, Failover};
use crate::procedures::records::cluster_key;
use crate::store::Compare;

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct FailoverCluster {
    pub cluster: ClusterName,
    /// Who is to be primary; none: whoever has most.
    pub node: Option<NodeName>,
    pub confirm: String,
    /// Also where the old primary has, or may have, acknowledged what nobody else has.
    pub accept_data_loss: bool,
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
        preconditions.extend(self.outlook(desk, &cluster));
        if let Some(target) = target {
            let regent = desk.means.leases.regent(cluster.id);
            let met = regent.is_some_and(|regent| regent.reign.is_promotable(target.node_id));
            let message = if met {
                "the primary counted on it"
            } else {
                "the primary did not count on it, so it may lack what was acknowledged; name another member"
            };
            preconditions.push(Precondition::new("promotable", about_node(&target.node_name), met, message));
        }
        let submit = Failover::new(&cluster, target.map(|target| target.node_id)).map(|procedure| {
            let key = cluster_key(&cluster.name);
            asker.submit(procedure, &cluster).when(Compare::unchanged(&key, found.revision))
        });
        let notes = vec![
            "if the primary can still hand over, `cluster promote` does it without waiting for its lease".to_owned(),
            "an old primary that comes back follows if its log is a prefix of the new one's; else its own log is \
             set aside, and it is rewound or copied by itself"
                .to_owned(),
        ];
        Ok(Prepared { preconditions, steps: failover::plan(), notes, submit })
    }
}

impl FailoverCluster {
    /// Whether there could be one now, and what it would lose.
    fn outlook(&self, desk: &Desk, cluster: &Cluster) -> Vec<Precondition> {
        let subject = format!("clusters/{}", cluster.name);
        let Some(lease::View { reign, last, .. }) = desk.means.leases.view(cluster.id) else {
            let message = "the cluster's lease is not known yet; try again in a moment";
            return vec![Precondition::new("failover_possible", subject, false, message)];
        };
        let report = |node| {
            let state = desk.means.nodes.state(node, cluster.id)?;
            Some((state.availability, state.report?.0))
        };
        let last = report(reign.primary).and_then(|(_, report)| report.position).max(last);
        let outlook = lease::outlook(&reign, last, |node| {
            let (availability, report) = report(node)?;
            (availability == Availability::Online).then_some(report.position)
        });
        let possible = match &outlook.obstacle {
            Some(obstacle) => {
                Precondition::new("failover_possible", subject.clone(), false, obstacle.to_string())
            }
            None => Precondition::new(
                "failover_possible",
                subject.clone(),
                true,
                "another member could take over",
            ),
        };
        let quorum = reign.newest().need != Need::All;
        let (lossless, found) = match outlook.behind {
            _ if quorum => (true, "nothing that was acknowledged is lost".to_owned()),
            Some(0) => (true, "the best replica has all that the primary last reported".to_owned()),
            Some(bytes) => {
                (false, format!("{bytes} bytes of what the primary last reported are on no replica"))
            }
            None => (false, "how much the primary has beyond its replicas is not known".to_owned()),
        };
        let met = lossless || self.accept_data_loss;
        let remedy = if met { "" } else { "; --accept-data-loss goes on nevertheless" };
        vec![possible, Precondition::new("loss_accepted", subject, met, found + remedy)]
    }
}
