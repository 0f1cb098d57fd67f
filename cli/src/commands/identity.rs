//! `holdfast operator …`, `holdfast token …`, `holdfast node token …`, `holdfast whoami`
//!
//! Secrets are printed on standard output by the command that made them, or written to a file of mode 0600, and nowhere else.

use std::collections::BTreeMap;

use holdfast_common::context::{Context, ContextFile};
use holdfast_proto::v1;
use serde_json::json;

use super::{Session, next_page, wire_duration};
use crate::args::{JoinToken, Operator, Role, Token};
use crate::client::request_id;
use crate::error::Error;
use crate::output::{self, json};

pub(super) async fn whoami(session: &mut Session) -> Result<(), Error> {
    let caller = session.client().await?.get_caller(v1::GetCallerRequest {}).await?;
    if session.out.is_json() {
        return Ok(session.out.json(&json::caller(&caller))?);
    }
    let now = session.out.now;
    Ok(session.out.facts(&[
        ("name", caller.name.clone()),
        ("role", output::or_dash(output::word(caller.role().as_str_name(), "OPERATOR_ROLE_"))),
        ("by", caller.method.clone()),
        ("valid for", output::expiry(now, caller.expire_time.as_ref())),
        ("fleet", caller.fleet_id.clone()),
        ("coordinator", caller.coordinator_version),
    ])?)
}

pub(super) async fn run_operator(session: &mut Session, command: Operator) -> Result<(), Error> {
    match command {
        Operator::Create { name, role, ttl, write_config } => {
            if write_config.exists() {
                let path = write_config.display();
                return Err(Error::Usage(format!("--write-config: {path} exists already; name a new file")));
            }
            let role = match role {
                Role::Viewer => v1::OperatorRole::Viewer,
                Role::Operator => v1::OperatorRole::Operator,
                Role::Admin => v1::OperatorRole::Admin,
            };
            let server = session.context_file()?.context(session.global.context.as_deref())?.server.clone();
            let request = v1::CreateOperatorRequest {
                name,
                role: role.into(),
                ttl: ttl.map(wire_duration),
                request_id: request_id(),
            };
            let answer = session.client().await?.create_operator(request).await?;
            let operator = answer.operator.ok_or(Error::Incomplete("operator"))?;
            let context = Context {
                server,
                trust_bundle: answer.trust_bundle,
                certificate: Some(answer.certificate_chain),
                key: Some(answer.private_key.into()),
            };
            let file = ContextFile {
                current: "default".into(),
                contexts: BTreeMap::from([("default".into(), context)]),
            };
            file.save(&write_config)?;
            if session.out.is_json() {
                let file = write_config.display().to_string();
                return Ok(session
                    .out
                    .json(&json!({"operator": json::operator(&operator), "config": file}))?);
            }
            Ok(session.out.line(format!(
                "Operator {} is there. Give {} to them, over a safe way, and delete it here.",
                operator.name,
                write_config.display()
            ))?)
        }
        Operator::List => {
            let client = session.client().await?;
            let mut operators = Vec::new();
            let mut page = Some(String::new());
            while let Some(page_token) = page {
                let answer =
                    client.list_operators(v1::ListOperatorsRequest { page_size: 1000, page_token }).await?;
                operators.extend(answer.operators);
                page = next_page(answer.next_page_token);
            }
            if session.out.is_json() {
                let all: Vec<_> = operators.iter().map(json::operator).collect();
                return Ok(session.out.json(&json!({"operators": all}))?);
            }
            let now = session.out.now;
            let rows = operators.iter().map(|operator| {
                vec![
                    operator.name.clone(),
                    output::or_dash(output::word(operator.role().as_str_name(), "OPERATOR_ROLE_")),
                    output::distance(now, operator.create_time.as_ref()),
                    output::expiry(now, operator.certificate_expire_time.as_ref()),
                ]
            });
            let rows = rows.collect();
            Ok(session.out.table(&["NAME", "ROLE", "AGE", "CERTIFICATE ENDS IN"], rows)?)
        }
        Operator::Remove { name, confirm } => {
            let confirm = session.confirmed(&name, confirm, "ends all that this operator may do")?;
            session.client().await?.remove_operator(v1::RemoveOperatorRequest { name, confirm }).await?;
            done(session)
        }
    }
}

