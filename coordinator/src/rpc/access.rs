//! `AccessService`: parse, call, render. Rules are no operation: what is stored is what the nodes are told from then on.

mod parse;
mod render;

use holdfast_common::access::{Rules, RulesError};
use holdfast_common::error::{Chain, Classify as _, Failure, Reason, Violations};
use holdfast_common::report::Severity;
use holdfast_proto::v1 as proto;
use holdfast_proto::v1::access_service_server::AccessService;
use prost::Message;
use tonic::{Request, Response, Status};

use super::convert::{self, PageRequest, refuse};
use super::peer::Caller;
use super::repeat::{kept, repeat};
use crate::cluster::Cluster;
use crate::cluster::access::{Declared, Verdict};
use crate::event::NewEvent;
use crate::fleet;
use crate::identity::{Identity, RequestId};
use crate::procedures::access::Stored;
use crate::procedures::requests::Desk;
use crate::procedures::resource;
use crate::store::Txn;

/// The operators' view of who may reach the clusters.
#[derive(Debug, Clone)]
pub struct AccessRules {
    pub desk: Desk,
    pub identity: Identity,
    pub fleet: fleet::Handle,
}

/// A change that was asked for, and who asked.
struct Asked {
    actor: String,
    repeat: Option<RequestId>,
    cluster: String,
    effect: Effect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Change,
    OnlyShow,
}

#[tonic::async_trait]
impl AccessService for AccessRules {
    async fn get_access(
        &self,
        request: Request<proto::GetAccessRequest>,
    ) -> Result<Response<proto::GetAccessResponse>, Status> {
        let proto::GetAccessRequest { cluster, page_size, page_token, trial } = request.into_inner();
        let mut violations = Violations::default();
        let filter = format!("access?cluster={cluster}&trial={trial}");
        let page = PageRequest::read(page_size, &page_token, &filter, &mut violations);
        convert::check(violations)?;
        let (cluster, stored) = self.find(&cluster).await.map_err(refuse)?;
        let declared = stored.declared.expired(self.desk.means.clock.now());
        let none = Rules::default();
        let rules = match (&declared.trial, trial) {
            (_, false) => &declared.rules,
            (Some(tried), true) => &tried.rules,
            (None, true) => &none,
        };
        // By place: a list that changes meanwhile may show an entry twice or not at all.
        let from = page.after.as_deref().and_then(|after| after.parse().ok()).unwrap_or(0_usize);
        let rest = rules.entries().get(from..).unwrap_or_default();
        let shown = rest.get(..page.size).unwrap_or(rest);
        let next = from + shown.len();
        Ok(Response::new(proto::GetAccessResponse {
            access: Some(self.show(&cluster, &declared)),
            entries: shown.iter().map(render::entry).collect(),
            next_page_token: if shown.len() < rest.len() {
                page.token(&next.to_string())
            } else {
                String::new()
            },
        }))
    }

