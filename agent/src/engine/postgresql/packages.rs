//! Which versions and extensions the node has, or could install from Debian's packages.

mod apt;
mod upgrade;

use std::path::{Path, PathBuf};

use holdfast_common::engine::{Engine as Kind, EngineVersion, ExtensionName};
use holdfast_common::telemetry::{EngineAvailability, EngineOffer};
use tokio_util::sync::CancellationToken;

use self::apt::Apt;
use crate::engine::{Error, Work};
use crate::host::Host;
use crate::host::exec::Program;
use crate::host::files::Kind as FileKind;

/// The major versions that this driver knows.
const VERSIONS: std::ops::RangeInclusive<u32> = 14..=18;
/// Where Debian puts the engine's programs: `<root>/<version>/bin`.
pub const DEBIAN_PROGRAMS: &str = "/usr/lib/postgresql";
/// Where it says of each extension that it is there.
const DEBIAN_EXTENSIONS: &str = "/usr/share/postgresql";
/// Folders outside of the agent's own that an installation writes to. A host that installs needs them as roots.
pub const SYSTEM_FOLDERS: &[&str] = &["/etc/postgresql-common", "/usr/sbin"];

/// Extensions that are not part of the server's own package: their package (`{}` is the version), and the library that
/// must be loaded at start.
const EXTENSIONS: &[(&str, &str, Option<&str>)] = &[
    ("hll", "postgresql-{}-hll", None),
    ("hypopg", "postgresql-{}-hypopg", None),
    ("ip4r", "postgresql-{}-ip4r", None),
    ("orafce", "postgresql-{}-orafce", None),
    ("pg_cron", "postgresql-{}-cron", Some("pg_cron")),
    ("pg_partman", "postgresql-{}-partman", None),
    ("pg_qualstats", "postgresql-{}-pg-qualstats", Some("pg_qualstats")),
    ("pg_repack", "postgresql-{}-repack", None),
    ("pg_similarity", "postgresql-{}-similarity", None),
    ("pg_stat_kcache", "postgresql-{}-pg-stat-kcache", Some("pg_stat_kcache")),
    ("pg_track_settings", "postgresql-{}-pg-track-settings", None),
    ("pg_wait_sampling", "postgresql-{}-pg-wait-sampling", Some("pg_wait_sampling")),
    ("pgaudit", "postgresql-{}-pgaudit", Some("pgaudit")),
    ("pgrouting", "postgresql-{}-pgrouting", None),
    ("pgtap", "postgresql-{}-pgtap", None),
    ("plpython3u", "postgresql-plpython3-{}", None),
    ("plperl", "postgresql-plperl-{}", None),
    ("plpgsql_check", "postgresql-{}-plpgsql-check", None),
    ("pltcl", "postgresql-pltcl-{}", None),
    ("postgis", "postgresql-{}-postgis-3", None),
    ("postgis_raster", "postgresql-{}-postgis-3", None),
    ("postgis_topology", "postgresql-{}-postgis-3", None),
    ("rum", "postgresql-{}-rum", None),
    ("timescaledb", "postgresql-{}-timescaledb", Some("timescaledb")),
    ("vector", "postgresql-{}-pgvector", None),
];
/// Extensions of the server's own package whose library must be loaded at start.
const CONTRIB_PRELOADS: &[(&str, &str)] =
    &[("pg_stat_statements", "pg_stat_statements"), ("pg_prewarm", "pg_prewarm")];

/// The engine's programs and packages on this node.
#[derive(Debug, Clone)]
pub(super) struct Packages {
    host: Host,
    apt: Apt,
    programs: PathBuf,
}

/// An extension on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Extension {
    Installed,
    Installable { package: String },
    Missing { why: String },
}

