//! `IdentityService`.

use std::time::Duration;

use holdfast_common::error::{Failure, Reason, Violation, Violations};
use holdfast_common::id::TokenId;
use holdfast_common::name::{NodeName, OperatorName};
use holdfast_common::wire::time_to_wire;
use holdfast_proto::v1 as proto;
use holdfast_proto::v1::identity_service_server::IdentityService;
use jiff::Timestamp;
use prost::Message;
use tonic::{Request, Response, Status};

use super::convert::{self, PageRequest, refuse};
use super::named;
use super::peer::{Caller, Method, OperatorCaller};
use super::repeat::{decoded, repeat};
use crate::directory::{self, AccessToken, JoinToken, Operator, OperatorRole};
use crate::identity::{Identity, NewAccessToken, NewJoinToken, NewOperator};
use crate::store::Key;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
const MAX_USES: u32 = 1000;

/// The operators' view of who may do what.
#[derive(Debug, Clone)]
pub struct Identities {
    pub identity: Identity,
    /// Where agents reach the coordinator.
    pub agent_endpoints: Vec<String>,
}

#[tonic::async_trait]
impl IdentityService for Identities {
    async fn get_caller(
        &self,
        request: Request<proto::GetCallerRequest>,
    ) -> Result<Response<proto::GetCallerResponse>, Status> {
        let OperatorCaller { name, role, method, expires_at } =
            Caller::of(&request).operator().map_err(refuse)?;
        let method = match method {
            Method::Certificate => "certificate",
            Method::Token(_) => "token",
        };
        Ok(Response::new(proto::GetCallerResponse {
            name: format!("operator/{name}"),
            role: convert::role_to_proto(*role),
            method: method.to_owned(),
            expire_time: Some(time_to_wire(*expires_at)),
            fleet_id: self.identity.fleet().to_string(),
            coordinator_version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn create_join_token(
        &self,
        request: Request<proto::CreateJoinTokenRequest>,
    ) -> Result<Response<proto::CreateJoinTokenResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &actor, "CreateJoinToken", &request).map_err(refuse)?;
        let mut violations = Violations::default();
        let ttl = convert::duration(&mut violations, "ttl", request.ttl, 15 * MINUTE, (MINUTE, 30 * DAY));
        let uses = request.uses.unwrap_or(1);
        if !(1..=MAX_USES).contains(&uses) {
            violations.add("uses", format!("is {uses}; must be from 1 to {MAX_USES}"));
        }
        let description = convert::text(&mut violations, "description", request.description);
        let node_name = optional_name(&mut violations, "node_name", &request.node_name);
        if node_name.is_some() && uses > 1 {
            violations.add("uses", "must be 1 for a token that is bound to one node name");
        }
        if request.rejoin && request.node_name.is_empty() {
            violations.add("node_name", "must name the node that is to come back with this token");
        }
        convert::check(violations)?;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await.map_err(refuse)? {
            return decoded(&answer);
        }
        let rejoins = match &node_name {
            Some(name) if request.rejoin => Some(self.identity.node_named(name).await.map_err(refuse)?),
            // Nobody could join with it.
            Some(name) if named::has_node(self.identity.directory(), name).await.map_err(refuse)? => {
                let problem = format!(
                    "`{name}` is a node already; choose another name, or set `rejoin` (`--rejoin {name}`) for a token that \
                     brings this node back"
                );
                return Err(refuse(Failure::invalid_field("node_name", problem)));
            }
            Some(_) | None => None,
        };
        let new = NewJoinToken { ttl, uses, description, node_name, rejoins, created_by: actor };
        let endpoints = self.agent_endpoints.clone();
        let answer = self.identity.create_join_token(new, repeat.as_ref(), |record, token| {
            let response = proto::CreateJoinTokenResponse {
                join_token: Some(convert::join_token(record)),
                token: token.to_string(),
                agent_endpoints: endpoints,
            };
            response.encode_to_vec()
        });
        decoded(&answer.await.map_err(refuse)?)
    }

    async fn list_join_tokens(
        &self,
        request: Request<proto::ListJoinTokensRequest>,
    ) -> Result<Response<proto::ListJoinTokensResponse>, Status> {
        let proto::ListJoinTokensRequest { page_size, page_token } = request.into_inner();
        let (join_tokens, next_page_token) = self
            .page(page_size, &page_token, directory::JOIN_TOKENS, |token: JoinToken| {
                Some(convert::join_token(&token))
            })
            .await?;
        Ok(Response::new(proto::ListJoinTokensResponse { join_tokens, next_page_token }))
    }

    async fn revoke_join_token(
        &self,
        request: Request<proto::RevokeJoinTokenRequest>,
    ) -> Result<Response<proto::RevokeJoinTokenResponse>, Status> {
        let id = parse_id(&request.into_inner().id)?;
        let token = self.identity.revoke_join_token(id).await.map_err(refuse)?;
        Ok(Response::new(proto::RevokeJoinTokenResponse { join_token: Some(convert::join_token(&token)) }))
    }

    async fn create_operator(
        &self,
        request: Request<proto::CreateOperatorRequest>,
    ) -> Result<Response<proto::CreateOperatorResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &actor, "CreateOperator", &request).map_err(refuse)?;
        let mut violations = Violations::default();
        let name: Option<OperatorName> = violations.take("name", request.name.parse());
        let role = convert::role(&mut violations, "role", request.role);
        let ttl = convert::duration(&mut violations, "ttl", request.ttl, YEAR, (HOUR, 10 * YEAR));
        let (Some(name), Some(role)) = (name, role) else { return Err(refuse(violations.into_failure())) };
        convert::check(violations)?;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await.map_err(refuse)? {
            return decoded(&answer);
        }
        let trust_bundle = self.identity.trust_bundle().to_pem();
        let new = NewOperator { name, role, ttl };
        let answer = self.identity.create_operator(new, repeat.as_ref(), |record, credentials| {
            let response = proto::CreateOperatorResponse {
                operator: Some(convert::operator(record)),
                certificate_chain: credentials.certificate_chain,
                private_key: credentials.private_key.to_string(),
                trust_bundle,
            };
            response.encode_to_vec()
        });
        decoded(&answer.await.map_err(refuse)?)
    }

