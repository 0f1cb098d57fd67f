//! Who calls, and whether they may: certificate or bearer token → [`Caller`], call by call, from the store.
//!
//! ```text
//! connection: certificate (checked by TLS: chain, time, fleet) ─┐
//! call: `authorization: Bearer hfo1.…` ─────────────────────────┴─► Gate::admit ─► Caller, in the request's extensions
//!                                                                    │ the row of the method (rules), the store, the audit
//! ```
//!
//! Nothing is cached: a node, operator or token that was removed is refused by its very next call. What already streams is
//! ended by [`super::live`].

use std::net::SocketAddr;
use std::sync::Arc;

use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::{FleetId, NodeId, TokenId};
use holdfast_common::name::OperatorName;
use holdfast_common::pki::{AccessToken, PeerIdentity, PeerKind, Serial, TokenSecret};
use http::HeaderValue;
use jiff::Timestamp;
use tonic::Code;

use super::rules::{Effect, Rule, Who};
use crate::directory::{self, Directory, OperatorRole};
use crate::event::{Audit, Decision, Entry};

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// From its certificate; `None` if it has presented none.
    pub identity: Option<PeerIdentity>,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    Operator(OperatorCaller),
    /// A node, by a certificate with this serial.
    Node {
        id: NodeId,
        serial: Serial,
    },
    /// Anyone; only where the method is open.
    Anyone,
}

/// An operator who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorCaller {
    pub name: OperatorName,
    pub role: OperatorRole,
    pub method: Method,
    pub expires_at: Timestamp,
}

/// How an operator has proved who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    Certificate,
    Token(TokenId),
}

/// A call that may take place.
#[derive(Debug, Clone)]
pub struct Admitted {
    pub caller: Caller,
    /// Where it stands in the audit, if it changes anything.
    pub entry: Option<Entry>,
}

/// Lets calls in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    fleet: FleetId,
    directory: Directory,
    audit: Audit,
}

// === impl Caller ===

impl Caller {
    /// For the audit, events and operations: `operator/NAME`, `node/ID`, `nobody`.
    pub fn actor(&self) -> String {
        match self {
            Self::Operator(operator) => format!("operator/{}", operator.name),
            Self::Node { id, .. } => format!("node/{id}"),
            Self::Anyone => "nobody".to_owned(),
        }
    }

    /// The caller of a request that came through the gate.
    pub fn of<T>(request: &tonic::Request<T>) -> &Self {
        // Without the gate there is no caller, and no handler grants `Anyone` anything.
        request.extensions().get::<Self>().unwrap_or(&Self::Anyone)
    }

    /// # Errors
    /// `NotPermitted` for everybody else; the rules let only operators come here.
    pub fn operator(&self) -> Result<&OperatorCaller, Failure> {
        match self {
            Self::Operator(operator) => Ok(operator),
            Self::Node { .. } | Self::Anyone => Err(not_permitted("this call is for operators")),
        }
    }

    /// # Errors
    /// `NotPermitted` for everybody else; the rules let only nodes come here.
    pub fn node(&self) -> Result<(NodeId, &Serial), Failure> {
        match self {
            Self::Node { id, serial } => Ok((*id, serial)),
            Self::Operator(_) | Self::Anyone => Err(not_permitted("this call is for nodes")),
        }
    }
}

// === impl Gate ===

impl Gate {
    pub fn new(fleet: FleetId, directory: Directory, audit: Audit) -> Self {
        Self { inner: Arc::new(Inner { fleet, directory, audit }) }
    }

    /// Who calls, if they may; a changing call is on the disk when this answers, allowed or denied. How an allowed one has ended
    /// is to be told with [`Gate::write_end`].
    ///
    /// # Errors
    /// `NoIdentity`, `TokenInvalid`, `NotPermitted`; those of the store.
    pub async fn admit(
        &self,
        rule: &'static Rule,
        peer: &Peer,
        authorization: Option<&HeaderValue>,
    ) -> Result<Admitted, Failure> {
        let decided = match self.identify(rule, peer, authorization).await {
            Ok(caller) => {
                permit(rule, &caller).map(|()| caller.clone()).map_err(|failure| (caller.actor(), failure))
            }
            Err(failure) => Err((claimed(peer), failure)),
        };
        let entry = match rule.effect {
            Effect::Reads => None,
            Effect::Changes => self.write_down(rule, peer, &decided).await?,
        };
        decided.map(|caller| Admitted { caller, entry }).map_err(|(_, failure)| failure)
    }