/// The libraries that must be loaded at start for these extensions.
pub(super) fn preloads(extensions: &[ExtensionName]) -> Vec<&'static str> {
    let wanted = |name: &str| extensions.iter().any(|extension| extension.as_str() == name);
    let mut found: Vec<&'static str> =
        CONTRIB_PRELOADS.iter().filter(|(name, _)| wanted(name)).map(|(_, library)| *library).collect();
    found
        .extend(EXTENSIONS.iter().filter(|(name, _, _)| wanted(name)).filter_map(|(_, _, library)| *library));
    // TimescaleDB asks to be the first; pg_stat_kcache needs pg_stat_statements before it.
    found.sort_by_key(|library| (*library != "timescaledb", *library != "pg_stat_statements", *library));
    found.dedup();
    found
}

fn package_of(extension: &ExtensionName, version: &EngineVersion) -> Option<String> {
    let (_, pattern, _) = EXTENSIONS.iter().find(|(name, _, _)| *name == extension.as_str())?;
    Some(pattern.replace("{}", version.as_str()))
}

// === impl Packages ===

impl Packages {
    pub(super) fn new(host: Host, programs: PathBuf) -> Self {
        Self { apt: Apt::new(host.clone()), host, programs }
    }

    /// A program of the engine.
    pub(super) fn program(&self, version: &EngineVersion, name: &str) -> PathBuf {
        self.programs.join(version.as_str()).join("bin").join(name)
    }

    /// The versions that are installed, the newest first.
    pub(super) async fn installed(&self) -> Result<Vec<EngineVersion>, Error> {
        let entries = match self.host.files().list(&self.programs).await {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            other => other.map_err(|error| Error::failed("list the installed versions", error))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let Some(version) = entry.name.to_str().and_then(|name| name.parse::<EngineVersion>().ok())
            else {
                continue;
            };
            if VERSIONS.contains(&version.number()) && self.is_installed(&version).await? {
                found.push(version);
            }
        }
        found.sort_by_key(|version| std::cmp::Reverse(version.number()));
        Ok(found)
    }

