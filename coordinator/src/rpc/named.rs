//! Names in the filters of lists: what nothing has, and nothing had as far as is kept, is refused rather than answered with an
//! empty list.

use std::fmt::Display;
use std::str::FromStr;

use holdfast_common::error::{Classify as _, Failure, Violations};
use holdfast_common::name::{ClusterName, NodeName};

use crate::cluster::Cluster;
use crate::directory::{Directory, node_name_key};
use crate::procedures::records::cluster_key;

/// A name that may be left out.
pub(super) fn optional<T: FromStr<Err: Display>>(
    violations: &mut Violations,
    field: &str,
    text: &str,
) -> Option<T> {
    if text.is_empty() { None } else { violations.take(field, text.parse()) }
}

/// Whether the fleet has a node of this name now.
pub(super) async fn has_node(directory: &Directory, name: &NodeName) -> Result<bool, Failure> {
    let found = directory.get::<holdfast_common::id::NodeId>(&node_name_key(name)).await;
    found.map(|found| found.is_some()).map_err(|error| error.to_failure())
}

/// Whether there is a cluster of this name now.
pub(super) async fn has_cluster(directory: &Directory, name: &ClusterName) -> Result<bool, Failure> {
    let found = directory.get::<Cluster>(&cluster_key(name)).await;
    found.map(|found| found.is_some()).map_err(|error| error.to_failure())
}