    async fn set_access(
        &self,
        request: Request<proto::SetAccessRequest>,
    ) -> Result<Response<proto::SetAccessResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &actor, "SetAccess", &request).map_err(refuse)?;
        let proto::SetAccessRequest { cluster, mode, entries, log_refused, confirm_within, .. } = request;
        let effect = Effect::of(request.validate_only);
        let (rules, holding) = parse::rules(mode, entries, log_refused, confirm_within).map_err(refuse)?;
        let asked = Asked { actor, repeat, cluster, effect };
        let answer = self.change(asked, |current, now| {
            current.with(rules.clone(), holding, now).map_err(|error| error.to_failure())
        });
        let answer = answer.await.map_err(refuse)?;
        Ok(Response::new(proto::SetAccessResponse { change: Some(answer) }))
    }

    async fn add_access_entries(
        &self,
        request: Request<proto::AddAccessEntriesRequest>,
    ) -> Result<Response<proto::AddAccessEntriesResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &actor, "AddAccessEntries", &request).map_err(refuse)?;
        let proto::AddAccessEntriesRequest { cluster, entries, confirm_within, .. } = request;
        let effect = Effect::of(request.validate_only);
        let (entries, holding) = parse::added(entries, confirm_within).map_err(refuse)?;
        let asked = Asked { actor, repeat, cluster, effect };
        let answer = self.change(asked, |current, now| {
            parse::none_in(&current.rules, &entries)?;
            let rules = current.rules.with(entries.clone()).map_err(|error| misfit("entries", &error))?;
            current.with(rules, holding, now).map_err(|error| error.to_failure())
        });
        let answer = answer.await.map_err(refuse)?;
        Ok(Response::new(proto::AddAccessEntriesResponse { change: Some(answer) }))
    }

    async fn remove_access_entries(
        &self,
        request: Request<proto::RemoveAccessEntriesRequest>,
    ) -> Result<Response<proto::RemoveAccessEntriesResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &actor, "RemoveAccessEntries", &request).map_err(refuse)?;
        let proto::RemoveAccessEntriesRequest { cluster, cidrs, confirm_within, .. } = request;
        let effect = Effect::of(request.validate_only);
        let (cidrs, holding) = parse::removed(&cidrs, confirm_within).map_err(refuse)?;
        let asked = Asked { actor, repeat, cluster, effect };
        let answer = self.change(asked, |current, now| {
            parse::all_in(&current.rules, &cidrs)?;
            let rules = current.rules.without(&cidrs).map_err(|error| misfit("cidrs", &error))?;
            current.with(rules, holding, now).map_err(|error| error.to_failure())
        });
        let answer = answer.await.map_err(refuse)?;
        Ok(Response::new(proto::RemoveAccessEntriesResponse { change: Some(answer) }))
    }

    async fn confirm_access(
        &self,
        request: Request<proto::ConfirmAccessRequest>,
    ) -> Result<Response<proto::ConfirmAccessResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &actor, "ConfirmAccess", &request).map_err(refuse)?;
        let proto::ConfirmAccessRequest { cluster, trial_id, revert, request_id: _ } = request;
        let id = parse::trial_id(&trial_id).map_err(refuse)?;
        let verdict = if revert { Verdict::Revert } else { Verdict::Confirm };
        let asked = Asked { actor, repeat, cluster, effect: Effect::Change };
        let answer = self.change(asked, |current, now| {
            current.judged(verdict, id, now).map_err(|error| error.to_failure())
        });
        let answer = answer.await.map_err(refuse)?;
        Ok(Response::new(proto::ConfirmAccessResponse { change: Some(answer) }))
    }
}

impl AccessRules {
    async fn find(&self, name: &str) -> Result<(Cluster, Stored), Failure> {
        let name = name.parse().map_err(|error| Failure::invalid_field("cluster", error))?;
        let cluster = self.desk.cluster(&name).await?.value;
        let stored = self.desk.means.records.access(cluster.id).await.map_err(|error| error.to_failure())?;
        Ok((cluster, stored))
    }

    /// One transaction: the rules, and the answer, which a repeat gets too.
    async fn change(
        &self,
        asked: Asked,
        change: impl Fn(Declared, jiff::Timestamp) -> Result<Declared, Failure>,
    ) -> Result<proto::AccessChange, Failure> {
        let Asked { actor, repeat, cluster, effect } = asked;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await? {
            return kept(&answer);
        }
        let (cluster, stored) = self.find(&cluster).await?;
        let now = self.desk.means.clock.now();
        let before = stored.declared.clone().expired(now);
        let after = change(before.clone(), now).map_err(|failure| about(&cluster, failure))?;
        self.desk.check_room(&cluster, &after).await?;
        let access = self.show(&cluster, &after);
        let answer = render::change(access, &before, &after);
        if effect == Effect::OnlyShow {
            return Ok(answer);
        }
        let (compare, ops) = stored.replaced_by(&after).map_err(|error| error.to_failure())?;
        let txn = ops.into_iter().fold(Txn::new().when(compare), Txn::then);
        let own = answer.encode_to_vec();
        let answer = self.identity.commit(txn, repeat.as_ref(), own.clone()).await?;
        // Of two with the same request id one has written, and both get what it wrote.
        if answer == own {
            let event = NewEvent::new(Severity::Info, "ACCESS_CHANGED", render::summary(&after));
            let event = event.on_cluster(cluster.name.as_str()).by(actor);
            // The rules stand already; that the event cannot be written must not look as if they did not.
            if let Err(error) = self.desk.means.events.record(event).await {
                tracing::warn!(error = %Chain(&error), "an event is not recorded");
            }
        }
        kept(&answer)
    }

    fn show(&self, cluster: &Cluster, declared: &Declared) -> proto::Access {
        render::access(cluster, declared, |node| self.fleet.node(node))
    }
}

// === impl Effect ===

impl Effect {
    fn of(validate_only: bool) -> Self {
        if validate_only { Self::OnlyShow } else { Self::Change }
    }
}

/// What stands in the way of other rules is told of their cluster.
fn about(cluster: &Cluster, failure: Failure) -> Failure {
    let mut failure = failure;
    if failure.reason == Reason::PreconditionFailed {
        failure.violations.iter_mut().for_each(|unmet| unmet.subject = resource(&cluster.name));
    }
    failure
}

fn misfit(field: &str, error: &RulesError) -> Failure {
    Failure::invalid_field(field, error)
}
