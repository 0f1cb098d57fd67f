//! The closed list of what operations can do, and all that their steps may use.
//!
//! A procedure changes a cluster's record and waits for what the nodes then report, or sends commands and waits for their
//! outcomes. It never talks to an agent by other ways: assignments follow from the records
//! ([`crate::reconcile::assignments`]).
//!
//! | kind | what it does | way back |
//! | --- | --- | --- |
//! | `create_cluster` | [`create`] | removes what was made, then the record |
//! | `add_member` | [`add_member`] | the same for one member |
//! | `remove_member` | [`remove_member`] | none: goes on |
//! | `promote_member` | [`promote`]: another member becomes primary, by plan | before the new one is stored: the old one serves again |
//! | `failover` | [`failover`]: another member becomes primary though the present one cannot hand over | the same |
//! | `resync` | [`resync`]: replicas' data aligned with the primary's | one that could not be aligned keeps what it has |
//! | `restart_cluster` | [`restart`]: replicas one after the other, then the primary by a switchover, or where it is ([`in_place`]) | of the switchover: its own; else it is started again |
//! | `upgrade_cluster` | [`upgrade`]: packages, and servers that run an older program, member by member | as of a restart |
//! | `set_cluster` | [`set`]: parameters, durability and the like of a living cluster | until the primary goes by it: what was declared before |
//! | `regroup` | [`regroup`]: a quorum counts on fewer or more replicas | growing: those as before |
//! | `delete_cluster` | [`delete`] | none: goes on |
//! | `drain_node` | [`drain`]: moves the primaries off a node and keeps new roles away | what has moved stays, and so does the mark |
//! | `reboot_node` | [`reboot`]: drains a node, has its machine boot again, and undrains it once it is whole | until the order: it is as it was; after it: it stays drained unless it is whole |
//! | `clean_node` | [`clean`]: removes what a forced removal left on a node that was away | none: goes on |

pub mod access;
pub mod add_member;
pub mod clean;
pub mod create;
pub mod delete;
pub mod drain;
mod elect;
pub mod failover;
mod in_place;
pub mod nodes;
pub mod parts;
pub mod promote;
mod quorum;
pub mod reboot;
pub mod records;
pub mod regroup;
pub mod remove_member;
pub mod requests;
pub mod restart;
pub mod resync;
pub mod set;
pub mod steps;
#[cfg(test)]
mod tests;
pub mod upgrade;

use std::sync::Arc;

use holdfast_common::clock::Clock;
use holdfast_common::id::ClusterId;
use holdfast_common::name::{ClusterName, NodeName};
use serde::{Deserialize, Serialize};

use crate::event;
use crate::lease::Leases;
use crate::operation::procedure::{Context, Error, Limits, Next, Procedure, StepLabel};

pub use nodes::Nodes;
pub use parts::Parts;
pub use records::Records;

/// All that steps may use.
#[derive(Debug, Clone)]
pub struct Means {
    pub records: Records,
    pub nodes: Arc<dyn Nodes>,
    pub parts: Arc<dyn Parts>,
    pub events: event::Handle,
    pub leases: Leases,
    pub clock: Clock,
    /// Of this coordinator; on every command, so that nodes can tell an older one.
    pub coordinator_generation: holdfast_common::generation::Generation,
}

/// Which cluster a procedure works on: the id tells a namesake that came later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRef {
    pub id: ClusterId,
    pub name: ClusterName,
}

macro_rules! procedures {
    ($($(#[$doc:meta])* $variant:ident($state:ty)),+ $(,)?) => {
        /// Every kind of operation.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", content = "state", rename_all = "snake_case")]
        pub enum Procedures {
            $($(#[$doc])* $variant($state),)+
        }

        impl Procedure for Procedures {
            type Means = Means;

            fn kind(&self) -> &'static str {
                match self { $(Self::$variant(state) => state.kind(),)+ }
            }

            fn steps(&self) -> Vec<StepLabel> {
                match self { $(Self::$variant(state) => state.steps(),)+ }
            }

            fn step(&self) -> String {
                match self { $(Self::$variant(state) => state.step(),)+ }
            }

            async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
                match self { $(Self::$variant(state) => Ok(state.next(ctx).await?.map(Self::$variant)),)+ }
            }

            fn way_back(&self, why: &Error) -> Option<Self> {
                match self { $(Self::$variant(state) => state.way_back(why).map(Self::$variant),)+ }
            }

            fn may_cancel(&self) -> bool {
                match self { $(Self::$variant(state) => state.may_cancel(),)+ }
            }

            fn limits(&self) -> Limits {
                match self { $(Self::$variant(state) => state.limits(),)+ }
            }
        }

        $(impl From<$state> for Procedures {
            fn from(state: $state) -> Self {
                Self::$variant(state)
            }
        })+
    };
}

procedures! {
    CreateCluster(create::Create),
    AddMember(add_member::AddMember),
    RemoveMember(remove_member::RemoveMember),
    PromoteMember(promote::Promote),
    Failover(failover::Failover),
    Resync(resync::Resync),
    Regroup(regroup::Regroup),
    DeleteCluster(delete::Delete),
    CleanNode(clean::Clean),
    DrainNode(drain::Drain),
    RebootNode(reboot::Reboot),
    RestartCluster(restart::Restart),
    UpgradeCluster(upgrade::Upgrade),
    SetCluster(set::Set),
}

/// What an operation on the node holds while it runs.
pub fn node_resource(node: &NodeName) -> String {
    format!("nodes/{node}")
}

/// What an operation on the cluster holds while it runs.
pub fn resource(cluster: &ClusterName) -> String {
    format!("clusters/{cluster}")
}
