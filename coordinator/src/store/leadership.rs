//! Which of several coordinators acts: a key that vanishes with its holder's lease.
//!
//! The revision that created the key is the fence: whoever acts as leader adds [`Leadership::guard`] to its
//! transactions, which fail once somebody else leads.

use std::time::Duration;

use super::{Compare, Error, Event, Key, LeaseId, Op, Result, Revision, Store, Txn};

/// The right to act, as long as it is kept alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    /// The key that says who leads.
    pub key: Key,
    /// The revision that created it.
    pub fence: Revision,
    /// What it hangs on.
    pub lease: LeaseId,
}

/// Waits until nobody else leads, and then leads.
///
/// # Cancel safety
/// When dropped, a lease may be left over that ends by itself.
///
/// # Errors
/// Those of the store.
pub async fn campaign(store: &dyn Store, name: &str, who: &str, ttl: Duration) -> Result<Leadership> {
    let key = Key::from(format!("leader/{name}"));
    loop {
        let lease = store.lease_grant(ttl).await?;
        let run = Txn::new()
            .when(Compare::absent(&key))
            .then(Op::put_leased(&key, who, lease))
            .or_else(Op::get(&key));
        let outcome = store.txn(run).await?;
        if outcome.succeeded {
            return Ok(Leadership { key, fence: outcome.revision, lease });
        }
        store.lease_revoke(lease).await?;
        gone(store, &key, outcome.revision.next()).await?;
    }
}

async fn gone(store: &dyn Store, key: &Key, from: Revision) -> Result<()> {
    let mut watch = store.watch(key.as_str(), from).await?;
    loop {
        match watch.next().await {
            Ok(batch) => {
                if batch.events.iter().any(|e| matches!(e, Event::Deleted { key: gone, .. } if gone == key)) {
                    return Ok(());
                }
            }
            // Fallen behind: a fresh look tells.
            Err(Error::Compacted { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

// === impl Leadership ===

impl Leadership {
    /// Holds as long as nobody else leads. Belongs into every transaction of a leader.
    pub fn guard(&self) -> Compare {
        Compare::CreateRev(self.key.clone(), self.fence)
    }

    /// Goes on leading for another while.
    ///
    /// # Errors
    /// [`Error::LeaseOver`]: somebody else may lead by now; stop acting.
    pub async fn keep(&self, store: &dyn Store) -> Result<()> {
        store.lease_keep_alive(self.lease).await
    }

    /// Lets the next one lead at once.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn resign(self, store: &dyn Store) -> Result<()> {
        store.lease_revoke(self.lease).await
    }
}
