//! Makes a coordinator's state directory: authority, master key, store, the first operator, and that operator's context
//! file. All of it or nothing: it is built beside its place and renamed into it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_common::config::{FileError, write_private};
use holdfast_common::context::{self, Context, ContextFile};
use holdfast_common::error::Failure;
use holdfast_common::id::FleetId;
use holdfast_common::logging;
use holdfast_common::pki::{Authority, AuthorityError, MasterKey};
use jiff::Timestamp;

use crate::config::{Config, Endpoint, Host, Limits, StateDir};
use crate::directory::{self, Directory, OperatorRole};
use crate::identity::{NewOperator, OperatorCredentials};
use crate::store::{self, sqlite::Sqlite};

/// The first operator.
const ADMIN: &str = "admin";
/// How long the first operator's certificate lives.
const ADMIN_FOR: Duration = Duration::from_secs(366 * 24 * 3600);
/// The name of the context that is made.
const CONTEXT: &str = "default";

/// What the directory is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub state: StateDir,
    pub operators: SocketAddr,
    pub agents: SocketAddr,
    pub advertise: Vec<Endpoint>,
    pub context_file: PathBuf,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub fleet: FleetId,
    pub operator: &'static str,
    pub context_file: PathBuf,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} exists and is not empty; a fleet's state is never overwritten: run `holdfast-coordinator run`, or choose another directory", .path.display())]
    StateExists { path: PathBuf },
    #[error("{} exists; choose another with --context-file, or move it away", .path.display())]
    ContextExists { path: PathBuf },
    #[error("make {}", .path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Context(#[from] context::Error),
    #[error("make the certificate authority")]
    Authority(#[from] AuthorityError),
    #[error("render the configuration")]
    Render(#[from] toml::ser::Error),
    #[error("make the store")]
    Store(#[from] store::Error),
    #[error("write the first records")]
    Directory(#[from] directory::Error),
    #[error("issue the first operator's certificate")]
    Operator(#[source] Failure),
}

/// Makes everything, or nothing.
///
/// # Errors
/// See [`Error`]; there is then nothing new.
pub async fn init(options: &Options) -> Result<Made, Error> {
    let Options { state, context_file, .. } = options;
    refuse_existing(state.path(), context_file)?;
    let beside = beside(state.path());
    let made = build(options, &StateDir::new(&beside)).await;
    let (fleet, context) = match made {
        Ok(made) => made,
        Err(error) => {
            discard(&beside);
            return Err(error);
        }
    };
    if let Err(error) = publish(state.path(), &beside, context_file, &context) {
        discard(&beside);
        return Err(error);
    }
    Ok(Made { fleet, operator: ADMIN, context_file: context_file.clone() })
}

fn refuse_existing(state: &Path, context_file: &Path) -> Result<(), Error> {
    let occupied = match fs::read_dir(state) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(source) => return Err(Error::Make { path: state.to_owned(), source }),
    };
    if occupied {
        return Err(Error::StateExists { path: state.to_owned() });
    }
    if fs::symlink_metadata(context_file).is_ok() {
        return Err(Error::ContextExists { path: context_file.to_owned() });
    }
    Ok(())
}

fn beside(state: &Path) -> PathBuf {
    let mut name = state.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".init-{}", std::process::id()));
    state.with_file_name(name)
}

fn discard(beside: &Path) {
    if let Err(error) = fs::remove_dir_all(beside)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %beside.display(), %error, "what was begun could not be removed");
    }
}

