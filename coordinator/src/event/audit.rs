//! The audit: every changing call, allowed or denied, before it takes effect; and how each that was allowed has ended.
//!
//! One that was allowed and has no end was under way when the coordinator stopped, or when its caller went away.

use std::sync::Arc;

use holdfast_common::pki::Fingerprint;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{KEPT, Log};
use crate::store::{self, Shared};

/// One changing call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    pub id: u64,
    pub time: Timestamp,
    /// `operator/NAME`, `node/ID`, or `nobody`.
    pub actor: String,
    /// Its address.
    pub peer: String,
    /// The call's full name, such as `holdfast.v1.NodeService/RemoveNode`.
    pub method: String,
    pub decision: Decision,
    /// Of the record before this one; the first has none.
    pub previous: Option<Fingerprint>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Allowed,
    Denied {
        why: String,
    },
    /// The call of that record has ended with this gRPC status; what it began may go on.
    Ended {
        call: u64,
        code: String,
    },
}

/// A call that was allowed, and whose end is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    id: u64,
    actor: String,
    peer: String,
    method: String,
}

/// The log of changing calls. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit {
    log: Arc<Log>,
    /// Held while a record is written.
    last: Arc<Mutex<Last>>,
}

/// Fingerprint of the last record.
#[derive(Debug, Clone, Copy)]
enum Last {
    Known(Option<Fingerprint>),
    /// An attempt failed or was dropped half-way: only the store knows.
    Unsure,
}

impl Audit {
    /// Goes on where the stored log ends.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn open(store: Shared) -> Result<Self, store::Error> {
        let log = Log::open(store, "audit/", KEPT).await?;
        Ok(Self { log, last: Arc::new(Mutex::new(Last::Unsure)) })
    }

    /// Writes that a call was allowed or denied. It is on the disk when this answers.
    ///
    /// # Errors
    /// Those of the store: an allowed call must then not take place.
    pub async fn record(
        &self,
        actor: String,
        peer: String,
        method: &str,
        decision: Decision,
    ) -> Result<Entry, store::Error> {
        let mut last = self.last.lock().await;
        let previous = match std::mem::replace(&mut *last, Last::Unsure) {
            Last::Known(previous) => previous,
            Last::Unsure => self.log.last::<AuditRecord>().await?.as_ref().map(fingerprint),
        };
        let mut record = AuditRecord {
            id: 0,
            time: Timestamp::now(),
            actor,
            peer,
            method: method.to_owned(),
            decision,
            previous,
        };
        record = self.log.append(|id| AuditRecord { id, ..record.clone() }).await?;
        *last = Last::Known(Some(fingerprint(&record)));
        let AuditRecord { id, actor, peer, method, .. } = record;
        Ok(Entry { id, actor, peer, method })
    }

    /// Writes how an allowed call has ended.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn end(&self, entry: Entry, code: &str) -> Result<(), store::Error> {
        let Entry { id, actor, peer, method } = entry;
        let decision = Decision::Ended { call: id, code: code.to_owned() };
        self.record(actor, peer, &method, decision).await.map(drop)
    }
}

fn fingerprint(record: &AuditRecord) -> Fingerprint {
    Fingerprint::of(&serde_json::to_vec(record).expect("a record of texts and numbers can be JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;
    use crate::store::record;

    #[tokio::test]
    async fn each_record_bears_the_fingerprint_of_the_one_before_also_over_a_restart() {
        let store = Memory::shared();
        for round in 0..2 {
            let audit = Audit::open(store.clone()).await.unwrap();
            for number in 0..3 {
                let decision =
                    if number == 1 { Decision::Denied { why: "no".into() } } else { Decision::Allowed };
                audit
                    .record(format!("operator/a{round}"), "192.0.2.1".into(), "x/Y", decision)
                    .await
                    .unwrap();
            }
        }
        let records = record::list::<AuditRecord>(&*store, "audit/").await.unwrap();
        assert_eq!(records.len(), 6);
        assert_eq!(records[0].value.previous, None);
        for pair in records.windows(2) {
            assert_eq!(pair[1].value.previous, Some(fingerprint(&pair[0].value)));
        }
        let mut edited = records[2].value.clone();
        edited.actor = "operator/somebody-else".into();
        assert_ne!(records[3].value.previous, Some(fingerprint(&edited)), "an edit would show");
    }
}
