//! Join tokens and access tokens.

use std::time::Duration;

use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::{NodeId, TokenId};
use holdfast_common::name::{NodeName, OperatorName};
use holdfast_common::pki;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::remember::RequestId;
use super::{Identity, end};
use crate::directory::{self, AccessToken, Change, JoinToken, Operator};
use crate::store::{Compare, Op, Txn};

/// What a join token is to be good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJoinToken {
    pub ttl: Duration,
    pub uses: u32,
    pub description: String,
    pub node_name: Option<NodeName>,
    /// For a node that is in the fleet already.
    pub rejoins: Option<NodeId>,
    pub created_by: String,
}

/// What an access token is to be good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAccessToken {
    pub operator: OperatorName,
    pub ttl: Duration,
    pub description: String,
}

impl Identity {
    /// A new join token; `render` makes the answer that a repeat of `request` gets too.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn create_join_token(
        &self,
        new: NewJoinToken,
        request: Option<&RequestId>,
        render: impl FnOnce(&JoinToken, Zeroizing<String>) -> Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        let NewJoinToken { ttl, uses, description, node_name, rejoins, created_by } = new;
        let token = pki::JoinToken::generate(self.inner.authority.fingerprint());
        let now = Timestamp::now();
        let record = JoinToken {
            id: token.id,
            secret: token.secret.hash(),
            description,
            created_at: now,
            created_by,
            expires_at: end(now, ttl),
            uses_allowed: uses,
            uses_left: uses,
            revoked: false,
            node_name,
            rejoins,
        };
        let key = directory::join_token_key(token.id);
        let answer = render(&record, token.reveal());
        let txn = Txn::new().when(Compare::absent(&key)).then(directory::put(&key, &record)?);
        self.commit(txn, request, answer).await
    }

    /// The token is good for nothing from now on.
    ///
    /// # Errors
    /// `TokenNotFound`, those of the store.
    pub async fn revoke_join_token(&self, id: TokenId) -> Result<JoinToken, Failure> {
        let key = directory::join_token_key(id);
        let updated = self.inner.directory.update(&key, |mut token: JoinToken| {
            token.revoked = true;
            Change::Write(token.clone(), token)
        });
        updated.await?.ok_or_else(|| not_found("join token", id))
    }

    /// A new access token of an operator who is there.
    ///
    /// # Errors
    /// `OperatorNotFound`, those of the store.
    pub async fn create_access_token(
        &self,
        new: NewAccessToken,
        request: Option<&RequestId>,
        render: impl FnOnce(&AccessToken, Zeroizing<String>) -> Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        let NewAccessToken { operator, ttl, description } = new;
        let operator_key = directory::operator_key(&operator);
        let found = self.inner.directory.get::<Operator>(&operator_key).await?;
        let owner = found.ok_or_else(|| super::operators::not_found(&operator))?;
        let token = pki::AccessToken::generate();
        let now = Timestamp::now();
        let record = AccessToken {
            id: token.id,
            secret: token.secret.hash(),
            operator,
            operator_created_at: owner.value.created_at,
            description,
            created_at: now,
            expires_at: end(now, ttl),
            revoked: false,
        };
        let key = directory::access_token_key(token.id);
        let answer = render(&record, token.reveal());
        let txn = Txn::new()
            .when(Compare::unchanged(&operator_key, owner.revision))
            .when(Compare::absent(&key))
            .then(directory::put(&key, &record)?);
        self.commit(txn, request, answer).await
    }

    /// The token is good for nothing from now on. `owner`: only if it is theirs.
    ///
    /// # Errors
    /// `TokenNotFound` (also for somebody else's), those of the store.
    pub async fn revoke_access_token(
        &self,
        id: TokenId,
        owner: Option<&OperatorName>,
    ) -> Result<AccessToken, Failure> {
        let key = directory::access_token_key(id);
        let updated = self.inner.directory.update(&key, |mut token: AccessToken| {
            if owner.is_some_and(|owner| token.operator != *owner) {
                return Change::Keep(None);
            }
            token.revoked = true;
            Change::Write(token.clone(), Some(token))
        });
        updated.await?.flatten().ok_or_else(|| not_found("access token", id))
    }

    /// Removes records in one transaction, if `txn`'s compares hold.
    pub(super) async fn delete(
        &self,
        txn: Txn,
        keys: impl IntoIterator<Item = crate::store::Key>,
    ) -> Result<bool, Failure> {
        let txn = keys.into_iter().fold(txn, |txn, key| txn.then(Op::delete(key)));
        Ok(self.inner.directory.store().txn(txn).await?.succeeded)
    }
}

fn not_found(kind: &str, id: TokenId) -> Failure {
    Failure::about(Reason::TokenNotFound, kind, id, format!("there is no {kind} {id}"))
}
