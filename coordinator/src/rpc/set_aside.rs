//! `SetAsideService`: what nodes have set aside, listed and handed on part by part.
//!
//! ```text
//! caller ◄─ h2 ─ stream ◄─ IN_FLIGHT questions at a time ◄─ fleet ◄─ session ◄─ node
//! ```
//!
//! A part is asked for only when the caller has taken an earlier one, so that neither a slow caller nor a large log costs memory; a
//! caller that goes away ends it.

use std::pin::Pin;
use std::sync::Arc;

use futures::future::join_all;
use futures::{Stream, StreamExt as _, stream};
use holdfast_common::error::{Classify as _, Failure, Reason, Violations};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::name::NodeName;
use holdfast_common::question;
use holdfast_common::set_aside::{Answer, File, Id, Log, MAX_PART_BYTES, Part, Question};
use holdfast_proto::v1 as proto;
use holdfast_proto::v1::fetch_set_aside_log_response::Message;
use holdfast_proto::v1::set_aside_service_server::SetAsideService;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status};

use super::convert::{self, refuse};
use crate::cluster::{Cluster, Member};
use crate::fleet;
use crate::procedures::requests::Desk;

/// Logs that are fetched at a time.
const MAX_FETCHES: usize = 2;
/// Parts of one log that are asked for and not yet taken.
const IN_FLIGHT: usize = 4;

/// The operators' view of what is set aside.
#[derive(Debug, Clone)]
pub struct SetAside {
    desk: Desk,
    fleet: fleet::Handle,
    fetches: Arc<Semaphore>,
}

/// What to ask for next, of one log.
#[derive(Debug, Clone)]
struct Place {
    index: u32,
    file: File,
    offset: u64,
}

/// A log that is being handed on.
struct Fetch {
    fleet: fleet::Handle,
    node: NodeId,
    cluster: ClusterId,
    id: Id,
    _room: OwnedSemaphorePermit,
}

type Parts = Pin<Box<dyn Stream<Item = Result<proto::FetchSetAsideLogResponse, Status>> + Send>>;

#[tonic::async_trait]
impl SetAsideService for SetAside {
    type FetchSetAsideLogStream = Parts;

    async fn list_set_aside_logs(
        &self,
        request: Request<proto::ListSetAsideLogsRequest>,
    ) -> Result<Response<proto::ListSetAsideLogsResponse>, Status> {
        let cluster = self.cluster(&request.get_ref().cluster).await.map_err(refuse)?;
        let mut response = proto::ListSetAsideLogsResponse::default();
        for (node, found) in self.logs(&cluster, None).await {
            match found {
                Ok(logs) => response.logs.extend(logs.iter().map(|log| kept(&node, log))),
                Err(failure) => response
                    .silent_nodes
                    .push(proto::SilentNode { node: node.to_string(), message: failure.message }),
            }
        }
        response.logs.sort_by(|a, b| key(b).cmp(&key(a)));
        Ok(Response::new(response))
    }

    async fn fetch_set_aside_log(
        &self,
        request: Request<proto::FetchSetAsideLogRequest>,
    ) -> Result<Response<Parts>, Status> {
        let proto::FetchSetAsideLogRequest { cluster, id, node } = request.into_inner();
        let mut violations = Violations::default();
        let id: Option<Id> = violations.take("id", id.parse());
        let node: Option<NodeName> =
            if node.is_empty() { None } else { violations.take("node", node.parse()) };
        convert::check(violations)?;
        let Some(id) = id else { return Err(refuse(Failure::invalid_field("id", "is missing"))) };
        let cluster = self.cluster(&cluster).await.map_err(refuse)?;
        let room = Arc::clone(&self.fetches).try_acquire_owned().map_err(|_| refuse(too_many()))?;
        let (member, log) = self.find(&cluster, &id, node.as_ref()).await.map_err(refuse)?;
        let fetch =
            Fetch { fleet: self.fleet.clone(), node: member.node_id, cluster: cluster.id, id, _room: room };
        let files = fetch.files().await.map_err(refuse)?;
        let contents = proto::SetAsideContents {
            log: Some(kept(&member.node_name, &log)),
            files: files.iter().map(Into::into).collect(),
        };
        let first = proto::FetchSetAsideLogResponse { message: Some(Message::Contents(contents)) };
        let parts = fetch.parts(files).map(|part| part.map_err(refuse));
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(parts))))
    }
}

// === impl SetAside ===

impl SetAside {
    pub fn new(desk: Desk, fleet: fleet::Handle) -> Self {
        Self { desk, fleet, fetches: Arc::new(Semaphore::new(MAX_FETCHES)) }
    }

    async fn cluster(&self, name: &str) -> Result<Cluster, Failure> {
        let name = name.parse().map_err(|error| Failure::invalid_field("cluster", error))?;
        Ok(self.desk.cluster(&name).await?.value)
    }

    /// What each member's node has, or why it does not tell; of one node alone where it is given.
    async fn logs(
        &self,
        cluster: &Cluster,
        only: Option<&NodeName>,
    ) -> Vec<(NodeName, Result<Vec<Log>, Failure>)> {
        let members =
            cluster.members.iter().filter(|member| only.is_none_or(|only| member.node_name == *only));
        let asked = members.map(|member| async move {
            let found = match self.fleet.ask(member.node_id, cluster.id, Question::Logs).await {
                Ok(question::Answer::SetAside(Answer::Logs(logs))) => Ok(logs),
                Ok(_) => Err(another_answer()),
                // A member whose data are not made yet has none.
                Err(error) if error.reason() == Reason::MemberNotFound => Ok(Vec::new()),
                Err(error) => Err(error.to_failure()),
            };
            (member.node_name.clone(), found)
        });
        join_all(asked).await
    }

