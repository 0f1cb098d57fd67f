//! Restarting a replica: stopped with proof, started, and waited for until it receives. The same for every engine.

use std::time::Duration;

use holdfast_common::assignment::MemberAssignment;
use holdfast_common::report::EngineState;
use holdfast_common::role::Role;

use super::{Engine, Error, Work};

const DEED: &str = "restart";
const PAUSE: Duration = Duration::from_millis(100);

/// Whoever calls it holds the member. If it ends early, the member is left to whoever keeps it running.
///
/// # Errors
/// `MEMBER_NOT_FOUND` where there are no data; `PRECONDITION_FAILED` where they are a primary's: nothing has changed then.
pub(super) async fn replica(
    engine: &dyn Engine,
    member: &MemberAssignment,
    work: &Work,
) -> Result<(), Error> {
    let cluster = member.cluster_id;
    let observed = engine.observe(cluster).await;
    if observed.state == EngineState::Absent {
        return Err(Error::Absent { cluster });
    }
    if observed.data_role != Some(Role::Replica) || observed.role == Some(Role::Primary) {
        let message = "its data are a primary's, or what they are is not known; another takes over first";
        return Err(Error::Unmet { check: "is_replica", message: message.to_owned() });
    }
    work.check(DEED)?;
    work.say("stopping");
    engine.stop(cluster).await?;
    work.say("starting");
    engine.start(member).await?;
    work.say("waiting until it receives");
    loop {
        let observed = engine.observe(cluster).await;
        match observed.state {
            EngineState::Running if observed.streaming == Some(true) => return Ok(()),
            EngineState::Stopped | EngineState::Failed | EngineState::Absent => {
                return Err(Error::Wrong { deed: DEED.to_owned(), problem: observed.message });
            }
            _ => {}
        }
        work.check(DEED)?;
        tokio::time::sleep(PAUSE).await;
    }
}