async fn build(options: &Options, state: &StateDir) -> Result<(FleetId, ContextFile), Error> {
    let Options { operators, agents, advertise, .. } = options;
    if let Some(parent) = state.path().parent() {
        fs::create_dir_all(parent).map_err(|source| Error::Make { path: parent.to_owned(), source })?;
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(state.path())
        .map_err(|source| Error::Make { path: state.path().to_owned(), source })?;
    let fleet = FleetId::generate();
    let authority = Authority::create(fleet, Timestamp::now())?;
    let config = Config {
        operators: *operators,
        agents: *agents,
        advertise: advertise.clone(),
        limits: Limits::default(),
        logging: logging::Settings::default(),
    };
    write_private(&state.authority_certificate(), authority.certificate_pem().as_bytes())?;
    write_private(&state.authority_key(), authority.key_pem().as_bytes())?;
    write_private(&state.master_key(), MasterKey::generate().to_text().as_bytes())?;
    write_private(&state.config(), toml::to_string(&config)?.as_bytes())?;
    let credentials = first_operator(&authority, state).await?;
    let OperatorCredentials { certificate_chain, private_key } = credentials;
    let context = Context {
        server: reached_at(*operators, advertise),
        trust_bundle: authority.certificate_pem(),
        certificate: Some(certificate_chain),
        key: Some(private_key.as_str().into()),
    };
    let file = ContextFile { current: CONTEXT.to_owned(), contexts: [(CONTEXT.to_owned(), context)].into() };
    Ok((fleet, file))
}

async fn first_operator(authority: &Authority, state: &StateDir) -> Result<OperatorCredentials, Error> {
    let name = ADMIN.parse().expect("the first operator's name is a name");
    let admin = NewOperator { name, role: OperatorRole::Admin, ttl: ADMIN_FOR };
    let (record, credentials) = admin.issue(authority).map_err(Error::Operator)?;
    let sqlite = Sqlite::open(state.store())?;
    let directory = Directory::new(std::sync::Arc::new(sqlite));
    directory.create(&directory::operator_key(&record.name), &record).await?;
    Ok(credentials)
}

/// Both appear, or neither.
fn publish(state: &Path, beside: &Path, context_file: &Path, context: &ContextFile) -> Result<(), Error> {
    context.save(context_file)?;
    // Over an empty directory this works, over any other it does not: also if one was made meanwhile.
    let renamed = fs::rename(beside, state).map_err(|source| Error::Make { path: state.to_owned(), source });
    if renamed.is_err()
        && let Err(error) = fs::remove_file(context_file)
    {
        tracing::warn!(path = %context_file.display(), %error, "the context file could not be taken back");
    }
    renamed
}

/// Where operators reach the listener.
fn reached_at(operators: SocketAddr, advertise: &[Endpoint]) -> String {
    if !operators.ip().is_unspecified() {
        return operators.to_string();
    }
    let host = advertise
        .first()
        .map_or_else(|| Host::Address([127, 0, 0, 1].into()), |endpoint| endpoint.host.clone());
    Endpoint { host, port: operators.port() }.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::directory::Operator;

    fn options(folder: &Path) -> Options {
        Options {
            state: StateDir::new(folder.join("state")),
            operators: "0.0.0.0:7443".parse().unwrap(),
            agents: "0.0.0.0:7444".parse().unwrap(),
            advertise: vec!["c.example:7444".parse().unwrap()],
            context_file: folder.join("context/config.toml"),
        }
    }

    fn tree(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(tree(&path));
            }
            found.push(path);
        }
        found.sort();
        found
    }

    #[tokio::test]
    async fn everything_is_made_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        init(&options).await.unwrap();
        for path in tree(folder.path()) {
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o077, 0, "{}", path.display());
        }
        let config = Config::load(&options.state).unwrap();
        assert_eq!(config.agent_endpoints(), ["c.example:7444"]);
        let context = ContextFile::load(&options.context_file).unwrap();
        assert_eq!(context.context(None).unwrap().server, "c.example:7443");
        let store = std::sync::Arc::new(Sqlite::open(options.state.store()).unwrap());
        let admins = Directory::new(store).list::<Operator>(directory::OPERATORS).await.unwrap();
        assert_eq!(admins[0].value.role, OperatorRole::Admin);
    }

    #[tokio::test]
    async fn a_second_init_refuses_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        init(&options).await.unwrap();
        let before = tree(folder.path());
        assert!(matches!(init(&options).await, Err(Error::StateExists { .. })));
        let elsewhere = Options { state: StateDir::new(folder.path().join("other")), ..options };
        assert!(matches!(init(&elsewhere).await, Err(Error::ContextExists { .. })));
        assert_eq!(tree(folder.path()), before);
    }

    #[tokio::test]
    async fn an_init_that_fails_half_way_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let options =
            Options { context_file: folder.path().join("file/config.toml"), ..options(folder.path()) };
        init(&options).await.unwrap_err();
        assert_eq!(tree(folder.path()), [folder.path().join("file")]);
    }
}
