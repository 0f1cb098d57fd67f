//! The thread that reads: a connection of its own, so that nobody waits for a writer's disk.

use std::{path::Path, thread::JoinHandle};

use rusqlite::{Connection, params, types::ValueRef};
use tokio::sync::{mpsc, oneshot};

use super::{classify, schema, writer::spawn};
use crate::store::{Error, Event, Key, Kv, Listing, Range, Result, Revision, Status, watch::Page};

/// What the reader may be asked.
pub(super) enum Read {
    Get { key: Key, reply: oneshot::Sender<Result<Option<Kv>>> },
    Range { range: Range, reply: oneshot::Sender<Result<Listing>> },
    Events { prefix: String, from: Revision, reply: oneshot::Sender<Result<Page>> },
    Status { reply: oneshot::Sender<Result<Status>> },
}

pub(super) fn start(
    path: &Path,
    mut connection: Connection,
    mut orders: mpsc::Receiver<Read>,
) -> Result<JoinHandle<()>> {
    spawn(path, "store-reader", move || {
        while let Some(order) = orders.blocking_recv() {
            answer(&mut connection, order);
        }
    })
}

/// Whoever asked may have left meanwhile: then the answer is of no use to anybody.
fn answer(connection: &mut Connection, order: Read) {
    match order {
        Read::Get { key, reply } => {
            let _ = reply.send(schema::find(connection, &key).map_err(|error| classify("get", error)));
        }
        Read::Range { range, reply } => {
            let _ = reply.send(list(connection, &range).map_err(|error| classify("range", error)));
        }
        Read::Events { prefix, from, reply } => {
            let _ = reply.send(events(connection, &prefix, from));
        }
        Read::Status { reply } => {
            let _ = reply.send(status(connection).map_err(|error| classify("status", error)));
        }
    }
}

fn list(connection: &mut Connection, range: &Range) -> rusqlite::Result<Listing> {
    let Range { prefix, after, limit, descending } = range;
    // One snapshot for the records and the revision.
    let snapshot = connection.transaction()?;
    let after = after.as_ref().map_or("", Key::as_str);
    let sql = if *descending {
        "SELECT k, v, create_rev, mod_rev, ver, lease FROM kv
         WHERE k >= ?1 AND k < ?2 AND (?3 = '' OR k < ?3) ORDER BY k DESC LIMIT ?4"
    } else {
        "SELECT k, v, create_rev, mod_rev, ver, lease FROM kv
         WHERE k >= ?1 AND k < ?2 AND k > ?3 ORDER BY k LIMIT ?4"
    };
    let wanted = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let mut records = snapshot
        .prepare_cached(sql)?
        .query_map(params![prefix, Range::end(prefix), after, wanted], schema::record)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let more = records.len() > *limit;
    records.truncate(*limit);
    Ok(Listing { records, revision: schema::meta(&snapshot, "revision")?, more })
}

fn events(connection: &mut Connection, prefix: &str, from: Revision) -> Result<Page> {
    let page = read_events(connection, prefix, from).map_err(|error| classify("watch", error))?;
    page.map_err(|at| Error::Compacted { at })
}

/// The revision compacted up to, if that is too far.
fn read_events(
    connection: &mut Connection,
    prefix: &str,
    from: Revision,
) -> rusqlite::Result<Result<Page, Revision>> {
    let snapshot = connection.transaction()?;
    let compacted = schema::meta(&snapshot, "compacted")?;
    if from.max(Revision(1)) <= compacted {
        return Ok(Err(compacted));
    }
    let mut page = Page::new(from, schema::meta(&snapshot, "revision")?);
    let mut statement = snapshot.prepare_cached(
        "SELECT k, v, create_rev, rev, ver, lease FROM ev
         WHERE rev >= ?1 AND k >= ?2 AND k < ?3 ORDER BY rev, seq",
    )?;
    let mut rows = statement.query(params![from, prefix, Range::end(prefix)])?;
    while let Some(row) = rows.next()? {
        let revision = row.get(3)?;
        let event = match row.get_ref(1)? {
            ValueRef::Null => Event::Deleted { key: Key::from(row.get::<_, String>(0)?), mod_rev: revision },
            _ => Event::Put(schema::record(row)?),
        };
        if !page.push(revision, event) {
            break;
        }
    }
    Ok(Ok(page))
}

fn status(connection: &mut Connection) -> rusqlite::Result<Status> {
    let snapshot = connection.transaction()?;
    let count = |sql| snapshot.query_row(sql, [], |row| row.get::<_, Revision>(0));
    Ok(Status {
        revision: schema::meta(&snapshot, "revision")?,
        compacted: schema::meta(&snapshot, "compacted")?,
        records: count("SELECT count(*) FROM kv")?.0,
        events: count("SELECT count(*) FROM ev")?.0,
    })
}