    /// Whether a caller who was admitted a moment ago still may; leaves nothing on record.
    ///
    /// # Errors
    /// Those of [`Gate::admit`].
    pub async fn still_admits(
        &self,
        rule: &'static Rule,
        peer: &Peer,
        authorization: Option<&HeaderValue>,
    ) -> Result<(), Failure> {
        let caller = self.identify(rule, peer, authorization).await?;
        permit(rule, &caller)
    }

    /// Writes how an allowed call has ended. It has taken place: if this cannot be written, that is only logged.
    pub async fn write_end(&self, entry: Entry, code: Code) {
        if let Err(error) = self.inner.audit.end(entry, &format!("{code:?}")).await {
            tracing::warn!(error = %holdfast_common::error::Chain(&error), "the end of a changing call is not written down");
        }
    }

    async fn write_down(
        &self,
        rule: &Rule,
        peer: &Peer,
        decided: &Result<Caller, (String, Failure)>,
    ) -> Result<Option<Entry>, Failure> {
        let (actor, decision) = match decided {
            Ok(caller) => (caller.actor(), Decision::Allowed),
            // Without any identity there is nothing to hold anyone to, and no bound to how much could be written.
            Err((actor, _)) if actor == "nobody" => return Ok(None),
            Err((actor, failure)) => (actor.clone(), Decision::Denied { why: failure.reason.to_string() }),
        };
        let written =
            self.inner.audit.record(actor, peer.address.ip().to_string(), rule.method, decision).await;
        match (decided, written) {
            (Ok(_), Err(error)) => Err(error.into()),
            // Denied it is, written down or not.
            (Err(_), Err(error)) => {
                tracing::warn!(error = %holdfast_common::error::Chain(&error), "a denied call is not written down");
                Ok(None)
            }
            (Err(_), Ok(_)) => Ok(None),
            (Ok(_), Ok(entry)) => Ok(Some(entry)),
        }
    }

    async fn identify(
        &self,
        rule: &Rule,
        peer: &Peer,
        authorization: Option<&HeaderValue>,
    ) -> Result<Caller, Failure> {
        if rule.who == Who::Open {
            return Ok(Caller::Anyone);
        }
        if let Some(header) = authorization {
            return self.by_token(header).await;
        }
        let Some(identity) = &peer.identity else {
            let message =
                "the call has no identity: present a client certificate, or `authorization: Bearer hfo1.…`";
            return Err(Failure::new(Reason::NoIdentity, message));
        };
        self.by_certificate(identity).await
    }

    async fn by_certificate(&self, identity: &PeerIdentity) -> Result<Caller, Failure> {
        let PeerIdentity { fleet, kind, serial, not_after, .. } = identity;
        let now = Timestamp::now();
        if *fleet != self.inner.fleet {
            return Err(not_permitted("the certificate belongs to another fleet"));
        }
        // TLS has looked at this too, but when the connection began, which may be long ago.
        if *not_after <= now {
            return Err(Failure::new(
                Reason::NoIdentity,
                "the certificate has ended; renew it and connect again",
            ));
        }
        match kind {
            PeerKind::Node(id) => {
                let found = self.inner.directory.get::<directory::Node>(&directory::node_key(*id)).await?;
                let node = found.ok_or_else(|| not_permitted("the node is not in the fleet any more"))?.value;
                if !node.welcomes(serial, now) {
                    return Err(not_permitted(
                        "the node has newer certificates; this one is not welcome any more",
                    ));
                }
                Ok(Caller::Node { id: *id, serial: serial.clone() })
            }
            PeerKind::Operator(name) => {
                let gone = || not_permitted("the operator was removed, or has a newer certificate");
                let operator = self.operator(name).await?.ok_or_else(gone)?;
                if operator.certificate.serial != *serial {
                    return Err(gone());
                }
                let caller = OperatorCaller {
                    name: operator.name,
                    role: operator.role,
                    method: Method::Certificate,
                    expires_at: *not_after,
                };
                Ok(Caller::Operator(caller))
            }
            PeerKind::Coordinator(_) => Err(not_permitted("a coordinator calls nothing here")),
        }
    }

