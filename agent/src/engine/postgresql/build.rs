//! Making a member's data: a new database, or a copy of another member's.
//!
//! ```text
//! marker: building ─► data.new made ─► marker: system identifier ─► data.new renamed to data ─► marker: ready
//! ```
//!
//! A repeat of the same command begins again what was cut before the rename, and finishes what was cut after it. Data of
//! another command are never touched.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_common::assignment::MemberAssignment;
use holdfast_common::budget::Budget;
use holdfast_common::command::{CloneMember, DatabaseName, InitialiseMember};
use holdfast_common::engine::EngineVersion;

use super::copying::{COPY_DEADLINE, Copying};
use super::layout::{Layout, Marker, Origin, State};
use super::render::{Place, REPLICATION_USER, SUPERUSER, identifier, literal};
use super::{Inner, control, parameters, process, sql_names, tuning};
use crate::engine::{Copied, Error, Work};
use crate::host::exec::{self, Program};
use crate::host::files::Access;

const INITDB_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// Reading a file.
const CONFIGURATION_DEADLINE: Duration = Duration::from_secs(60);
const SQL_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// The most that PostgreSQL takes, in MB.
const KEEP_ALL_LOG: &str = "wal_keep_size=2147483647";

/// Where a command finds the member's data.
enum Begun {
    /// This very command made them before.
    Done(Marker),
    Fresh(Marker),
}

pub(super) async fn initialise(
    inner: &Inner,
    request: &InitialiseMember,
    work: &Work,
) -> Result<String, Error> {
    sql_names::check("database", &request.database, sql_names::DATABASES)?;
    sql_names::check("user", &request.user, sql_names::USERS)?;
    let member = &request.member;
    let layout = inner.layout(member.cluster_id);
    let mut marker = match begin(inner, &layout, member, work, Origin::Initialised).await? {
        Begun::Done(marker) => return recorded(marker).map(|copied| copied.system_identifier),
        Begun::Fresh(marker) => marker,
    };
    work.say("making the database");
    initdb(inner, &layout, member, work).await?;
    work.say("making its users and extensions");
    let server =
        Server { inner, layout: &layout, data: layout.data_new(), version: &member.engine_version, work };
    server
        .run("postgres", &first_statements(member, &request.user, &request.password, &request.database))
        .await?;
    let extensions = extension_statements(member);
    if !extensions.is_empty() {
        server.run(request.database.as_str(), &extensions).await?;
    }
    marker.system_identifier = Some(identity(inner, &layout, Place::New).await?);
    finish(inner, &layout, member, marker, work).await.map(|copied| copied.system_identifier)
}

pub(super) async fn copy(inner: &Inner, request: &CloneMember, work: &Work) -> Result<Copied, Error> {
    let CloneMember { member, source } = request;
    if source.node_id == inner.settings.node_id {
        let message = "is this node itself; name another member".to_owned();
        return Err(Error::Field { field: "source".to_owned(), message });
    }
    let layout = inner.layout(member.cluster_id);
    let mut marker = match begin(inner, &layout, member, work, Origin::Cloned).await? {
        Begun::Done(marker) => return recorded(marker),
        Begun::Fresh(marker) => marker,
    };
    let Copied { system_identifier, bytes } =
        Copying { inner, layout: &layout, member, source, work }.run().await?;
    marker.system_identifier = Some(system_identifier);
    marker.copied_bytes = Some(bytes);
    finish(inner, &layout, member, marker, work).await
}

/// Looks at what is here, refuses what belongs to another command, and makes an empty `data.new`.
async fn begin(
    inner: &Inner,
    layout: &Layout,
    member: &MemberAssignment,
    work: &Work,
    origin: Origin,
) -> Result<Begun, Error> {
    work.check("make the member")?;
    parameters::check(&member.parameters)?;
    layout.check_socket()?;
    inner.require_installed(&member.engine_version).await?;
    let files = inner.host.files();
    let failed = |error| Error::failed("look at the member's folder", error);
    let marker = layout.read_marker(files, member.cluster_id).await?;
    let has_data = files.stat(layout.data()).await.map_err(failed)?.is_some();
    let has_new = files.stat(layout.data_new()).await.map_err(failed)?.is_some();
    match marker {
        None if has_data || has_new => {
            let why = format!("{} holds data that no command of this agent made", layout.root().display());
            return Err(Error::WouldDestroyData { why });
        }
        None => {}
        Some(marker) if marker.made_by == work.command && marker.state == State::Ready => {
            return Ok(Begun::Done(marker));
        }
        // Others' data, or such as a resync has begun to replace.
        Some(marker) if marker.made_by != work.command || marker.state != State::Building => {
            return Err(Error::Exists { cluster: member.cluster_id });
        }
        Some(marker) if has_data => return resume(inner, layout, member, marker, work).await,
        Some(_) => {}
    }
    if has_new {
        discard(inner, layout).await?;
    }
    let owner = inner.owner()?;
    let budget = inner.budget(member.cluster_id).await?;
    let marker = Marker::new(
        member.cluster_id,
        member.cluster_name.clone(),
        member.engine_version.clone(),
        work.command,
        origin,
        budget,
    );
    let failed = |error| Error::failed("make the member's folder", error);
    files.create_dir(&inner.settings.data_dir, Access::PUBLIC_DIR).await.map_err(failed)?;
    files.create_dir(layout.root(), Access::PUBLIC_DIR).await.map_err(failed)?;
    layout.write_marker(files, &marker).await?;
    layout.create(files, owner).await.map_err(failed)?;
    inner.write_configuration(member, &marker, Place::New).await?;
    files.create_dir(layout.data_new(), Access { mode: 0o700, owner }).await.map_err(failed)?;
    accept_configuration(inner, layout, member, work).await?;
    Ok(Begun::Fresh(marker))
}

