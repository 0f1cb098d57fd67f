//! A cluster's lease, in words.

use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1;
use jiff::Timestamp;

use crate::output;

/// Who holds the lease, until when, by whose word.
pub(super) fn lease(lease: &v1::ClusterLease, now: Timestamp) -> String {
    if lease.fenced {
        return format!("none: {} lost it and is stopped until it has a new one", lease.holder);
    }
    let holder = &lease.holder;
    match lease.source() {
        nouns::LeaseSource::Unspecified => match seconds(lease.remembered_until_time.as_ref(), now) {
            Some(left) => format!("unknown: {holder} is silent; it may hold the lease for another {left}"),
            None => format!("unknown: {holder} is silent"),
        },
        nouns::LeaseSource::None => format!("{holder} has none now"),
        nouns::LeaseSource::Coordinator => match seconds(lease.expire_time.as_ref(), now) {
            Some(left) => format!("{holder}, for another {left} unless renewed, by the coordinator's word"),
            None => format!("{holder}, by the coordinator's word"),
        },
        nouns::LeaseSource::Promises => {
            format!("{holder}, by the promises of {}", names(&lease.promotable_nodes))
        }
        nouns::LeaseSource::Alone => format!("{holder} needs none: nobody could take its place"),
    }
}

/// Whether there could be a failover now, and what it would lose.
pub(super) fn failover(lease: &v1::ClusterLease) -> String {
    let Some(failover) = &lease.failover else { return String::new() };
    if !failover.possible {
        return format!("not possible: {}", failover.message);
    }
    let lost = match failover.behind_bytes {
        None => "what it would lose is unknown".to_owned(),
        Some(0) => "nothing would be lost".to_owned(),
        Some(behind) => format!("up to {} would be lost", output::bytes(behind)),
    };
    format!("{} could take over; {lost}", failover.candidate_node)
}

fn names(nodes: &[String]) -> String {
    if nodes.is_empty() { "nobody".to_owned() } else { nodes.join(", ") }
}

fn seconds(until: Option<&prost_types::Timestamp>, now: Timestamp) -> Option<String> {
    let until = Timestamp::new(until?.seconds, until?.nanos).ok()?;
    let left = until.duration_since(now).as_secs_f64();
    (left > 0.0).then(|| format!("{left:.1} s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn every_way_to_serve_is_said() {
        let now = Timestamp::new(100, 0).unwrap();
        let base = v1::ClusterLease {
            holder: "n1".into(),
            promotable_nodes: vec!["n2".into(), "n3".into()],
            ..v1::ClusterLease::default()
        };
        let with = |source: nouns::LeaseSource| v1::ClusterLease { source: source.into(), ..base.clone() };
        let said = [
            lease(&v1::ClusterLease { expire_time: at(104), ..with(nouns::LeaseSource::Coordinator) }, now),
            lease(&with(nouns::LeaseSource::Promises), now),
            lease(&with(nouns::LeaseSource::Alone), now),
            lease(&with(nouns::LeaseSource::None), now),
            lease(&v1::ClusterLease { fenced: true, ..with(nouns::LeaseSource::None) }, now),
            lease(&v1::ClusterLease { remembered_until_time: at(106), ..base.clone() }, now),
            lease(&base, now),
        ];
        let outlook = |possible, behind_bytes, message: &str| {
            let failover =
                v1::Failover { possible, candidate_node: "n2".into(), behind_bytes, message: message.into() };
            failover_of(failover)
        };
        let outlooks = [
            outlook(true, Some(0), ""),
            outlook(true, Some(4096), ""),
            outlook(true, None, ""),
            outlook(false, None, "no other member may be promoted"),
        ];
        insta::assert_snapshot!(said.into_iter().chain(outlooks).collect::<Vec<_>>().join("\n"));
    }

    fn failover_of(failover: v1::Failover) -> String {
        super::failover(&v1::ClusterLease { failover: Some(failover), ..v1::ClusterLease::default() })
    }
}
