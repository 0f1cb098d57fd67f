//! `UpdateCluster`: what is to be another, as far as that can be checked without the cluster.

use holdfast_common::engine::MAX_PARAMETERS;
use holdfast_common::error::{Failure, Violations};
use holdfast_proto::v1 as proto;

use super::{complete, parse_durability, parse_parameters, parse_profile, writes};
use crate::cluster::OnReplicaLoss;
use crate::procedures::requests::{SetCluster, Settings};

pub(in crate::rpc::clusters) fn set(request: proto::UpdateClusterRequest) -> Result<SetCluster, Failure> {
    let on_loss = request.on_replica_loss();
    let proto::UpdateClusterRequest {
        cluster,
        max_lag_on_failover_bytes,
        on_replica_loss,
        parameters,
        reset_parameters: reset,
        durability,
        lease_profile,
        retune,
        force,
        request_id: _,
        validate_only: _,
    } = request;
    let mut violations = Violations::default();
    let cluster = violations.take("cluster", cluster.parse());
    let on_loss = match on_loss {
        proto::OnReplicaLoss::Unspecified if on_replica_loss != 0 => {
            violations.add("on_replica_loss", format!("{on_replica_loss} is unknown; use shrink or block"));
            None
        }
        proto::OnReplicaLoss::Unspecified => None,
        proto::OnReplicaLoss::Shrink => Some(OnReplicaLoss::Shrink),
        proto::OnReplicaLoss::Block => Some(OnReplicaLoss::Block),
    };
    if reset.len() > MAX_PARAMETERS {
        violations.add("reset_parameters", format!("names more than {MAX_PARAMETERS} parameters"));
    }
    let nothing =
        max_lag_on_failover_bytes.is_none() && [on_replica_loss, durability, lease_profile] == [0; 3];
    if nothing && !retune && parameters.is_empty() && reset.is_empty() {
        let others = "parameters, reset_parameters, durability, lease_profile, retune or on_replica_loss";
        violations.add("max_lag_on_failover_bytes", format!("nothing is to be changed; set this, {others}"));
    }
    let durability = (durability != 0).then(|| parse_durability(durability, &mut violations)).flatten();
    let lease_profile = (lease_profile != 0).then(|| parse_profile(lease_profile, &mut violations));
    // Of which engine they are, and what fits beside those that are set, the cluster tells.
    let parameters = parse_parameters(parameters, None, None, &mut violations);
    let settings = Settings { max_lag_on_failover: max_lag_on_failover_bytes, on_replica_loss: on_loss };
    let writes = writes(force);
    let parts = cluster.zip(parameters).map(|(cluster, parameters)| SetCluster {
        cluster,
        settings,
        parameters,
        reset,
        durability,
        lease_profile,
        retune,
        writes,
    });
    complete(violations, parts)
}

#[cfg(test)]
mod tests {
    use holdfast_common::role::Durability;

    use super::*;

    fn good() -> proto::UpdateClusterRequest {
        proto::UpdateClusterRequest {
            cluster: "demo".into(),
            parameters: [("work_mem".to_owned(), "8MB".to_owned())].into(),
            ..proto::UpdateClusterRequest::default()
        }
    }

    fn refused(change: impl FnOnce(&mut proto::UpdateClusterRequest)) -> Vec<String> {
        let mut request = good();
        change(&mut request);
        set(request).unwrap_err().violations.into_iter().map(|violation| violation.name).collect()
    }

    #[test]
    fn each_bad_field_is_refused_by_name() {
        assert_eq!(refused(|it| it.cluster = "../x".into()), ["cluster"]);
        assert_eq!(refused(|it| it.on_replica_loss = 9), ["on_replica_loss"]);
        assert_eq!(refused(|it| it.durability = 9), ["durability"]);
        assert_eq!(refused(|it| it.lease_profile = 9), ["lease_profile"]);
        assert_eq!(refused(|it| it.parameters.clear()), ["max_lag_on_failover_bytes"]);
        assert_eq!(refused(|it| it.reset_parameters = vec!["x".into(); 201]), ["reset_parameters"]);
        let broken = refused(|it| it.parameters = [("a b".to_owned(), "1".to_owned())].into());
        assert_eq!(broken, ["parameters[a b]"]);
    }

    #[test]
    fn what_needs_no_work_on_the_nodes_needs_no_operation() {
        let settings = proto::UpdateClusterRequest {
            cluster: "demo".into(),
            max_lag_on_failover_bytes: Some(0),
            ..proto::UpdateClusterRequest::default()
        };
        assert!(!set(settings.clone()).unwrap().needs_operation());
        assert!(set(good()).unwrap().needs_operation());
        let quorum = set(proto::UpdateClusterRequest { durability: 2, ..settings }).unwrap();
        assert_eq!((quorum.durability, quorum.needs_operation()), (Some(Durability::Quorum), true));
    }
}
