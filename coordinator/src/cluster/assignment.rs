//! What each node must keep true, from the clusters' records. Pure.

use holdfast_common::access::Access;
use holdfast_common::assignment::{MemberAssignment, Peer, Power, RoleAssignment};
use holdfast_common::id::{ClusterId, NodeId};

use super::access::Declared;
use super::{Cluster, Member, MemberPhase, Phase};

/// The members that `node` must keep, in the order of the clusters' ids.
///
/// A member without data gets none; nor does one that is being removed, so that nothing starts it again.
pub fn members_of<'a>(
    clusters: impl IntoIterator<Item = &'a Cluster>,
    access: impl Fn(ClusterId) -> Option<&'a Declared>,
    node: NodeId,
) -> Vec<MemberAssignment> {
    let mut members: Vec<MemberAssignment> = clusters
        .into_iter()
        .filter_map(|cluster| member_assignment(cluster, access(cluster.id), node))
        .collect();
    members.sort_by_key(|member| member.cluster_id);
    members
}

/// What `node` must keep of `cluster`, which is closed where no access was declared.
pub fn member_assignment(
    cluster: &Cluster,
    access: Option<&Declared>,
    node: NodeId,
) -> Option<MemberAssignment> {
    let member = cluster.member(node)?;
    let has_data = matches!(member.phase, MemberPhase::Active | MemberPhase::Aligning);
    if !has_data || cluster.phase == Phase::Deleting {
        return None;
    }
    let role = if cluster.primary == Some(node) {
        RoleAssignment::Primary { synchronous: cluster.enforced_synchronous().clone() }
    } else {
        RoleAssignment::Replica { upstream: cluster.peer(cluster.primary_member()?) }
    };
    let access = access.map(Declared::for_nodes).unwrap_or_default();
    Some(MemberAssignment { access, ..build(cluster, member, role) })
}

/// What the node of a member whose data are still to be made must know to make them: as primary if it is to be the first.
pub fn prospective(cluster: &Cluster, member: &Member) -> MemberAssignment {
    let role = match cluster.primary_member() {
        Some(primary) if primary.node_id != member.node_id => {
            RoleAssignment::Replica { upstream: cluster.peer(primary) }
        }
        Some(_) | None => RoleAssignment::Primary { synchronous: cluster.enforced_synchronous().clone() },
    };
    let assignment = build(cluster, member, role);
    MemberAssignment { term: cluster.command_term(), ..assignment }
}

fn build(cluster: &Cluster, member: &Member, role: RoleAssignment) -> MemberAssignment {
    let members: Vec<Peer> = cluster
        .members
        .iter()
        .filter(|member| member.phase != MemberPhase::Leaving)
        .map(|member| cluster.peer(member))
        .collect();
    MemberAssignment {
        cluster_id: cluster.id,
        cluster_name: cluster.name.clone(),
        engine: cluster.engine,
        engine_version: cluster.engine_version.clone(),
        term: cluster.term,
        role,
        port: cluster.port,
        address: member.address,
        replication_port: cluster.replication_port,
        gated_ports: cluster.gated_ports.clone(),
        parameters: cluster.parameters.clone(),
        members,
        extensions: cluster.extensions.clone(),
        system_identifier: cluster.system_identifier.clone(),
        power: Power::Running,
        access: Access::default(),
        exposure: cluster.exposure,
        profile: cluster.lease_profile,
        patience: cluster.lease_patience,
    }
}
