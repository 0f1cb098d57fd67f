//! The clusters' series, made at each scrape: the records as they were read last, and what the nodes report then.

use std::fmt::Error;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::nodes::number;
use crate::cluster::Cluster;
use crate::cluster::observed::{self, MemberView, NodeState, View};
use crate::fleet::Handle;

/// The records as they were read last. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Known(Arc<RwLock<Vec<Cluster>>>);

/// Makes the clusters' series.
#[derive(Debug)]
pub(super) struct Clusters {
    pub(super) fleet: Handle,
    pub(super) known: Known,
}

type Labels = Vec<(&'static str, String)>;

/// One gauge of a cluster.
struct OfCluster {
    name: &'static str,
    help: &'static str,
    read: fn(&Cluster, &View) -> Option<f64>,
}

/// One gauge of a member.
struct OfMember {
    name: &'static str,
    help: &'static str,
    read: fn(&MemberView) -> Option<f64>,
}

const OF_CLUSTERS: &[OfCluster] = &[
    OfCluster {
        name: "cluster_term",
        help: "Rises with every change of primary",
        read: |cluster, _| Some(number(cluster.term.get())),
    },
    OfCluster {
        name: "cluster_members",
        help: "Members that are recorded",
        read: |cluster, _| u32::try_from(cluster.members.len()).ok().map(f64::from),
    },
    OfCluster {
        name: "cluster_synchronous_replicas",
        help: "Replicas that must have a commit before it is acknowledged, as the primary enforces it",
        read: |_, view| view.synchronous_count.map(f64::from),
    },
];

const OF_MEMBERS: &[OfMember] = &[
    OfMember {
        name: "member_streaming",
        help: "1 while a replica receives from its primary",
        read: |member| member.streaming.map(|streaming| f64::from(u8::from(streaming))),
    },
    OfMember {
        name: "member_lag_bytes",
        help: "How much of the primary's log a replica has not replayed",
        read: |member| member.lag_bytes.map(number),
    },
    OfMember {
        name: "member_lag_seconds",
        help: "How old what a replica has replayed is",
        read: |member| member.lag_seconds,
    },
    OfMember {
        name: "member_last_report_age_seconds",
        help: "Time since its node told of it",
        read: |member| Some(Timestamp::now().duration_since(member.observed_at?).as_secs_f64()),
    },
];

// === impl Known ===

impl Known {
    pub(super) fn set(&self, clusters: Vec<Cluster>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = clusters;
    }

    fn get(&self) -> Vec<Cluster> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// === impl Clusters ===

impl Clusters {
    fn views(&self) -> Vec<(Cluster, View)> {
        let seen = |cluster: Cluster| {
            let view = observed::view(&cluster, |node| {
                let node = self.fleet.node(node)?;
                let report = node.report.as_ref().map(|received| (&*received.report, received.received_at));
                Some(NodeState::new(node.availability, report, cluster.id))
            });
            (cluster, view)
        };
        self.known.get().into_iter().map(seen).collect()
    }
}

impl Collector for Clusters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let views = self.views();
        let mut states = encoder.encode_descriptor(
            "cluster_state",
            "1 for the state in which a cluster is",
            None,
            MetricType::Gauge,
        )?;
        for (cluster, view) in &views {
            let labels: Labels =
                vec![("cluster", cluster.name.to_string()), ("state", view.health.to_string())];
            states.encode_family(&labels)?.encode_gauge(&1_u32)?;
        }
        for OfCluster { name, help, read } in OF_CLUSTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (cluster, view) in &views {
                if let Some(value) = read(cluster, view) {
                    let labels: Labels = vec![("cluster", cluster.name.to_string())];
                    metric.encode_family(&labels)?.encode_gauge(&value)?;
                }
            }
        }
        let mut members = encoder.encode_descriptor(
            "member_state",
            "1 for the state in which a member is, and the role it should have",
            None,
            MetricType::Gauge,
        )?;
        for (labels, member) in all_members(&views) {
            let state = member.state.map_or_else(|| "unknown".to_owned(), |state| state.to_string());
            let labels = [labels, vec![("role", member.role.to_string()), ("state", state)]].concat();
            members.encode_family(&labels)?.encode_gauge(&1_u32)?;
        }
        for OfMember { name, help, read } in OF_MEMBERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, member) in all_members(&views) {
                if let Some(value) = read(member) {
                    metric.encode_family(&labels)?.encode_gauge(&value)?;
                }
            }
        }
        Ok(())
    }
}

fn all_members(views: &[(Cluster, View)]) -> impl Iterator<Item = (Labels, &MemberView)> {
    views.iter().flat_map(|(cluster, view)| {
        view.members.iter().map(|member| {
            (vec![("cluster", cluster.name.to_string()), ("node", member.node_name.to_string())], member)
        })
    })
}
