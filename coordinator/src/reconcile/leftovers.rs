//! A node that returns is cleaned of what a forced removal left there: an operation for each leftover, one at a time per node.

use std::sync::Arc;

use holdfast_common::error::Classify as _;
use holdfast_common::error::Reason;
use holdfast_common::role::Availability;

use super::Loop;
use crate::operation::{self, Submit};
use crate::procedures::clean::Clean;
use crate::procedures::records::{self, Records};
use crate::procedures::{Nodes, Procedures};

/// The loop's means.
#[derive(Debug)]
pub struct Leftovers {
    pub records: Records,
    pub nodes: Arc<dyn Nodes>,
    pub operations: operation::Handle<Procedures>,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Records(#[from] records::Error),
    #[error(transparent)]
    Operation(#[from] operation::Error),
}

impl Loop for Leftovers {
    type Error = Error;
    const NAME: &'static str = "leftovers";

    async fn round(&mut self) -> Result<(), Error> {
        for leftover in self.records.leftovers().await? {
            let (node, cluster) = (leftover.node_id, leftover.cluster.id);
            match self.nodes.state(node, cluster) {
                None => self.records.cleaned(node, cluster).await?,
                Some(state) if state.availability == Availability::Online => {
                    let resource = format!("nodes/{node}/leftovers");
                    let submit = Submit::new(Clean::new(leftover).into(), resource, "coordinator");
                    match self.operations.submit(submit).await {
                        Ok(_) => {}
                        // It is being done.
                        Err(error) if error.reason() == Reason::OperationInProgress => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}
