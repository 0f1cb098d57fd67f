//! Who may reach each cluster, in the store.
//!
//! ```text
//! cluster-access/<cluster>          Head: modes, and which lists of entries
//! cluster-entries/<list>/<number>   some thousand entries of a list; a list never changes, another one takes its place
//! ```
//! A value has at most a MiB, and a list may have a hundred thousand entries: so it lies in pieces, written and removed in
//! one transaction with the head that names it.

use std::collections::BTreeMap;

use holdfast_common::access::{Entry, Mode, Rules};
use holdfast_common::id::ClusterId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::records::{Error, Records};
use crate::cluster::access::{Declared, Trial};
use crate::directory::put;
use crate::store::record::Record;
use crate::store::{Compare, Key, Op, Revision};

const HEADS: &str = "cluster-access/";
/// How many entries lie in one record.
const PIECE: usize = 4000;
/// How often rules are read anew that others replace meanwhile.
const ATTEMPTS: usize = 20;

/// The rules of all clusters that have declared any.
pub type AllStored = BTreeMap<ClusterId, Stored>;

/// What a cluster's rules are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    rules: List,
    trial: Option<TrialHead>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    id: Uuid,
    pieces: usize,
    mode: Mode,
    log_refused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrialHead {
    id: Uuid,
    rules: List,
    lasts: std::time::Duration,
    ends_at: Timestamp,
}

/// Rules as they were read, with what is needed to replace them.
#[derive(Debug, Clone)]
pub struct Stored {
    pub declared: Declared,
    found: Option<(Revision, Head)>,
}

fn head_key(cluster: ClusterId) -> Key {
    Key::from(format!("{HEADS}{cluster}"))
}

fn piece_key(list: Uuid, number: usize) -> Key {
    Key::from(format!("cluster-entries/{list}/{number:04}"))
}

// === impl Records ===

impl Records {
    /// The rules of a cluster; closed where nothing was declared.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn access(&self, cluster: ClusterId) -> Result<Stored, Error> {
        for _ in 0..ATTEMPTS {
            let Some(found) = self.directory().get::<Head>(&head_key(cluster)).await? else {
                return Ok(Stored { declared: Declared::closed(cluster), found: None });
            };
            // A list that is replaced while it is read is gone: then there is another head.
            if let Some(declared) = self.declared(cluster, &found.value).await? {
                return Ok(Stored { declared, found: Some((found.revision, found.value)) });
            }
        }
        Err(Error::AccessIncomplete(cluster))
    }

    /// Brings `known` up to date; only rules that have changed are read.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn read_access(&self, known: &mut AllStored) -> Result<(), Error> {
        let heads = self.heads().await?;
        known.retain(|cluster, _| heads.contains_key(cluster));
        for (cluster, head) in heads {
            if known.get(&cluster).is_none_or(|stored| stored.revision() != Some(head.revision)) {
                known.insert(cluster, self.access(cluster).await?);
            }
        }
        Ok(())
    }

    /// The clusters that have a trial which is over.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn trials_over(&self, now: Timestamp) -> Result<Vec<ClusterId>, Error> {
        let over = |head: &Head| head.trial.as_ref().is_some_and(|trial| trial.ends_at <= now);
        let heads = self.heads().await?.into_iter();
        Ok(heads.filter(|(_, head)| over(&head.value)).map(|(cluster, _)| cluster).collect())
    }

    async fn heads(&self) -> Result<BTreeMap<ClusterId, Record<Head>>, Error> {
        let records = self.directory().list::<Head>(HEADS).await?.into_iter();
        let cluster = |key: &Key| key.as_str().trim_start_matches(HEADS).parse().ok();
        Ok(records.filter_map(|record| Some((cluster(&record.key)?, record))).collect())
    }

    /// What must be removed together with a cluster.
    pub(super) async fn writes_of_no_access(&self, cluster: ClusterId) -> Result<Vec<Op>, Error> {
        let key = head_key(cluster);
        let Some(found) = self.directory().get::<Head>(&key).await? else { return Ok(Vec::new()) };
        let mut ops = vec![Op::delete(key)];
        ops.extend(found.value.lists().flat_map(List::removed));
        Ok(ops)
    }

    /// `None`: a piece is missing.
    async fn declared(&self, cluster: ClusterId, head: &Head) -> Result<Option<Declared>, Error> {
        let Head { rules, trial } = head;
        let Some(rules) = self.rules(rules).await? else { return Ok(None) };
        let Some(TrialHead { id, rules: tried, lasts, ends_at }) = trial else {
            return Ok(Some(Declared { cluster, rules, trial: None }));
        };
        let Some(tried) = self.rules(tried).await? else { return Ok(None) };
        let trial = Trial { id: *id, rules: tried, lasts: *lasts, ends_at: *ends_at };
        Ok(Some(Declared { cluster, rules, trial: Some(trial) }))
    }

    /// `None`: a piece is missing. A shorter list would shut people out.
    async fn rules(&self, list: &List) -> Result<Option<Rules>, Error> {
        let List { id, pieces, mode, log_refused } = list;
        let mut entries: Vec<Entry> = Vec::new();
        for number in 0..*pieces {
            match self.directory().get::<Vec<Entry>>(&piece_key(*id, number)).await? {
                Some(piece) => entries.extend(piece.value),
                None => return Ok(None),
            }
        }
        Rules::new(*mode, entries, *log_refused).map(Some).map_err(Error::Access)
    }
}

