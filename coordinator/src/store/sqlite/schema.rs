//! Opening the database: lock, file modes, tables, versions.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, ToSql,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};

use super::classify;
use crate::store::{Error, Key, Kv, LeaseId, Result, Revision};

/// "Hold", so that `file` knows the database for ours.
const APPLICATION_ID: i64 = 0x486f_6c64;
const SCHEMA: i64 = 1;
/// How long a statement waits for somebody who reads the database with another program.
const BUSY: Duration = Duration::from_secs(5);

const TABLES: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('revision', 0), ('compacted', 0);
    CREATE TABLE kv (
        k TEXT PRIMARY KEY, v BLOB NOT NULL, create_rev INTEGER NOT NULL, mod_rev INTEGER NOT NULL,
        ver INTEGER NOT NULL, lease INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX kv_lease ON kv (lease) WHERE lease IS NOT NULL;
    CREATE TABLE ev (
        rev INTEGER NOT NULL, seq INTEGER NOT NULL, k TEXT NOT NULL, v BLOB, create_rev INTEGER, ver INTEGER,
        lease INTEGER, PRIMARY KEY (rev, seq)
    ) STRICT, WITHOUT ROWID;
";

/// An open database, and where it stands.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) connection: Connection,
    pub(super) revision: Revision,
    pub(super) events: u64,
    pub(super) bytes: u64,
}

/// Claims the database for this process.
pub(super) fn lock(database: &Path) -> Result<Flock<File>> {
    let path = beside(database, ".lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = open.map_err(|source| Error::Open { path, source: source.into() })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::InUse { path: database.to_owned() },
        other => Error::Open { path: database.to_owned(), source: io::Error::from(other).into() },
    })
}

/// Opens the database for writing, making it if it is not there.
pub(super) fn open(path: &Path) -> Result<Database> {
    // SQLite gives its other files the mode of this one, so it is made before SQLite could make it.
    let owner_only = || {
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))
    };
    owner_only().map_err(|source| Error::Open { path: path.to_owned(), source: source.into() })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| failed(path, error))?;
    prepare(&connection).map_err(|error| failed(path, error))?;
    let found = pragma(&connection, "user_version").map_err(|error| failed(path, error))?;
    match found {
        0 => create(&connection).map_err(|error| failed(path, error))?,
        SCHEMA => {}
        found => return Err(Error::Schema { path: path.to_owned(), found, known: SCHEMA }),
    }
    measure(connection).map_err(|error| failed(path, error))
}

/// Opens the database for reading, after [`open`].
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    };
    open().map_err(|error| failed(path, error))
}

pub(super) fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Revision> {
    connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?.query_row([name], |row| row.get(0))
}

pub(super) fn find(connection: &Connection, key: &Key) -> rusqlite::Result<Option<Kv>> {
    connection
        .prepare_cached("SELECT k, v, create_rev, mod_rev, ver, lease FROM kv WHERE k = ?1")?
        .query_row([key.as_str()], record)
        .optional()
}

/// A row of (k, v, create_rev, mod_rev, ver, lease).
pub(super) fn record(row: &rusqlite::Row<'_>) -> rusqlite::Result<Kv> {
    Ok(Kv {
        key: Key::from(row.get::<_, String>(0)?),
        value: row.get(1)?,
        create_rev: row.get(2)?,
        mod_rev: row.get(3)?,
        version: row.get::<_, Revision>(4)?.0,
        lease: row.get(5)?,
    })
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA}; COMMIT;"
    ))
}

fn measure(connection: Connection) -> rusqlite::Result<Database> {
    let revision = meta(&connection, "revision")?;
    let count = "SELECT count(*), coalesce(sum(length(v)), 0) FROM ev";
    let (events, bytes) = connection
        .query_row(count, [], |row| Ok((row.get::<_, Revision>(0)?.0, row.get::<_, Revision>(1)?.0)))?;
    Ok(Database { connection, revision, events, bytes })
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn failed(path: &Path, error: rusqlite::Error) -> Error {
    match classify("open", error) {
        Error::Unavailable { source, .. } => Error::Open { path: path.to_owned(), source },
        other => other,
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

// === impl Revision, LeaseId ===

impl ToSql for Revision {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        signed(self.0)
    }
}

impl FromSql for Revision {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        unsigned(value).map(Self)
    }
}

impl ToSql for LeaseId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        signed(self.0)
    }
}

impl FromSql for LeaseId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        unsigned(value).map(Self)
    }
}

fn signed(number: u64) -> rusqlite::Result<ToSqlOutput<'static>> {
    let number =
        i64::try_from(number).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    Ok(number.into())
}

fn unsigned(value: ValueRef<'_>) -> FromSqlResult<u64> {
    let number = value.as_i64()?;
    u64::try_from(number).map_err(|_| FromSqlError::OutOfRange(number))
}