    pub(super) async fn is_installed(&self, version: &EngineVersion) -> Result<bool, Error> {
        for name in ["postgres", "initdb", "pg_basebackup", "pg_controldata"] {
            let stat = self.host.files().stat(self.program(version, name)).await;
            let stat = stat.map_err(|error| Error::failed("look for the engine's programs", error))?;
            if stat.is_none_or(|stat| stat.kind == FileKind::Directory) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The minor version that is installed, such as `15.14`.
    pub(super) async fn full_version(&self, version: &EngineVersion) -> Result<String, Error> {
        let build = self.build(version).await?;
        Ok(build.split_whitespace().next().unwrap_or_default().to_owned())
    }

    /// As a server that is started now says of itself: `15.14 (Debian 15.14-0+deb12u1)`.
    pub(super) async fn build(&self, version: &EngineVersion) -> Result<String, Error> {
        let program = Program::new(self.program(version, "postgres")).arg("--version");
        let output = self.host.run(program, &CancellationToken::new()).await;
        let text =
            output.map_err(|error| Error::failed("ask the engine for its version", error))?.stdout.text();
        match text.trim().strip_prefix("postgres (PostgreSQL) ") {
            Some(build) if !build.is_empty() => Ok(build.to_owned()),
            _ => Err(Error::Wrong { deed: "ask the engine for its version".to_owned(), problem: text }),
        }
    }

    pub(super) fn may_install(&self) -> bool {
        self.apt.may_install()
    }

    /// The versions that the package manager offers with the version it would install, the newest first.
    pub(super) async fn installable(&self) -> Result<Vec<(EngineVersion, String)>, Error> {
        if !self.may_install() {
            return Ok(Vec::new());
        }
        let names: Vec<String> = VERSIONS.rev().map(|version| format!("postgresql-{version}")).collect();
        let offered = self.apt.candidates(&names).await?;
        let version_of = |package: &str| package.strip_prefix("postgresql-")?.parse::<EngineVersion>().ok();
        let found = offered.into_iter().filter_map(|(package, candidate)| {
            let candidate = candidate.split(['-', '+', '~']).next().unwrap_or_default().to_owned();
            Some((version_of(&package)?, candidate))
        });
        Ok(found.collect())
    }

    /// What the node has or could install. A new machine may never have read its package sources: that is done now.
    pub(super) async fn offers(&self) -> Result<Vec<EngineOffer>, Error> {
        let offer = |version, availability| EngineOffer {
            engine: Kind::Postgresql.to_string(),
            version,
            availability,
        };
        let installed = self.installed().await?;
        let mut found = Vec::new();
        for version in &installed {
            found.push(offer(self.full_version(version).await?, EngineAvailability::Installed));
        }
        // A node without a package manager can still run what it has.
        let mut installable = self.installable().await.unwrap_or_default();
        if installed.is_empty() && installable.is_empty() && self.apt.fetch_missing_lists().await {
            installable = self.installable().await.unwrap_or_default();
        }
        for (version, candidate) in installable {
            if !installed.contains(&version) {
                found.push(offer(candidate, EngineAvailability::Installable));
            }
        }
        Ok(found)
    }

    pub(super) async fn extension(
        &self,
        name: &ExtensionName,
        version: &EngineVersion,
    ) -> Result<Extension, Error> {
        let control = format!("{DEBIAN_EXTENSIONS}/{version}/extension/{name}.control");
        let stat = self.host.files().stat(Path::new(&control)).await;
        if stat.map_err(|error| Error::failed("look for an extension", error))?.is_some() {
            return Ok(Extension::Installed);
        }
        let Some(package) = package_of(name, version) else {
            // The server's own package, which is not there yet, may bring it; only the list above names others.
            let why = if self.is_installed(version).await? {
                format!(
                    "`{name}` is neither part of PostgreSQL {version} nor known to Holdfast; leave it out"
                )
            } else {
                return Ok(Extension::Installable { package: format!("postgresql-{version}") });
            };
            return Ok(Extension::Missing { why });
        };
        if !self.may_install() {
            let why =
                format!("`{name}` needs package {package}, and the agent is not root: install it by hand");
            return Ok(Extension::Missing { why });
        }
        if self.apt.candidates(std::slice::from_ref(&package)).await?.is_empty() {
            let why =
                format!("`{name}` needs package {package}, which no package source of the node has; add one");
            return Ok(Extension::Missing { why });
        }
        Ok(Extension::Installable { package })
    }

    /// Gives the machine back what an installation that was cut has changed of it.
    pub(super) async fn recover(&self) -> Result<(), Error> {
        self.apt.restore_policy().await
    }

    /// Installs the version and the extensions where they are missing, and returns the minor version.
    pub(super) async fn install(
        &self,
        version: &EngineVersion,
        extensions: &[ExtensionName],
        work: &Work,
    ) -> Result<String, Error> {
        let mut packages = Vec::new();
        if !self.is_installed(version).await? {
            packages.push(format!("postgresql-{version}"));
        }
        for name in extensions {
            match self.extension(name, version).await? {
                Extension::Installed => {}
                Extension::Installable { package } => packages.push(package),
                Extension::Missing { why } => return Err(Error::Unmet { check: "extensions", message: why }),
            }
        }
        packages.sort();
        packages.dedup();
        if !packages.is_empty() {
            self.apt.install(&packages, work).await?;
        }
        if !self.is_installed(version).await? {
            let problem = format!("PostgreSQL {version} is still missing after the installation");
            return Err(Error::Wrong { deed: "install packages".to_owned(), problem });
        }
        self.full_version(version).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<ExtensionName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn libraries_are_loaded_in_the_order_that_they_ask_for() {
        let wanted = names(&["pg_stat_kcache", "hstore", "pg_stat_statements", "timescaledb", "pgaudit"]);
        assert_eq!(preloads(&wanted), ["timescaledb", "pg_stat_statements", "pg_stat_kcache", "pgaudit"]);
        assert!(preloads(&names(&["hstore", "vector"])).is_empty());
    }

    #[test]
    fn a_package_name_comes_only_from_the_list() {
        let version: EngineVersion = "15".parse().unwrap();
        assert_eq!(package_of(&names(&["vector"])[0], &version).as_deref(), Some("postgresql-15-pgvector"));
        assert_eq!(package_of(&names(&["server-dev"])[0], &version), None);
    }
}