pub(super) async fn run_token(session: &mut Session, command: Token) -> Result<(), Error> {
    match command {
        Token::Create { ttl, description } => {
            let request = v1::CreateAccessTokenRequest {
                ttl: Some(wire_duration(ttl)),
                description,
                request_id: request_id(),
            };
            let answer = session.client().await?.create_access_token(request).await?;
            let token = answer.access_token.ok_or(Error::Incomplete("access_token"))?;
            if session.out.is_json() {
                return Ok(session
                    .out
                    .json(&json!({"access_token": json::access_token(&token), "token": answer.token}))?);
            }
            session.note("Put it into HOLDFAST_TOKEN; it is shown only now.");
            Ok(session.out.line(answer.token)?)
        }
        Token::List => {
            let client = session.client().await?;
            let mut tokens = Vec::new();
            let mut page = Some(String::new());
            while let Some(page_token) = page {
                let answer = client
                    .list_access_tokens(v1::ListAccessTokensRequest { page_size: 1000, page_token })
                    .await?;
                tokens.extend(answer.access_tokens);
                page = next_page(answer.next_page_token);
            }
            if session.out.is_json() {
                let all: Vec<_> = tokens.iter().map(json::access_token).collect();
                return Ok(session.out.json(&json!({"access_tokens": all}))?);
            }
            let now = session.out.now;
            let rows = tokens.iter().map(|token| {
                let state = validity(session, token.revoked, token.expire_time.as_ref());
                vec![
                    token.id.clone(),
                    token.operator.clone(),
                    state.to_owned(),
                    output::distance(now, token.create_time.as_ref()),
                    output::expiry(now, token.expire_time.as_ref()),
                    token.description.clone(),
                ]
            });
            let rows = rows.collect();
            Ok(session.out.table(&["ID", "OPERATOR", "STATE", "AGE", "EXPIRY", "DESCRIPTION"], rows)?)
        }
        Token::Revoke { id } => {
            session.client().await?.revoke_access_token(v1::RevokeAccessTokenRequest { id }).await?;
            done(session)
        }
    }
}

pub(super) async fn run_join_token(session: &mut Session, command: JoinToken) -> Result<(), Error> {
    match command {
        JoinToken::Create { ttl, uses, description, node, rejoin } => {
            let returns = rejoin.is_some();
            let request = v1::CreateJoinTokenRequest {
                ttl: Some(wire_duration(ttl)),
                uses: Some(uses),
                description,
                node_name: rejoin.unwrap_or(node),
                rejoin: returns,
                request_id: request_id(),
            };
            let answer = session.client().await?.create_join_token(request).await?;
            let token = answer.join_token.ok_or(Error::Incomplete("join_token"))?;
            if session.out.is_json() {
                return Ok(session.out.json(&json!({
                    "join_token": json::join_token(&token),
                    "token": answer.token,
                    "agent_endpoints": answer.agent_endpoints,
                }))?);
            }
            let address = answer.agent_endpoints.first().map_or("ADDRESS", String::as_str);
            let (machine, then) = if returns {
                ("that machine", "\n  systemctl restart holdfast-agent")
            } else {
                ("the new machine", "")
            };
            session.note(&format!(
                "Shown only now. On {machine}, with the token in a file that only root can read:\n  \
                 holdfast-agent join --coordinator {address} --token-file FILE{then}"
            ));
            Ok(session.out.line(answer.token)?)
        }
        JoinToken::List => {
            let client = session.client().await?;
            let mut tokens = Vec::new();
            let mut page = Some(String::new());
            while let Some(page_token) = page {
                let answer = client
                    .list_join_tokens(v1::ListJoinTokensRequest { page_size: 1000, page_token })
                    .await?;
                tokens.extend(answer.join_tokens);
                page = next_page(answer.next_page_token);
            }
            if session.out.is_json() {
                let all: Vec<_> = tokens.iter().map(json::join_token).collect();
                return Ok(session.out.json(&json!({"join_tokens": all}))?);
            }
            let now = session.out.now;
            let rows = tokens.iter().map(|token| {
                let state = validity(session, token.revoked, token.expire_time.as_ref());
                let state = if state == "valid" && token.uses_left == 0 { "used" } else { state };
                vec![
                    token.id.clone(),
                    state.to_owned(),
                    format!("{}/{}", token.uses_left, token.uses_allowed),
                    output::or_dash(Some(token.node_name.clone())),
                    output::expiry(now, token.expire_time.as_ref()),
                    token.created_by.clone(),
                    token.description.clone(),
                ]
            });
            let rows = rows.collect();
            Ok(session
                .out
                .table(&["ID", "STATE", "LEFT", "NODE", "EXPIRY", "CREATED BY", "DESCRIPTION"], rows)?)
        }
        JoinToken::Revoke { id } => {
            session.client().await?.revoke_join_token(v1::RevokeJoinTokenRequest { id }).await?;
            done(session)
        }
    }
}

fn validity(session: &Session, revoked: bool, expires: Option<&prost_types::Timestamp>) -> &'static str {
    match output::timestamp(expires) {
        _ if revoked => "revoked",
        Some(time) if time <= session.out.now => "expired",
        Some(_) | None => "valid",
    }
}

fn done(session: &mut Session) -> Result<(), Error> {
    if session.out.is_json() { Ok(session.out.json(&json!({}))?) } else { Ok(session.out.line("done")?) }
}