/// Lets the server read its configuration, and no more, before anything is made: it alone knows its minor version and what
/// its texts mean.
async fn accept_configuration(
    inner: &Inner,
    layout: &Layout,
    member: &MemberAssignment,
    work: &Work,
) -> Result<(), Error> {
    let mut program = Program::new(inner.packages.program(&member.engine_version, "postgres"))
        .args(["-C", "config_file", "-D"])
        .arg(layout.data_new())
        .arg("-c")
        .arg(format!("config_file={}", layout.config_file().display()))
        .deadline(CONFIGURATION_DEADLINE);
    if let Some(owner) = inner.owner()? {
        program = program.owner(owner);
    }
    let read = inner.host.run(program, &work.cancelled).await;
    work.check("check the configuration")?;
    let Err(error) = read else { return Ok(()) };
    let refused = match &error {
        exec::Error::Exit { stderr, .. } => parameters::refused(&member.parameters, stderr),
        _ => None,
    };
    Err(refused.unwrap_or_else(|| Error::failed("check the configuration", error)))
}

/// The agent was killed between the rename and the marker: the data are complete if they are what the marker says.
async fn resume(
    inner: &Inner,
    layout: &Layout,
    member: &MemberAssignment,
    marker: Marker,
    work: &Work,
) -> Result<Begun, Error> {
    let found = identity(inner, layout, Place::Data).await.ok();
    if marker.system_identifier.is_none() || found != marker.system_identifier {
        let why = format!("{} are not the data that this command was making", layout.data().display());
        return Err(Error::WouldDestroyData { why });
    }
    finish_marker(inner, layout, member, marker.clone(), work).await?;
    Ok(Begun::Done(Marker { state: State::Ready, ..marker }))
}

/// Removes what a cut attempt of this command left, once none of its programs works in it any more.
pub(super) async fn discard(inner: &Inner, layout: &Layout) -> Result<(), Error> {
    process::wait_for_leftovers(&layout.data_new()).await?;
    let removed = inner.host.files().remove_tree(layout.data_new()).await;
    removed.map(drop).map_err(|error| Error::failed("remove the unfinished copy", error))
}

async fn finish(
    inner: &Inner,
    layout: &Layout,
    member: &MemberAssignment,
    marker: Marker,
    work: &Work,
) -> Result<Copied, Error> {
    work.check("make the member")?;
    let files = inner.host.files();
    process::refuse_users(&layout.data_new()).await?;
    layout.write_marker(files, &marker).await?;
    let failed = |error| Error::failed("put the new data in place", error);
    if files.stat(layout.data()).await.map_err(failed)?.is_some() {
        let why = format!("{} appeared while the data were made", layout.data().display());
        return Err(Error::WouldDestroyData { why });
    }
    files.rename(layout.data_new(), layout.data()).await.map_err(failed)?;
    finish_marker(inner, layout, member, marker.clone(), work).await?;
    recorded(marker)
}

async fn finish_marker(
    inner: &Inner,
    layout: &Layout,
    member: &MemberAssignment,
    marker: Marker,
    _work: &Work,
) -> Result<(), Error> {
    let marker = Marker { state: State::Ready, ..marker };
    inner.write_configuration(member, &marker, Place::Data).await?;
    layout.write_marker(inner.host.files(), &marker).await
}

fn recorded(marker: Marker) -> Result<Copied, Error> {
    let damaged = || Error::Damaged {
        what: "the member's marker".to_owned(),
        problem: "it names no system identifier".to_owned(),
    };
    let system_identifier = marker.system_identifier.ok_or_else(damaged)?;
    Ok(Copied { system_identifier, bytes: marker.copied_bytes.unwrap_or(0) })
}

/// The identity of data that no server runs on.
pub(super) async fn identity(inner: &Inner, layout: &Layout, place: Place) -> Result<String, Error> {
    let path = layout.place(place).join("global/pg_control");
    let bytes = inner.host.files().read(&path, control::MAX_BYTES).await;
    let bytes = bytes.map_err(|error| Error::failed("read the control file", error))?;
    let problem = "it is no control file of a known version".to_owned();
    control::system_identifier(&bytes)
        .ok_or_else(|| Error::Damaged { what: path.display().to_string(), problem })
}