    /// # Errors
    /// `NODE_NOT_FOUND`, `SET_ASIDE_NOT_FOUND`; that of a node that does not tell, where no other has it.
    async fn find<'a>(
        &self,
        cluster: &'a Cluster,
        id: &Id,
        only: Option<&NodeName>,
    ) -> Result<(&'a Member, Log), Failure> {
        if let Some(only) = only
            && !cluster.members.iter().any(|member| member.node_name == *only)
        {
            let message = format!("cluster {} has no member on node `{only}`", cluster.name);
            return Err(Failure::about(Reason::MemberNotFound, "node", only, message));
        }
        let mut silent = None;
        for (node, found) in self.logs(cluster, only).await {
            let log = match found {
                Ok(logs) => logs.into_iter().find(|log| log.id == *id),
                Err(failure) => {
                    silent = Some(failure);
                    None
                }
            };
            let member = cluster.members.iter().find(|member| member.node_name == node);
            if let Some(found) = member.zip(log) {
                return Ok(found);
            }
        }
        Err(silent.unwrap_or_else(|| {
            let message = format!(
                "no member of {} has set aside a log `{id}`; `holdfast cluster set-aside list {}` shows all",
                cluster.name, cluster.name
            );
            Failure::about(Reason::SetAsideNotFound, "set_aside_log", id, message)
        }))
    }
}

// === impl Fetch ===

impl Fetch {
    async fn files(&self) -> Result<Vec<File>, Failure> {
        let question = Question::Files { id: self.id.clone() };
        match self.fleet.ask(self.node, self.cluster, question).await.map_err(|error| error.to_failure())? {
            question::Answer::SetAside(Answer::Files(files)) => Ok(files),
            _ => Err(another_answer()),
        }
    }

    /// All bytes of the files in their order; ends with the first failure.
    fn parts(
        self,
        files: Vec<File>,
    ) -> impl Stream<Item = Result<proto::FetchSetAsideLogResponse, Failure>> + Send + use<> {
        let fetch = Arc::new(self);
        let asked = stream::iter(places(files)).map(move |place| {
            let fetch = Arc::clone(&fetch);
            async move { fetch.part(place).await }
        });
        // Lazy: with nobody who takes them, no more than these are asked for.
        asked.buffered(IN_FLIGHT).scan(false, |failed, part| {
            let ended = std::mem::replace(failed, part.is_err());
            std::future::ready((!ended).then_some(part))
        })
    }

    async fn part(&self, place: Place) -> Result<proto::FetchSetAsideLogResponse, Failure> {
        let Place { index, file, offset } = place;
        let left = file.bytes.saturating_sub(offset).min(MAX_PART_BYTES.into());
        let bytes = u32::try_from(left).unwrap_or(MAX_PART_BYTES);
        let question = Question::Part { id: self.id.clone(), file: file.name.clone(), offset, bytes };
        let answer = self.fleet.ask(self.node, self.cluster, question).await;
        let answer = answer.map_err(|error| error.to_failure())?;
        let question::Answer::SetAside(Answer::Part(part)) = answer else {
            return Err(another_answer());
        };
        if part.data.len() as u64 != left || !part.is_whole() {
            let message = format!("{} is not what the node listed; fetch it again", file.name);
            return Err(Failure::new(Reason::EngineFailed, message));
        }
        let Part { data, sha256 } = part;
        let part = proto::SetAsidePart { file: index, offset, data, sha256: sha256.to_vec() };
        Ok(proto::FetchSetAsideLogResponse { message: Some(Message::Part(part)) })
    }
}

fn places(files: Vec<File>) -> impl Iterator<Item = Place> {
    (0_u32..).zip(files).flat_map(|(index, file)| {
        let offsets = (0..file.bytes).step_by(MAX_PART_BYTES as usize);
        offsets.map(move |offset| Place { index, file: file.clone(), offset })
    })
}

fn kept(node: &NodeName, log: &Log) -> proto::KeptLog {
    proto::KeptLog { node: node.to_string(), log: Some(log.into()) }
}

/// Newest first; ids begin with the time.
fn key(kept: &proto::KeptLog) -> (&str, &str) {
    (kept.log.as_ref().map_or("", |log| log.id.as_str()), kept.node.as_str())
}

fn too_many() -> Failure {
    let message = format!("{MAX_FETCHES} logs are being fetched already; wait for one of them");
    Failure::new(Reason::TooManyRequests, message).retry_after(std::time::Duration::from_secs(10))
}

fn another_answer() -> Failure {
    Failure::new(Reason::Internal, "the node answered another question")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_files_have_no_gaps_and_an_empty_file_has_none() {
        let file = |name: &str, bytes| File { name: name.parse().unwrap(), bytes };
        let most = u64::from(MAX_PART_BYTES);
        let files = vec![file("a", 2 * most), file("b", 0), file("c", most + 1)];
        let places: Vec<(u32, u64)> = places(files).map(|place| (place.index, place.offset)).collect();
        assert_eq!(places, [(0, 0), (0, most), (2, 0), (2, most)]);
    }
}