    async fn list_operators(
        &self,
        request: Request<proto::ListOperatorsRequest>,
    ) -> Result<Response<proto::ListOperatorsResponse>, Status> {
        let proto::ListOperatorsRequest { page_size, page_token } = request.into_inner();
        let (operators, next_page_token) = self
            .page(page_size, &page_token, directory::OPERATORS, |operator: Operator| {
                Some(convert::operator(&operator))
            })
            .await?;
        Ok(Response::new(proto::ListOperatorsResponse { operators, next_page_token }))
    }

    async fn remove_operator(
        &self,
        request: Request<proto::RemoveOperatorRequest>,
    ) -> Result<Response<proto::RemoveOperatorResponse>, Status> {
        let proto::RemoveOperatorRequest { name, confirm } = request.into_inner();
        let parsed: OperatorName =
            name.parse().map_err(|error| refuse(Failure::invalid_field("name", error)))?;
        if confirm != name {
            return Err(refuse(not_confirmed(&parsed)));
        }
        self.identity.remove_operator(&parsed).await.map_err(refuse)?;
        Ok(Response::new(proto::RemoveOperatorResponse {}))
    }

    async fn create_access_token(
        &self,
        request: Request<proto::CreateAccessTokenRequest>,
    ) -> Result<Response<proto::CreateAccessTokenResponse>, Status> {
        let caller = Caller::of(&request).operator().map_err(refuse)?.clone();
        let request = request.into_inner();
        let actor = format!("operator/{}", caller.name);
        let repeat = repeat(&request.request_id, &actor, "CreateAccessToken", &request).map_err(refuse)?;
        let mut violations = Violations::default();
        let ttl = convert::duration(&mut violations, "ttl", request.ttl, 12 * HOUR, (MINUTE, YEAR));
        let description = convert::text(&mut violations, "description", request.description);
        // Or one stolen hour would be a stolen year.
        let left = caller.expires_at.duration_since(Timestamp::now());
        if Duration::try_from(left).is_ok_and(|left| ttl > left) {
            let problem =
                format!("must not go beyond the end of the credential you call with ({})", caller.expires_at);
            violations.add("ttl", problem);
        }
        convert::check(violations)?;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await.map_err(refuse)? {
            return decoded(&answer);
        }
        let new = NewAccessToken { operator: caller.name, ttl, description };
        let answer = self.identity.create_access_token(new, repeat.as_ref(), |record, token| {
            let response = proto::CreateAccessTokenResponse {
                access_token: Some(convert::access_token(record)),
                token: token.to_string(),
            };
            response.encode_to_vec()
        });
        decoded(&answer.await.map_err(refuse)?)
    }