async fn initdb(inner: &Inner, layout: &Layout, member: &MemberAssignment, work: &Work) -> Result<(), Error> {
    let mut program = Program::new(inner.packages.program(&member.engine_version, "initdb"))
        .args(["--username", SUPERUSER, "--auth-local=peer", "--auth-host=scram-sha-256"])
        .args(["--data-checksums", "--encoding=UTF8"])
        // Sorts by code point: the same on every release of the C library, so an index that was built on one member
        // is sound on another, and after an upgrade of the machine.
        .args(["--locale=C.UTF-8", "--no-instructions", "--pgdata"])
        .arg(layout.data_new())
        .directory(layout.data_new())
        .deadline(INITDB_DEADLINE);
    if let Some(owner) = inner.owner()? {
        program = program.owner(owner);
    }
    let ended = inner.host.run(program, &work.cancelled).await;
    work.check("make the database")?;
    ended.map(drop).map_err(|error| Error::failed("make the database", error))
}

/// The server as a program that reads statements: nobody can connect to it, and it cannot be left running.
pub(super) struct Server<'a> {
    pub(super) inner: &'a Inner,
    pub(super) layout: &'a Layout,
    /// On which nobody else works.
    pub(super) data: PathBuf,
    pub(super) version: &'a EngineVersion,
    pub(super) work: &'a Work,
}

impl Server<'_> {
    pub(super) async fn run(&self, database: &str, statements: &[String]) -> Result<(), Error> {
        let mut text = statements.join("\n");
        text.push('\n');
        let program = self.program()?.arg(database).stdin(text).deadline(SQL_DEADLINE);
        let ended = self.inner.host.run(program, &self.work.cancelled).await;
        self.work.check("set the database up")?;
        ended.map(drop).map_err(|error| Error::failed(format!("set up database {database}"), error))
    }

    /// What a server does at its start after a crash, and nothing else. It removes no log: a rewind needs it from the last
    /// checkpoint on that the primary has too.
    pub(super) async fn recover(&self, budget: Budget) -> Result<(), Error> {
        let memory = tuning::recovering(budget);
        let program =
            self.program()?.args(["-c", KEEP_ALL_LOG, "-c", &memory, "template1"]).stdin("\n".to_owned());
        let ended = self.inner.host.run(program.deadline(COPY_DEADLINE), &self.work.cancelled).await;
        self.work.check("recover")?;
        ended.map(drop).map_err(|error| Error::failed("recover from its crash", error))
    }

    fn program(&self) -> Result<Program, Error> {
        let Self { inner, layout, data, version, .. } = self;
        let mut program = Program::new(inner.packages.program(version, "postgres"))
            .args(["--single", "-D"])
            .arg(data)
            .arg("-c")
            .arg(format!("config_file={}", layout.config_file().display()))
            .args(["-c", "exit_on_error=on", "-c", "logging_collector=off", "-c", "log_statement=none"])
            // A statement with a verifier in it must not reach a log.
            .args(["-c", "log_min_error_statement=panic", "-c", "synchronous_standby_names="])
            // The operator's own would keep it from writing, or from finding a place to write.
            .args(["-c", "default_transaction_read_only=off", "-c", "search_path=public"]);
        if let Some(owner) = inner.owner()? {
            program = program.owner(owner);
        }
        Ok(program)
    }
}

/// One statement a line, as the single-user server reads them.
fn first_statements(
    member: &MemberAssignment,
    user: &DatabaseName,
    password: &holdfast_common::command::Verifier,
    database: &DatabaseName,
) -> Vec<String> {
    // Before version 16 a user with CREATEROLE can make itself a member of pg_execute_server_program, and so run any
    // program as the engine's user.
    let roles = if member.engine_version.number() >= 16 { "createrole" } else { "nocreaterole" };
    let mut statements = vec![
        format!("create role {} login replication", identifier(REPLICATION_USER)),
        format!(
            "create role {} login createdb {roles} password {}",
            identifier(user.as_str()),
            literal(password.as_str())
        ),
        format!("grant pg_monitor to {}", identifier(user.as_str())),
        rewinding_statement(),
        format!("create database {} owner {}", identifier(database.as_str()), identifier(user.as_str())),
    ];
    if member.engine_version.number() >= 15 {
        statements.push(format!("grant pg_checkpoint to {}", identifier(REPLICATION_USER)));
    }
    statements
}

/// What pg_rewind reads with: no more than whoever may copy the database has anyway.
fn rewinding_statement() -> String {
    let functions = [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ];
    let functions = functions.map(|function| format!("pg_catalog.{function}")).join(", ");
    format!("grant execute on function {functions} to {}", identifier(REPLICATION_USER))
}

fn extension_statements(member: &MemberAssignment) -> Vec<String> {
    let statement = |name: &str| format!("create extension if not exists {} cascade", identifier(name));
    member.extensions.iter().map(|extension| statement(extension.as_str())).collect()
}
