//! `DrainNode`, `UndrainNode` and `RebootNode`.

use holdfast_common::error::{Classify as _, Failure, Reason, Violations};
use holdfast_common::report::Severity;
use holdfast_proto::v1 as proto;
use prost::Message as _;

use super::{ATTEMPTS, Nodes};
use crate::directory::{self, Node, put};
use crate::event::NewEvent;
use crate::fleet::NodeView;
use crate::identity::RequestId;
use crate::operation;
use crate::procedures::drain::Unmovable;
use crate::procedures::node_resource;
use crate::procedures::reboot::Service;
use crate::procedures::requests::{DrainNode, RebootNode};
use crate::rpc::convert;
use crate::store::{Compare, Txn};

pub(super) fn parse(request: proto::DrainNodeRequest) -> Result<DrainNode, Failure> {
    let proto::DrainNodeRequest { name, reason, force, request_id: _, validate_only: _ } = request;
    let mut violations = Violations::default();
    let node = violations.take("name", name.parse());
    let reason = convert::reason(&mut violations, &reason);
    let unmovable = if force { Unmovable::Leave } else { Unmovable::Refuse };
    violations.check()?;
    let node = node.ok_or_else(|| Failure::invalid_field("name", "is missing"))?;
    Ok(DrainNode { node, reason, unmovable })
}

pub(super) fn parse_reboot(request: proto::RebootNodeRequest) -> Result<RebootNode, Failure> {
    let proto::RebootNodeRequest { name, reason, force, request_id: _, validate_only: _ } = request;
    let mut violations = Violations::default();
    let node = violations.take("name", name.parse());
    let reason = convert::reason(&mut violations, &reason);
    let service = if force { Service::MayStop } else { Service::GoesOn };
    violations.check()?;
    let node = node.ok_or_else(|| Failure::invalid_field("name", "is missing"))?;
    Ok(RebootNode { node, reason, service })
}

impl Nodes {
    /// The mark goes, unless the node is just being drained. The answer is written with it, for repeats of the call.
    pub(super) async fn undrain(
        &self,
        view: &NodeView,
        actor: String,
        request: Option<&RequestId>,
    ) -> Result<Vec<u8>, Failure> {
        let name = &view.record.name;
        let resource = node_resource(name);
        if let Some(holder) = self.desk.operations.holder(&resource).await.map_err(|it| it.to_failure())? {
            return Err(operation::Error::InProgress { resource, holder }.to_failure());
        }
        let key = directory::node_key(view.id());
        for _ in 0..ATTEMPTS {
            let found = self.directory.get::<Node>(&key).await?.ok_or_else(|| directory::no_node(name))?;
            let was_drained = found.value.drained.is_some();
            let undrained = Node { drained: None, ..found.value };
            let mut txn = Txn::new().when(Compare::unchanged(&key, found.revision));
            if was_drained {
                txn = txn.then(put(&key, &undrained)?);
            }
            let shown = proto::Node { drained: None, ..convert::node(view) };
            let response = proto::UndrainNodeResponse { node: Some(shown) };
            match self.identity.commit(txn, request, response.encode_to_vec()).await {
                Ok(answer) => {
                    if was_drained {
                        let message = format!("node {name} may get new roles again");
                        let event = NewEvent::new(Severity::Info, "NODE_UNDRAINED", message)
                            .on_node(name.as_str())
                            .by(actor);
                        self.events.record(event).await.map_err(|error| error.to_failure())?;
                    }
                    return Ok(answer);
                }
                Err(failure) if failure.reason == Reason::VersionConflict => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::new(Reason::VersionConflict, "the node's record keeps changing; repeat the call"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_with_a_drain_is_told_at_once() {
        let request = proto::DrainNodeRequest {
            name: "N 1".into(),
            reason: "two\nlines".into(),
            ..proto::DrainNodeRequest::default()
        };
        let failure = parse(request).unwrap_err();
        let fields: Vec<&str> = failure.violations.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(fields, ["name", "reason"]);
        let long = proto::DrainNodeRequest {
            name: "n1".into(),
            reason: "x".repeat(201),
            ..proto::DrainNodeRequest::default()
        };
        assert_eq!(parse(long).unwrap_err().reason, Reason::InvalidField);
    }
}