    async fn list_access_tokens(
        &self,
        request: Request<proto::ListAccessTokensRequest>,
    ) -> Result<Response<proto::ListAccessTokensResponse>, Status> {
        let caller = Caller::of(&request).operator().map_err(refuse)?.clone();
        let proto::ListAccessTokensRequest { page_size, page_token } = request.into_inner();
        let all = caller.role == OperatorRole::Admin;
        let shown = |token: AccessToken| {
            (all || token.operator == caller.name).then(|| convert::access_token(&token))
        };
        let (access_tokens, next_page_token) =
            self.page(page_size, &page_token, directory::ACCESS_TOKENS, shown).await?;
        Ok(Response::new(proto::ListAccessTokensResponse { access_tokens, next_page_token }))
    }

    async fn revoke_access_token(
        &self,
        request: Request<proto::RevokeAccessTokenRequest>,
    ) -> Result<Response<proto::RevokeAccessTokenResponse>, Status> {
        let caller = Caller::of(&request).operator().map_err(refuse)?.clone();
        let id = parse_id(&request.into_inner().id)?;
        let owner = (caller.role != OperatorRole::Admin).then_some(&caller.name);
        let token = self.identity.revoke_access_token(id, owner).await.map_err(refuse)?;
        Ok(Response::new(proto::RevokeAccessTokenResponse {
            access_token: Some(convert::access_token(&token)),
        }))
    }
}

impl Identities {
    /// A page of records; those that `show` leaves out are not counted.
    async fn page<T: serde::de::DeserializeOwned, M>(
        &self,
        page_size: i32,
        page_token: &str,
        prefix: &str,
        mut show: impl FnMut(T) -> Option<M> + Send,
    ) -> Result<(Vec<M>, String), Status> {
        let mut violations = Violations::default();
        let page = PageRequest::read(page_size, page_token, prefix, &mut violations);
        convert::check(violations)?;
        let mut shown = Vec::new();
        let mut after = page.after.as_deref().map(|after| Key::from(format!("{prefix}{after}")));
        loop {
            let found = self
                .identity
                .directory()
                .page::<T>(prefix, after, page.size - shown.len())
                .await
                .map_err(refuse)?;
            shown.extend(found.records.into_iter().filter_map(&mut show));
            match found.next {
                Some(next) if shown.len() < page.size => after = Some(next),
                Some(next) => {
                    let last = next.as_str().strip_prefix(prefix).unwrap_or_default();
                    return Ok((shown, page.token(last)));
                }
                None => return Ok((shown, String::new())),
            }
        }
    }
}

fn parse_id(id: &str) -> Result<TokenId, Status> {
    id.parse().map_err(|error| refuse(Failure::invalid_field("id", error)))
}

fn optional_name(violations: &mut Violations, field: &str, name: &str) -> Option<NodeName> {
    if name.is_empty() { None } else { violations.take(field, name.parse()) }
}

fn not_confirmed(name: &OperatorName) -> Failure {
    let message = format!("`confirm` must be `{name}`, the name of the operator who is to be removed");
    let violation =
        Violation { name: "confirm".to_owned(), subject: String::new(), message: message.clone() };
    Failure { violations: vec![violation], ..Failure::new(Reason::NotConfirmed, message) }
}