// === impl Stored ===

impl Stored {
    fn revision(&self) -> Option<Revision> {
        self.found.as_ref().map(|(revision, _)| *revision)
    }

    /// What to write to have these rules instead; refused by the compare if somebody else was first.
    ///
    /// # Errors
    /// Where they cannot be written down.
    pub fn replaced_by(&self, declared: &Declared) -> Result<(Compare, Vec<Op>), Error> {
        let Declared { cluster, rules, trial } = declared;
        let key = head_key(*cluster);
        let mut ops = Vec::new();
        let rules = self.list(rules, &mut ops)?;
        let trial = match trial {
            None => None,
            Some(Trial { id, rules, lasts, ends_at }) => Some(TrialHead {
                id: *id,
                rules: self.list(rules, &mut ops)?,
                lasts: *lasts,
                ends_at: *ends_at,
            }),
        };
        let head = Head { rules, trial };
        let kept: Vec<Uuid> = head.lists().map(|list| list.id).collect();
        let compare = match &self.found {
            None => Compare::absent(&key),
            Some((revision, old)) => {
                ops.extend(old.lists().filter(|list| !kept.contains(&list.id)).flat_map(List::removed));
                Compare::unchanged(&key, *revision)
            }
        };
        ops.push(put(&key, &head)?);
        Ok((compare, ops))
    }

    /// The list that has these rules: one that is stored, or a new one.
    fn list(&self, rules: &Rules, ops: &mut Vec<Op>) -> Result<List, Error> {
        if let Some((_, head)) = &self.found {
            let Declared { cluster: _, rules: kept, trial } = &self.declared;
            if kept == rules {
                return Ok(head.rules.clone());
            }
            if let (Some(trial), Some(stored)) = (trial, &head.trial)
                && trial.rules == *rules
            {
                return Ok(stored.rules.clone());
            }
        }
        let id = Uuid::now_v7();
        let pieces = rules.entries().chunks(PIECE);
        let list = List { id, pieces: pieces.len(), mode: rules.mode, log_refused: rules.log_refused };
        for (number, piece) in pieces.enumerate() {
            ops.push(put(&piece_key(id, number), &piece)?);
        }
        Ok(list)
    }
}

// === impl Head ===

impl Head {
    fn lists(&self) -> impl Iterator<Item = &List> {
        [&self.rules].into_iter().chain(self.trial.as_ref().map(|trial| &trial.rules))
    }
}

// === impl List ===

impl List {
    fn removed(&self) -> Vec<Op> {
        (0..self.pieces).map(|number| Op::delete(piece_key(self.id, number))).collect()
    }
}
