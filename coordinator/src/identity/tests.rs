//! One use of a token makes one node, however many ask at once; and what becomes of that without the guard.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use holdfast_common::error::Reason;
use holdfast_common::id::FleetId;
use holdfast_common::link::Enroll;
use holdfast_common::pki::{Authority, Keyring, MasterKey, NodeKey};
use jiff::Timestamp;
use uuid::Uuid;

use super::{Identity, NewJoinToken};
use crate::directory::{self, Directory, Node};
use crate::store::memory::Memory;
use crate::store::{
    self, Key, Kv, LeaseId, Listing, Outcome, Range, Revision, Shared, Status, Store, Txn, Watch,
};

/// Whether the store looks at what a transaction depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compares {
    Kept,
    /// The mutant: look first, then mark.
    Dropped,
}

/// A store before whose every answer others have their turn.
#[derive(Debug)]
struct Crowded {
    inner: Shared,
    compares: Compares,
}

impl Store for Crowded {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, store::Result<Option<Kv>>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.inner.get(key).await
        })
    }

    fn range(&self, range: Range) -> BoxFuture<'_, store::Result<Listing>> {
        self.inner.range(range)
    }

    fn txn(&self, mut txn: Txn) -> BoxFuture<'_, store::Result<Outcome>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if self.compares == Compares::Dropped {
                txn.compares.clear();
            }
            self.inner.txn(txn).await
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, store::Result<Watch>> {
        self.inner.watch(prefix, from)
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, store::Result<LeaseId>> {
        self.inner.lease_grant(ttl)
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, store::Result<()>> {
        self.inner.lease_keep_alive(lease)
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, store::Result<()>> {
        self.inner.lease_revoke(lease)
    }

    fn status(&self) -> BoxFuture<'_, store::Result<Status>> {
        self.inner.status()
    }
}

/// How many of fifty that ask at once become nodes by one token of one use.
async fn admitted(compares: Compares) -> usize {
    let store: Shared = Arc::new(Crowded { inner: Memory::shared(), compares });
    let directory = Directory::new(store);
    let authority = Authority::create(FleetId::generate(), Timestamp::now()).unwrap();
    let keyring = Arc::new(Keyring::new(MasterKey::generate(), Vec::new()));
    let identity = Identity::new(directory.clone(), authority, keyring);
    let new = NewJoinToken {
        ttl: Duration::from_secs(60),
        uses: 1,
        description: String::new(),
        node_name: None,
        rejoins: None,
        created_by: "operator/admin".into(),
    };
    let told = identity.create_join_token(new, None, |_, token| token.as_bytes().to_vec()).await.unwrap();
    let token = String::from_utf8(told).unwrap();
    let answers = join_all((0..50).map(|number| {
        let (identity, token) = (&identity, &token);
        async move {
            let enroll = Enroll {
                token: token.clone(),
                certificate_signing_request: NodeKey::generate().unwrap().signing_request().unwrap(),
                node_name: format!("n{number}").parse().unwrap(),
                address: "203.0.113.1".parse().unwrap(),
                request_id: Uuid::now_v7(),
            };
            identity.enroll(&enroll).await
        }
    }))
    .await;
    for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(refused.reason, Reason::TokenInvalid, "{refused:?}");
    }
    directory.list::<Node>(directory::NODES).await.unwrap().len()
}

#[tokio::test]
async fn one_use_makes_one_node_however_many_ask_in_between() {
    assert_eq!(admitted(Compares::Kept).await, 1);
}

#[tokio::test]
async fn looking_first_and_marking_then_would_be_found_out() {
    assert!(admitted(Compares::Dropped).await > 1);
}
