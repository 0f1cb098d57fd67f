//! The firewall's table before anything else runs: at boot, before the network is up. The gate is shut in it until the agent
//! opens it.

use std::path::Path;
use std::sync::Arc;

use holdfast_common::clock::Clock;
use holdfast_common::telemetry::Filtering;

use super::{Error, state_files};
use crate::assignment::Assignments;
use crate::firewall::{self, Firewall};
use crate::host::units::Supervisor;
use crate::host::{Host, Limits};
use crate::identity::Identity;
use crate::link::addresses::Addresses;
use crate::terms::Terms;

/// Loads the table for what is assigned. Safe to repeat; what is open stays open.
///
/// # Errors
/// [`Error`], also where nftables cannot be used.
pub async fn load_firewall(state: &Path) -> Result<(), Error> {
    let files = state_files(state);
    let record = Identity::open(files.clone(), state).await?.record();
    // Nothing is supervised here, and systemd cannot be asked yet.
    let limits = Limits {
        roots: vec![state.to_owned()],
        unit_records: state.join("units"),
        supervisor: Supervisor::Plain,
    };
    let host = Host::open(limits).await?;
    // What is damaged is for the agent to tell: here it is as if nothing were assigned.
    let (terms, _findings) = Terms::open(files.clone(), state).await?;
    let (assignments, _findings) = Assignments::open(files.clone(), state, Arc::new(terms)).await?;
    let (_addresses, coordinators) = Addresses::new(record.coordinators()?.all().to_vec());
    let means = firewall::service::Means {
        assignment: assignments.subscribe(),
        coordinators,
        users: super::replicating(&host),
        has_data: Arc::new(|_cluster| Box::pin(std::future::ready(false))),
        clock: Clock::system(),
        tell: Arc::new(|_event| {}),
    };
    let (mut service, handle) = firewall::Service::open(Firewall::new(host), files, state, means).await?;
    service.prepare().await;
    match &handle.status().filtering {
        Filtering::Available => Ok(()),
        Filtering::Unavailable { reason } | Filtering::Failed { reason } => {
            Err(Error::Firewall(reason.clone()))
        }
        Filtering::Unknown => Err(Error::Firewall("it was not tried".to_owned())),
    }
}
