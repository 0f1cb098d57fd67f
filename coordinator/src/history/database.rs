//! The rollups' own file, `history.db`: a row for each node and ten minutes. Blocking: called only where that is allowed.
//!
//! Nothing else depends on the file. One that is damaged is set aside under another name and a new one begun.

use std::fs::{OpenOptions, Permissions};
use std::ops::Range;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_common::id::NodeId;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};

use super::rollup::Block;

const SCHEMA: i64 = 1;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "`{path}` has schema {found}, which is newer than this coordinator knows ({SCHEMA}); upgrade the coordinator or move the file away"
    )]
    Newer { path: PathBuf, found: i64 },
    #[error("cannot set the damaged `{path}` aside")]
    Aside { path: PathBuf, source: std::io::Error },
    #[error("cannot make `{path}`")]
    Make { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
}

// === impl Error ===

impl Error {
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Sqlite(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull))
    }

    fn is_damaged(&self) -> bool {
        let damaged = [ErrorCode::NotADatabase, ErrorCode::DatabaseCorrupt];
        matches!(self, Self::Sqlite(error) if error.sqlite_error_code().is_some_and(|code| damaged.contains(&code)))
    }
}

// === impl Database ===

impl Database {
    /// Opens or makes the file. `now_seconds` names what is set aside.
    pub(super) fn open(path: &Path, now_seconds: i64) -> Result<Self, Error> {
        match Self::open_once(path) {
            Err(error) if error.is_damaged() => {
                let aside = path.with_extension(format!("db.damaged-{now_seconds}"));
                tracing::error!(path = %path.display(), aside = %aside.display(), %error, "rollups damaged; set aside, beginning anew");
                std::fs::rename(path, &aside)
                    .map_err(|source| Error::Aside { path: path.to_owned(), source })?;
                for suffix in ["db-wal", "db-shm"] {
                    // They belong to the old file; a new one must not be opened with them.
                    let _ = std::fs::rename(
                        path.with_extension(suffix),
                        aside.with_extension(format!("{now_seconds}-{suffix}")),
                    );
                }
                Self::open_once(path)
            }
            opened => opened,
        }
    }

    fn open_once(path: &Path) -> Result<Self, Error> {
        // SQLite gives its other files the mode of this one, so it is made before SQLite could make it.
        let owner_only = || {
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
            std::fs::set_permissions(path, Permissions::from_mode(0o600))
        };
        owner_only().map_err(|source| Error::Make { path: path.to_owned(), source })?;
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found > SCHEMA {
            return Err(Error::Newer { path: path.to_owned(), found });
        }
        connection.execute_batch(
            "PRAGMA auto_vacuum = INCREMENTAL;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL;
             PRAGMA cache_size = -2048;
             PRAGMA journal_size_limit = 16777216;",
        )?;
        if found < SCHEMA {
            connection.execute_batch(
                "BEGIN;
                 CREATE TABLE IF NOT EXISTS blocks (
                     node BLOB NOT NULL, start_ms INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (node, start_ms)
                 ) WITHOUT ROWID, STRICT;
                 PRAGMA user_version = 1;
                 COMMIT;",
            )?;
        }
        Ok(Self { connection })
    }

    /// Adds the blocks, each to what is there of the same ten minutes; all or none.
    pub(super) fn add(&mut self, blocks: &[(NodeId, i64, Block)]) -> Result<(), Error> {
        let transaction = self.connection.transaction()?;
        {
            let mut select =
                transaction.prepare_cached("SELECT data FROM blocks WHERE node = ? AND start_ms = ?")?;
            let mut insert = transaction
                .prepare_cached("INSERT OR REPLACE INTO blocks (node, start_ms, data) VALUES (?, ?, ?)")?;
            for (node, start_ms, block) in blocks {
                let id = node.as_uuid().as_bytes();
                let before: Option<Vec<u8>> =
                    select.query_row(params![id, start_ms], |row| row.get(0)).optional()?;
                let encoded = match before.map(|bytes| Block::decode(&bytes)) {
                    Some(Ok(mut whole)) => {
                        whole.merge(block.clone());
                        whole.encode()
                    }
                    Some(Err(_)) | None => block.encode(),
                };
                insert.execute(params![id, start_ms, encoded])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Hands over the node's blocks whose start lies in the span, oldest first. Damaged ones are left out.
    pub(super) fn read<E: From<Error>>(
        &self,
        node: NodeId,
        starts: &Range<i64>,
        mut take: impl FnMut(i64, Block) -> Result<(), E>,
    ) -> Result<(), E> {
        let read = |error: rusqlite::Error| E::from(Error::from(error));
        let mut select = self
            .connection
            .prepare_cached("SELECT start_ms, data FROM blocks WHERE node = ? AND start_ms >= ? AND start_ms < ? ORDER BY start_ms")
            .map_err(read)?;
        let mut rows =
            select.query(params![node.as_uuid().as_bytes(), starts.start, starts.end]).map_err(read)?;
        while let Some(row) = rows.next().map_err(read)? {
            let (start, data): (i64, Vec<u8>) = (row.get(0).map_err(read)?, row.get(1).map_err(read)?);
            match Block::decode(&data) {
                Ok(block) => take(start, block)?,
                Err(error) => tracing::warn!(%node, start, %error, "ten minutes of rollups left out"),
            }
        }
        Ok(())
    }

    /// Whether anything is kept of the node with a start in the span.
    pub(super) fn has(&self, node: NodeId, starts: &Range<i64>) -> Result<bool, Error> {
        let mut select = self.connection.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM blocks WHERE node = ? AND start_ms >= ? AND start_ms < ?)",
        )?;
        Ok(select
            .query_row(params![node.as_uuid().as_bytes(), starts.start, starts.end], |row| row.get(0))?)
    }

    pub(super) fn forget(&self, node: NodeId) -> Result<(), Error> {
        self.connection.execute("DELETE FROM blocks WHERE node = ?", params![node.as_uuid().as_bytes()])?;
        Ok(())
    }

    /// Deletes what starts before, and gives some room back to the file system.
    pub(super) fn prune(&self, before_ms: i64) -> Result<(), Error> {
        self.connection.execute("DELETE FROM blocks WHERE start_ms < ?", params![before_ms])?;
        self.connection.execute_batch("PRAGMA incremental_vacuum(2000)")?;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: u32) {
        self.connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
    }

    #[cfg(test)]
    pub(super) fn pages(&self) -> u32 {
        self.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap()
    }
}
