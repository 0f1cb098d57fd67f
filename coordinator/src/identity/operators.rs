//! Operators.

use std::time::Duration;

use holdfast_common::error::{Chain, Failure, Reason};
use holdfast_common::name::OperatorName;
use holdfast_common::pki::{Authority, Validity};
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::remember::RequestId;
use super::{Identity, contended, issued};
use crate::directory::{self, Operator, OperatorRole};
use crate::store::record::Record;
use crate::store::{Compare, Key, Txn};

const ATTEMPTS: usize = 20;
/// Written with every change of who is an admin, so that two admins cannot remove each other at the same time.
const ADMINS: &str = "admins";

/// Whom to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOperator {
    pub name: OperatorName,
    pub role: OperatorRole,
    pub ttl: Duration,
}

/// What a new operator needs; the key is nowhere else.
#[derive(Debug)]
pub struct OperatorCredentials {
    pub certificate_chain: String,
    pub private_key: Zeroizing<String>,
}

impl NewOperator {
    /// The record and the credentials, not yet stored.
    ///
    /// # Errors
    /// `Internal`.
    pub fn issue(self, authority: &Authority) -> Result<(Operator, OperatorCredentials), Failure> {
        let Self { name, role, ttl } = self;
        let now = Timestamp::now();
        let (certificate, key) = authority
            .issue_operator(&name, Validity { now, lifetime: ttl })
            .map_err(|error| Failure::new(Reason::Internal, Chain(&error).to_string()))?;
        let credentials =
            OperatorCredentials { certificate_chain: certificate.chain_pem(), private_key: key.to_pem() };
        Ok((Operator { name, role, created_at: now, certificate: issued(&certificate) }, credentials))
    }
}

impl Identity {
    /// A new operator with a certificate; `render` makes the answer that a repeat of `request` gets too.
    ///
    /// # Errors
    /// `OperatorExists`, those of the store.
    pub async fn create_operator(
        &self,
        new: NewOperator,
        request: Option<&RequestId>,
        render: impl FnOnce(&Operator, OperatorCredentials) -> Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        let name = new.name.clone();
        let key = directory::operator_key(&name);
        let exists = || {
            let message = format!(
                "there is an operator `{name}` already; choose another name, or remove that one first"
            );
            Failure::about(Reason::OperatorExists, "operator", &name, message)
        };
        if self.inner.directory.get::<Operator>(&key).await?.is_some() {
            return Err(exists());
        }
        let (record, credentials) = new.issue(&self.inner.authority)?;
        let answer = render(&record, credentials);
        let txn = Txn::new().when(Compare::absent(&key)).then(directory::put(&key, &record)?);
        match self.commit(txn, request, answer).await {
            Err(lost) if lost.reason == Reason::VersionConflict => Err(exists()),
            done => done,
        }
    }

    /// The operator's certificate and tokens are refused from now on.
    ///
    /// # Errors
    /// `OperatorNotFound`, `PreconditionFailed` for the last admin, those of the store.
    pub async fn remove_operator(&self, name: &OperatorName) -> Result<Operator, Failure> {
        let admins = Key::from(ADMINS);
        for _ in 0..ATTEMPTS {
            let fence = self.inner.directory.store().get(&admins).await?.map(|kv| kv.mod_rev);
            let all = self.inner.directory.list::<Operator>(directory::OPERATORS).await?;
            let found =
                all.iter().find(|record| record.value.name == *name).ok_or_else(|| not_found(name))?;
            let others = all.iter().filter(|other| other.value.name != *name);
            if found.value.role == OperatorRole::Admin
                && !others.clone().any(|other| other.value.role == OperatorRole::Admin)
            {
                return Err(last_admin(name));
            }
            let compare =
                fence.map_or_else(|| Compare::absent(&admins), |rev| Compare::unchanged(&admins, rev));
            let txn = Txn::new()
                .when(compare)
                .when(Compare::unchanged(&found.key, found.revision))
                .then(directory::put(&admins, name)?);
            if self.delete(txn, [found.key.clone()]).await? {
                self.forget_tokens(&found.value).await?;
                return Ok(found.value.clone());
            }
        }
        Err(contended())
    }

    /// They are refused already, since their owner is gone; this only tidies up.
    async fn forget_tokens(&self, owner: &Operator) -> Result<(), Failure> {
        let all: Vec<Record<directory::AccessToken>> =
            self.inner.directory.list(directory::ACCESS_TOKENS).await?;
        for token in all.into_iter().filter(|token| token.value.operator == owner.name) {
            self.delete(Txn::new(), [token.key]).await?;
        }
        Ok(())
    }
}

pub(super) fn not_found(name: &OperatorName) -> Failure {
    Failure::about(Reason::OperatorNotFound, "operator", name, format!("there is no operator `{name}`"))
}

fn last_admin(name: &OperatorName) -> Failure {
    let message = "the last admin cannot be removed; create another admin first".to_owned();
    let violation = holdfast_common::error::Violation {
        name: "another_admin".to_owned(),
        subject: format!("operators/{name}"),
        message: message.clone(),
    };
    Failure { violations: vec![violation], ..Failure::new(Reason::PreconditionFailed, message) }
}
