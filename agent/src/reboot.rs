//! What is done with the node as a whole: it is rebooted. What is done with its members is the engines' business ([`Engines`]).
//!
//! ```text
//!  journaled ─► asked for ─► (the machine goes down) ─► an agent that starts finds another boot id ─► done
//!                   │                                                        └─ the same one: asked for once more
//!                   └─ nothing has come of it by the deadline ─► failed
//! ```
//! A command names the boot that it ends, so no repeat of it ever ends another.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_common::assignment::{Assignment, RoleAssignment};
use holdfast_common::command::{Outcome, Payload, RebootNode, Success};
use holdfast_common::error::{Chain, Failure, Reason};
use tokio::sync::watch;

use crate::dispatch::Execute;
use crate::engine::{Engines, Work};
use crate::host::Host;

/// Does what commands say.
#[derive(Debug)]
pub struct Deeds {
    pub engines: Engines,
    pub host: Host,
    pub assignment: watch::Receiver<Arc<Assignment>>,
}

// === impl Deeds ===

impl Execute for Deeds {
    fn execute<'a>(&'a self, payload: &'a Payload, work: &'a Work) -> BoxFuture<'a, Outcome> {
        let Payload::RebootNode(request) = payload else {
            return self.engines.execute(payload, work).boxed();
        };
        self.reboot(request, work).boxed()
    }

    fn is_done(&self, payload: &Payload) -> Option<Success> {
        let Payload::RebootNode(request) = payload else { return None };
        self.has_booted(request).ok().flatten()
    }
}

impl Deeds {
    async fn reboot(&self, request: &RebootNode, work: &Work) -> Outcome {
        if let Some(done) = self.has_booted(request)? {
            return Ok(done);
        }
        let assignment = Arc::clone(&self.assignment.borrow());
        let is_primary = |role: &RoleAssignment| matches!(role, RoleAssignment::Primary { .. });
        let mut primaries = assignment.members.iter().filter(|member| is_primary(&member.role));
        if let Some(member) = primaries.next().filter(|_| !request.with_primaries) {
            let message =
                format!("the primary of {} is on this node; it was not rebooted", member.cluster_name);
            return Err(Failure::new(Reason::PreconditionFailed, message));
        }
        work.say("the machine is told to shut down and to boot again");
        let told = self.host.system().reboot().await;
        told.map_err(|error| Failure::new(Reason::PreconditionFailed, Chain(&error).to_string()))?;
        work.say("the machine shuts down");
        // That ends this process too.
        work.cancelled.cancelled().await;
        let message = "the machine was told to boot again, and has not shut down";
        Err(Failure::new(Reason::Cancelled, message))
    }

    /// The end of the request where the machine has booted since.
    fn has_booted(&self, request: &RebootNode) -> Result<Option<Success>, Failure> {
        let boot_id = self.host.system().boot_id();
        let boot_id =
            boot_id.map_err(|error| Failure::new(Reason::PreconditionFailed, Chain(&error).to_string()))?;
        Ok((boot_id != request.boot_id).then_some(Success::RebootNode { boot_id }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_common::access::Access;
    use holdfast_common::assignment::{Exposure, MemberAssignment, Power, Synchronous};
    use holdfast_common::engine::{Engine, Parameters};
    use holdfast_common::id::{ClusterId, CommandId};
    use holdfast_common::protocol::Profile;
    use holdfast_common::term::Term;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::host::fake::Fake;

    struct Node {
        fake: Fake,
        deeds: Deeds,
        assignment: watch::Sender<Arc<Assignment>>,
    }

    fn node() -> Node {
        let fake = Fake::new([]);
        let assignment = watch::Sender::new(Arc::new(Assignment::default()));
        let deeds =
            Deeds { engines: Engines::default(), host: fake.host(), assignment: assignment.subscribe() };
        Node { fake, deeds, assignment }
    }

    fn payload(node: &Node, with_primaries: bool) -> Payload {
        let boot_id = node.deeds.host.system().boot_id().unwrap();
        Payload::RebootNode(RebootNode { boot_id, with_primaries })
    }

    fn primary() -> MemberAssignment {
        MemberAssignment {
            cluster_id: ClusterId::generate(),
            cluster_name: "shop".parse().unwrap(),
            engine: Engine::Postgresql,
            engine_version: "15".parse().unwrap(),
            term: Term::FIRST,
            role: RoleAssignment::Primary { synchronous: Synchronous::default() },
            port: 5432,
            address: [192, 0, 2, 1].into(),
            replication_port: None,
            gated_ports: Vec::new(),
            parameters: Parameters::default(),
            members: Vec::new(),
            extensions: Vec::new(),
            system_identifier: None,
            power: Power::Running,
            access: Access::default(),
            exposure: Exposure::default(),
            profile: Profile::Default,
            patience: None,
        }
    }

    /// What comes of it within a minute.
    async fn outcome(node: &Node, payload: &Payload) -> Outcome {
        let cancelled = CancellationToken::new();
        let work = Work::new(CommandId::generate(), cancelled.clone(), |_| {});
        let over = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            cancelled.cancel();
        };
        tokio::join!(node.deeds.execute(payload, &work), over).0
    }

    #[tokio::test(start_paused = true)]
    async fn a_reboot_is_done_once_there_is_another_boot_and_is_asked_for_no_more() {
        let node = node();
        let payload = payload(&node, false);
        assert_eq!(node.deeds.is_done(&payload), None);
        let failure = outcome(&node, &payload).await.unwrap_err();
        assert_eq!((failure.reason, node.fake.system.reboots()), (Reason::Cancelled, 1), "{failure}");
        node.fake.reboot();
        let boot_id = node.deeds.host.system().boot_id().unwrap();
        assert_eq!(node.deeds.is_done(&payload), Some(Success::RebootNode { boot_id: boot_id.clone() }));
        assert_eq!(outcome(&node, &payload).await, Ok(Success::RebootNode { boot_id }));
        assert_eq!(node.fake.system.reboots(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_primary_is_rebooted_only_where_that_is_said() {
        let node = node();
        node.assignment
            .send_replace(Arc::new(Assignment { members: vec![primary()], ..Assignment::default() }));
        let failure = outcome(&node, &payload(&node, false)).await.unwrap_err();
        assert_eq!((failure.reason, node.fake.system.reboots()), (Reason::PreconditionFailed, 0));
        outcome(&node, &payload(&node, true)).await.unwrap_err();
        assert_eq!(node.fake.system.reboots(), 1);
    }
}
