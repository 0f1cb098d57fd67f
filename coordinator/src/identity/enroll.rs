//! How a node joins, and how its certificate is renewed.

use std::net::IpAddr;

use holdfast_common::error::{Chain, Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::link::{Enroll, Enrolled, Renewed};
use holdfast_common::name::NodeName;
use holdfast_common::pki::{
    AuthorityError, Fingerprint, Issued, JoinToken, Serial, SigningRequest, TokenSecret,
};
use jiff::Timestamp;

use super::{Identity, REMEMBER_FOR, contended, issued};
use crate::directory::{self, Change, Enrollment, Node};
use crate::store::record::Record;
use crate::store::{Compare, Key, Txn};

/// How often a lost race is run again. Each round somebody else has won, so a token of many uses may see several.
const ATTEMPTS: usize = 200;

/// The record of a node that enrolls, what must hold for it, and what is written with it.
struct Place {
    node: Node,
    txn: Txn,
}

impl Identity {
    /// Trades a join token for an identity: the use of the token and the node's record are one transaction. A repeat of the
    /// same request gets the same node, and no second use.
    ///
    /// # Errors
    /// `TokenInvalid` (the message says why, but not whether the id or the secret is wrong), `InvalidField`,
    /// `NodeExists`, those of the store.
    pub async fn enroll(&self, enroll: &Enroll) -> Result<(Enrolled, bool), Failure> {
        let token = self.parse_token(&enroll.token)?;
        let request = SigningRequest::parse(&enroll.certificate_signing_request)
            .map_err(|error| Failure::invalid_field("certificate_signing_request", error))?;
        let enrollment_key = Key::from(format!("{}{}", directory::ENROLLMENTS, enroll.request_id));
        for _ in 0..ATTEMPTS {
            let record = self.authenticate(&token).await?;
            if let Some(known) = self.inner.directory.get::<Enrollment>(&enrollment_key).await? {
                let repeated = self.repeat(enroll, &record.value, &known.value, &request).await?;
                return Ok((repeated, false));
            }
            let now = Timestamp::now();
            usable(&record.value, &enroll.node_name, now)?;
            if let Some(enrolled) = self.try_enroll(enroll, record, &request, &enrollment_key).await? {
                return Ok((enrolled, true));
            }
        }
        Err(contended())
    }

    /// A fresh certificate for a node, by the one with serial `used`.
    ///
    /// # Errors
    /// `InvalidField`, `NotPermitted` (the node is gone), those of the store.
    pub async fn renew(
        &self,
        node: NodeId,
        used: &Serial,
        signing_request: &str,
    ) -> Result<(Renewed, Node), Failure> {
        let request = SigningRequest::parse(signing_request)
            .map_err(|error| Failure::invalid_field("certificate_signing_request", error))?;
        let gone = || Failure::new(Reason::NotPermitted, "the node is not in the fleet any more");
        let key = directory::node_key(node);
        let found = self.inner.directory.get::<Node>(&key).await?.ok_or_else(gone)?.value;
        let fresh = self.certify(&request, node, &found.name, found.address)?;
        let entry = issued(&fresh);
        let updated = self.inner.directory.update(&key, |mut record: Node| {
            record.add_certificate(entry.clone(), Some(used), Timestamp::now());
            Change::Write(record.clone(), record)
        });
        let record = updated.await?.ok_or_else(gone)?;
        Ok((self.renewed(&fresh), record))
    }

    fn parse_token(&self, text: &str) -> Result<JoinToken, Failure> {
        let token: JoinToken =
            text.parse().map_err(|error| invalid(format!("{error}; copy the whole token")))?;
        if token.pin != self.inner.authority.fingerprint() {
            return Err(invalid(
                "the token belongs to another fleet; create one with this coordinator".to_owned(),
            ));
        }
        Ok(token)
    }

    /// The token's record, if the secret is right. An unknown id and a wrong secret look and cost the same.
    async fn authenticate(&self, token: &JoinToken) -> Result<Record<directory::JoinToken>, Failure> {
        let found =
            self.inner.directory.get::<directory::JoinToken>(&directory::join_token_key(token.id)).await?;
        let hash =
            found.as_ref().map_or_else(|| TokenSecret::generate().hash(), |record| record.value.secret);
        match found {
            Some(record) if hash.matches(&token.secret) => Ok(record),
            Some(_) | None => Err(invalid("the token is not known; create a new one".to_owned())),
        }
    }

    /// `None`: somebody else was faster at something; look again.
    async fn try_enroll(
        &self,
        enroll: &Enroll,
        token: Record<directory::JoinToken>,
        request: &SigningRequest,
        enrollment_key: &Key,
    ) -> Result<Option<Enrolled>, Failure> {
        let Place { mut node, txn } = match token.value.rejoins {
            Some(node) => self.returning(enroll, node).await?,
            None => self.arriving(enroll).await?,
        };
        let fresh = self.certify(request, node.id, &node.name, node.address)?;
        // Of one that returns, what it had before is not welcome any more.
        node.certificates = vec![issued(&fresh)];
        let enrollment = Enrollment {
            token: token.value.id,
            node: node.id,
            name: node.name.clone(),
            key: Fingerprint::of(&request.key_digest()),
            keep_until: Timestamp::now().saturating_add(REMEMBER_FOR).unwrap_or(Timestamp::MAX),
        };
        let used = directory::JoinToken { uses_left: token.value.uses_left.saturating_sub(1), ..token.value };
        let txn = txn
            .when(Compare::unchanged(&token.key, token.revision))
            .when(Compare::absent(enrollment_key))
            .then(directory::put(&token.key, &used)?)
            .then(directory::put(&directory::node_key(node.id), &node)?)
            .then(directory::put(enrollment_key, &enrollment)?);
        if !self.inner.directory.store().txn(txn).await?.succeeded {
            return Ok(None);
        }
        Ok(Some(Enrolled { fleet_id: self.fleet(), node_id: node.id, certificate: self.renewed(&fresh) }))
    }

    /// A node that the fleet does not have yet.
    async fn arriving(&self, enroll: &Enroll) -> Result<Place, Failure> {
        let name_key = directory::node_name_key(&enroll.node_name);
        if self.inner.directory.get::<NodeId>(&name_key).await?.is_some() {
            return Err(exists(&enroll.node_name));
        }
        let node = Node {
            id: NodeId::generate(),
            name: enroll.node_name.clone(),
            address: enroll.address,
            joined_at: Timestamp::now(),
            certificates: Vec::new(),
            drained: None,
        };
        let txn = Txn::new().when(Compare::absent(&name_key)).then(directory::put(&name_key, &node.id)?);
        Ok(Place { node, txn })
    }

    /// A node that the fleet has, and that has lost its certificate.
    async fn returning(&self, enroll: &Enroll, node: NodeId) -> Result<Place, Failure> {
        let key = directory::node_key(node);
        let found = self.inner.directory.get::<Node>(&key).await?;
        let Some(found) = found.filter(|found| found.value.name == enroll.node_name) else {
            return Err(invalid("the node that the token was made for was removed; create a new one".into()));
        };
        if found.value.address != enroll.address {
            let known = found.value.address;
            let problem =
                format!("is not {known}, where the other members look for it; give --address {known}");
            return Err(Failure::invalid_field("address", problem));
        }
        Ok(Place { node: found.value, txn: Txn::new().when(Compare::unchanged(&key, found.revision)) })
    }

    async fn repeat(
        &self,
        enroll: &Enroll,
        token: &directory::JoinToken,
        known: &Enrollment,
        request: &SigningRequest,
    ) -> Result<Enrolled, Failure> {
        let same = known.token == token.id
            && known.name == enroll.node_name
            && known.key == Fingerprint::of(&request.key_digest());
        if !same {
            let message = "the request id was used before, with another token, name or key; draw a new one";
            return Err(Failure::new(Reason::RequestIdReused, message).with("requestId", enroll.request_id));
        }
        let gone = || invalid("the node that this request made was removed; create a new token".to_owned());
        let key = directory::node_key(known.node);
        let record = self.inner.directory.get::<Node>(&key).await?.ok_or_else(gone)?.value;
        let fresh = self.certify(request, record.id, &record.name, record.address)?;
        let entry = issued(&fresh);
        let noted = self.inner.directory.update(&key, |mut record: Node| {
            record.add_certificate(entry.clone(), None, Timestamp::now());
            Change::Write(record, ())
        });
        noted.await?.ok_or_else(gone)?;
        Ok(Enrolled { fleet_id: self.fleet(), node_id: record.id, certificate: self.renewed(&fresh) })
    }

    fn certify(
        &self,
        request: &SigningRequest,
        node: NodeId,
        name: &NodeName,
        address: IpAddr,
    ) -> Result<Issued, Failure> {
        self.inner.authority.issue_node(request, node, name, &[address], self.validity()).map_err(|error| {
            match error {
                AuthorityError::DnsName { .. } => Failure::invalid_field("node_name", error),
                other => Failure::new(Reason::Internal, Chain(&other).to_string()),
            }
        })
    }

    fn renewed(&self, fresh: &Issued) -> Renewed {
        Renewed {
            certificate_chain: fresh.chain_pem(),
            trust_bundle: self.trust_bundle().to_pem(),
            not_after: fresh.not_after,
        }
    }
}

/// Whether a token whose secret is right may be used now, for this name.
fn usable(token: &directory::JoinToken, name: &NodeName, now: Timestamp) -> Result<(), Failure> {
    if token.revoked {
        return Err(invalid("the token was revoked; create a new one".to_owned()));
    }
    if token.expires_at <= now {
        return Err(invalid(format!("the token expired at {}; create a new one", token.expires_at)));
    }
    if token.uses_left == 0 {
        return Err(invalid("the token is used up; create a new one".to_owned()));
    }
    match &token.node_name {
        Some(bound) if bound != name => Err(invalid(format!(
            "the token is only for the node `{bound}`; join under that name or create another token"
        ))),
        Some(_) | None => Ok(()),
    }
}

fn invalid(message: String) -> Failure {
    Failure::new(Reason::TokenInvalid, message)
}

fn exists(name: &NodeName) -> Failure {
    let message = format!(
        "there is a node `{name}` already; choose another name, or remove that node first; if this machine is that node and its certificate has ended, use a token made with --rejoin"
    );
    Failure::about(Reason::NodeExists, "node", name, message)
}
