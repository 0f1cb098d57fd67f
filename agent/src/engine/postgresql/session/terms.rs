//! Becoming primary, and the terms that are written in the data.

use std::sync::PoisonError;

use holdfast_common::id::NodeId;
use holdfast_common::term::Term;
use tokio_postgres::SimpleQueryMessage;

use super::super::render::{self, SUPERUSER};
use super::{NoAnswer, Session, bounded, unsigned};

const BEFORE_LEADING: &str = "
select pg_is_in_recovery(), current_setting('synchronous_standby_names') <> '', to_regclass('holdfast.terms') is not null";
const HAS_TERMS: &str = "select to_regclass('holdfast.terms') is not null";
const NEWEST_TERM: &str = "select term, timeline from holdfast.terms order by term desc limit 1";
/// Of a new database.
const FIRST_TIMELINE: u64 = 1;
/// How many terms are remembered in the data, counted from the newest.
const KEPT_TERMS: u64 = 1000;

/// What matters of a server that is to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::postgresql) struct BeforeLeading {
    pub(in crate::engine::postgresql) is_replica: bool,
    /// Its commits wait for somebody, be it for nobody there is.
    pub(in crate::engine::postgresql) waits: bool,
    has_terms: bool,
}

impl Session {
    pub(in crate::engine::postgresql) async fn before_leading(&self) -> Result<BeforeLeading, NoAnswer> {
        bounded(async {
            let row = self.client.query_one(BEFORE_LEADING, &[]).await?;
            Ok(BeforeLeading {
                is_replica: row.try_get(0)?,
                waits: row.try_get(1)?,
                has_terms: row.try_get(2)?,
            })
        })
        .await
    }

    pub(in crate::engine::postgresql) async fn is_replica(&self) -> Result<bool, NoAnswer> {
        bounded(async { Ok(self.client.query_one("select pg_is_in_recovery()", &[]).await?.try_get(0)?) })
            .await
    }

    /// Asks a replica to leave recovery; it takes a moment.
    pub(in crate::engine::postgresql) async fn promote(&self) -> Result<(), NoAnswer> {
        bounded(async { Ok(self.client.batch_execute("select pg_promote(false)").await?) }).await
    }

    /// Writes into a primary's data that a term began; not again where it is there. It waits for no replica: its gate is
    /// shut until enough of them have this too.
    pub(in crate::engine::postgresql) async fn begin_term(
        &self,
        term: Term,
        node: NodeId,
        before: BeforeLeading,
    ) -> Result<(), NoAnswer> {
        let table = if before.has_terms { String::new() } else { table() };
        let statements = format!(
            "begin; set local synchronous_commit = local;
             {table}
             insert into holdfast.terms
                 select {term}, ('x' || lpad(substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8), 16, '0'))::bit(64)::int8,
                        {node}, clock_timestamp()
                 on conflict do nothing;
             delete from holdfast.terms where term < (select max(term) from holdfast.terms) - {KEPT_TERMS};
             commit;
             {NEWEST_TERM}",
            node = render::literal(&node.to_string()),
        );
        self.keep_term(None);
        let said = bounded(async { Ok(self.client.simple_query(&statements).await?) }).await?;
        let row = said.iter().find_map(|said| match said {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let number = |at| row?.get(at)?.parse::<u64>().ok();
        self.keep_term(number(0).map(Term::new).zip(number(1)));
        Ok(())
    }

    /// The newest term that is written in the data, and its timeline.
    pub(in crate::engine::postgresql) async fn term(&self) -> Result<(Term, u64), NoAnswer> {
        bounded(self.newest_term()).await
    }

    /// The same of a primary, which begins others only here.
    pub(super) async fn own_term(&self) -> Result<(Term, u64), NoAnswer> {
        let term = self.newest_term().await?;
        self.keep_term(Some(term));
        Ok(term)
    }

    async fn newest_term(&self) -> Result<(Term, u64), NoAnswer> {
        if let Some(known) = *self.term.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(known);
        }
        let has_terms: bool = self.client.query_one(HAS_TERMS, &[]).await?.try_get(0)?;
        let found = if has_terms { self.client.query_opt(NEWEST_TERM, &[]).await? } else { None };
        let Some(row) = found else { return Ok((Term::NONE, FIRST_TIMELINE)) };
        let (term, timeline): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        Ok((Term::new(unsigned(term).unwrap_or_default()), unsigned(timeline).unwrap_or(FIRST_TIMELINE)))
    }

    fn keep_term(&self, term: Option<(Term, u64)>) {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner) = term;
    }
}

fn table() -> String {
    format!(
        "create schema if not exists holdfast authorization {SUPERUSER};
         create table if not exists holdfast.terms (
             term int8 primary key, timeline int8 not null, node uuid not null, began timestamptz not null);"
    )
}