    async fn by_token(&self, header: &HeaderValue) -> Result<Caller, Failure> {
        let invalid = |message: String| Failure::new(Reason::TokenInvalid, message);
        let text = header.to_str().map_err(|_| invalid("the authorization header is no text".to_owned()))?;
        let token =
            text.strip_prefix("Bearer ").or_else(|| text.strip_prefix("bearer ")).ok_or_else(|| {
                invalid("the authorization header is not of the form `Bearer hfo1.<id>.<secret>`".to_owned())
            })?;
        let token: AccessToken =
            token.parse().map_err(|error| invalid(format!("{error}; copy the whole token")))?;
        let found = self
            .inner
            .directory
            .get::<directory::AccessToken>(&directory::access_token_key(token.id))
            .await?;
        // An unknown id and a wrong secret look and cost the same.
        let hash =
            found.as_ref().map_or_else(|| TokenSecret::generate().hash(), |record| record.value.secret);
        let right = hash.matches(&token.secret);
        let Some(record) = found.filter(|_| right) else {
            return Err(invalid("the access token is not known; create a new one".to_owned()));
        };
        let record = record.value;
        if record.revoked {
            return Err(invalid("the access token was revoked; create a new one".to_owned()));
        }
        if record.expires_at <= Timestamp::now() {
            return Err(invalid(format!(
                "the access token expired at {}; create a new one",
                record.expires_at
            )));
        }
        let owner = self.operator(&record.operator).await?;
        let Some(owner) = owner.filter(|owner| owner.created_at == record.operator_created_at) else {
            return Err(invalid("the operator of the access token was removed".to_owned()));
        };
        let caller = OperatorCaller {
            name: owner.name,
            role: owner.role,
            method: Method::Token(record.id),
            expires_at: record.expires_at,
        };
        Ok(Caller::Operator(caller))
    }

    async fn operator(&self, name: &OperatorName) -> Result<Option<directory::Operator>, Failure> {
        Ok(self.inner.directory.get(&directory::operator_key(name)).await?.map(|record| record.value))
    }
}

/// Whether the row lets this caller in. Pure.
pub fn permit(rule: &Rule, caller: &Caller) -> Result<(), Failure> {
    let needs = |role: OperatorRole| match caller {
        Caller::Operator(operator) if operator.role >= role => Ok(()),
        Caller::Operator(operator) => {
            let message =
                format!("{} needs the role {role}; `{}` is {}", rule.method, operator.name, operator.role);
            Err(not_permitted(message).with("needs", role).with("has", operator.role))
        }
        Caller::Node { .. } => Err(not_permitted(format!("{} is for operators, not for nodes", rule.method))),
        Caller::Anyone => Err(Failure::new(Reason::NoIdentity, "the call has no identity")),
    };
    match rule.who {
        Who::Open => Ok(()),
        Who::Viewer => needs(OperatorRole::Viewer),
        Who::Operator => needs(OperatorRole::Operator),
        Who::Admin => needs(OperatorRole::Admin),
        Who::Node => match caller {
            Caller::Node { .. } => Ok(()),
            Caller::Operator(_) => {
                Err(not_permitted(format!("{} is for nodes, not for operators", rule.method)))
            }
            Caller::Anyone => Err(Failure::new(Reason::NoIdentity, "the call has no identity")),
        },
    }
}

/// Whom a peer that was refused claims to be; its certificate is the fleet's own, but not welcome.
fn claimed(peer: &Peer) -> String {
    peer.identity.as_ref().map_or_else(|| "nobody".to_owned(), |identity| identity.kind.to_string())
}

fn not_permitted(message: impl Into<String>) -> Failure {
    Failure::new(Reason::NotPermitted, message)
}
