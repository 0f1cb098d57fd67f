//! What stands between pg_rewind and the server that it copies from: a socket on this machine. Each byte goes on as it came, but for one
//! question.
//!
//! pg_rewind before PostgreSQL 18 copies all of the source's log, also what it keeps for replicas that are away: gigabytes, beside which a
//! rewind takes longer than a full copy. It learns of the log's files by one query for the list of the source's; those that are of no use are
//! taken out of that list, as version 18 does with the older ones. What the replica needs of them it streams, as it must anyway with what
//! is written while pg_rewind works.
//!
//! Never those from the fork on: of what is not in the list pg_rewind leaves the target's own files of the same names where they are, if it
//! has read them. That of the fork holds log that only the target has, and its server would replay that.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::assignment::Peer;
use holdfast_common::pki::{Credentials, TrustBundle};
use holdfast_common::tls::{ClientTls, Connected, Expect, HANDSHAKE_DEADLINE};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, BufWriter, copy, split,
};
use tokio::net::{TcpStream, UnixListener};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::postgresql::history::Fork;
use crate::engine::postgresql::render::{self, REPLICATION_USER, quoted_in_conninfo};
use crate::engine::postgresql::{Inner, Layout};
use crate::engine::{Cause, Error};
use crate::host::files::{Access, Files};

const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// What a client says that wants TLS (PostgreSQL's protocol, "SSLRequest").
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const TLS_GRANTED: u8 = b'S';
/// A message that is one query in text.
const QUERY: u8 = b'Q';
const LENGTH_BYTES: u32 = 4;
/// Those that pg_rewind sends have less than a thousand.
const MAX_QUERY_BYTES: u32 = 64 * 1024;
/// Any: the folder is the relay's own.
const PORT: u16 = 1;
/// How the query for the list of files begins and ends, in PostgreSQL 13 to 18.
const LISTING: (&str, &str) =
    ("WITH RECURSIVE files (path, filename, size, isdir) AS (", "AND oid::text = files.filename");
/// What such a query costs by the planner's guess has it compiled, which takes longer than its work.
const OPTIONS: &str = "-c jit=off";

/// Open while it lives.
#[derive(Debug)]
pub(super) struct Relay {
    files: Files,
    folder: PathBuf,
    _work: AbortOnDropHandle<()>,
}

// === impl Relay ===

impl Relay {
    /// Connects to the source, and waits for one program of the engine's user to connect to it.
    ///
    /// # Errors
    /// `UNAVAILABLE` where the source cannot be reached, or does not prove who it is.
    pub(super) async fn open(
        inner: &Inner,
        layout: &Layout,
        source: &Peer,
        fork: Fork,
    ) -> Result<Self, Error> {
        let server = connect(inner, source).await;
        let server = server
            .map_err(|cause| Error::Unavailable { deed: format!("reach {}", source.name), source: cause })?;
        let (files, folder) = (inner.host.files().clone(), layout.relay());
        let private = Access { mode: 0o700, owner: inner.owner()? };
        let listener = listen(&files, &folder, private).await;
        let listener = listener.map_err(|cause| Error::failed("open a socket for the rewind", cause))?;
        let work = AbortOnDropHandle::new(tokio::spawn(async move {
            match serve(&listener, server, fork).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::info!("pg_rewind asks for files in an unknown way; it copies all of the log")
                }
                Err(error) => tracing::warn!(%error, "relay between pg_rewind and its source"),
            }
        }));
        Ok(Self { files, folder, _work: work })
    }

    /// How pg_rewind reaches it.
    pub(super) fn conninfo(&self) -> String {
        let pairs = [
            ("host", self.folder.to_string_lossy().into_owned()),
            ("port", PORT.to_string()),
            ("user", REPLICATION_USER.to_owned()),
            ("dbname", "postgres".to_owned()),
            ("application_name", render::COPY_NAME.to_owned()),
            ("options", OPTIONS.to_owned()),
            ("passfile", "/dev/null".to_owned()),
            ("connect_timeout", "10".to_owned()),
        ];
        pairs.map(|(name, value)| format!("{name}={}", quoted_in_conninfo(&value))).join(" ")
    }

    /// Nothing is left of it.
    pub(super) async fn close(self) {
        // What cannot be removed now is by the next one.
        let _left = self.files.remove_tree(&self.folder).await;
    }
}

/// In a new folder. Whom that lets in may connect.
async fn listen(files: &Files, folder: &Path, access: Access) -> Result<UnixListener, Cause> {
    files.remove_tree(folder).await?;
    files.create_dir(folder, access).await?;
    let socket = folder.join(format!(".s.PGSQL.{PORT}"));
    let listener = UnixListener::bind(&socket)?;
    std::fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// As this node, to the server of exactly that one.
async fn connect(inner: &Inner, source: &Peer) -> Result<TlsStream<TcpStream>, Cause> {
    let own = Arc::clone(&inner.credentials.borrow());
    let (credentials, roots) =
        (Credentials::from_pem(&own.chain, &own.key)?, TrustBundle::from_pem(&own.fleet)?);
    let expect = Expect::Database(source.node_id);
    let tls = ClientTls::new(roots.fleet()?, expect, Some(&credentials), &roots)?;
    let mut stream = timeout(DIAL_DEADLINE, TcpStream::connect((source.address, source.port))).await??;
    stream.set_nodelay(true)?;
    setsockopt(&stream, sockopt::KeepAlive, &true)?;
    setsockopt(&stream, sockopt::TcpKeepIdle, &5)?;
    setsockopt(&stream, sockopt::TcpKeepInterval, &2)?;
    setsockopt(&stream, sockopt::TcpKeepCount, &3)?;
    let answer = timeout(HANDSHAKE_DEADLINE, async {
        stream.write_all(&TLS_REQUEST).await?;
        stream.read_u8().await
    });
    if answer.await?? != TLS_GRANTED {
        return Err("it offers no encryption".into());
    }
    let Connected { stream, .. } =
        tls.connect(ServerName::try_from(source.name.to_string())?, stream, HANDSHAKE_DEADLINE).await?;
    Ok(stream)
}

/// One conversation. Whether the log was taken out of the list of files.
async fn serve(listener: &UnixListener, server: TlsStream<TcpStream>, fork: Fork) -> io::Result<bool> {
    let (client, _) = listener.accept().await?;
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, to_server) = split(server);
    let mut found = false;
    // Each ends when its side has said all, and what was said is passed on by then. Dropping the other closes both.
    let ended = tokio::select! {
        ended = pass_on(from_client, to_server, fork, &mut found) => ended,
        ended = copy(&mut from_server, &mut to_client) => ended.map(drop),
    };
    ended.map(|()| found)
}

/// What a client says, message by message, until it ends.
async fn pass_on(
    client: impl AsyncRead + Unpin,
    server: impl AsyncWrite + Unpin,
    fork: Fork,
    found: &mut bool,
) -> io::Result<()> {
    let (mut client, mut server) = (BufReader::new(client), BufWriter::new(server));
    // The first one is of no kind.
    let length = client.read_u32().await?;
    server.write_u32(length).await?;
    pass_bytes(&mut client, &mut server, length).await?;
    loop {
        if client.buffer().is_empty() {
            server.flush().await?;
        }
        let kind = match client.read_u8().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return server.shutdown().await,
            kind => kind?,
        };
        let length = client.read_u32().await?;
        server.write_u8(kind).await?;
        if kind != QUERY || length > MAX_QUERY_BYTES {
            server.write_u32(length).await?;
            pass_bytes(&mut client, &mut server, length).await?;
            continue;
        }
        let mut query = vec![0; length.saturating_sub(LENGTH_BYTES) as usize];
        client.read_exact(&mut query).await?;
        if let Some(other) = without_log(&query, fork) {
            (query, *found) = (other, true);
        }
        let length = u32::try_from(query.len()).map_err(io::Error::other)?.saturating_add(LENGTH_BYTES);
        server.write_u32(length).await?;
        server.write_all(&query).await?;
    }
}

/// The rest of a message of this length, which counts itself.
async fn pass_bytes(
    client: &mut (impl AsyncRead + Unpin),
    server: &mut (impl AsyncWrite + Unpin),
    length: u32,
) -> io::Result<()> {
    let rest = u64::from(length.saturating_sub(LENGTH_BYTES));
    let passed = copy(&mut client.take(rest), server).await?;
    if passed == rest { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The query for the list of files without those of the log that are of no use; `None` if it is another. Of no use is what was written before
/// the fork, on its timeline or on older ones, and what is only kept to be written anew.
fn without_log(query: &[u8], fork: Fork) -> Option<Vec<u8>> {
    let text = str::from_utf8(query.strip_suffix(&[0])?).ok()?.trim_end();
    let (begins, ends) = LISTING;
    if !text.starts_with(begins) || !text.ends_with(ends) {
        return None;
    }
    let Fork { timeline, offset } = fork;
    let place = format!("{:X}/{:X}", offset >> 32, offset & 0xffff_ffff);
    // A file of the log is named by its timeline and its number, in hexadecimal digits.
    let useless = format!(
        "files.path = 'pg_wal/' and files.filename ~ '^[0-9A-F]{{24}}$' and ( \
         substr(files.filename, 1, 8) < '{timeline:08X}' or \
         substr(files.filename, 9) < substr(pg_walfile_name('{place}'), 9) or \
         substr(files.filename, 9) > substr(pg_walfile_name(pg_current_wal_insert_lsn()), 9))"
    );
    Some(format!("{text}\nwhere not ({useless})\0").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORK: Fork = Fork { timeline: 5, offset: 0x1_83de_c318 };

    /// What a server gets of what a client says.
    async fn passed(said: &[u8]) -> (io::Result<()>, Vec<u8>, bool) {
        let (mut got, mut found) = (Vec::new(), false);
        let ended = pass_on(said, &mut got, FORK, &mut found).await;
        (ended, got, found)
    }

    fn message(kind: u8, text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len() + 5).unwrap().to_be_bytes();
        [&[kind], &length[..], text.as_bytes(), &[0]].concat()
    }

    fn startup() -> Vec<u8> {
        [&13_u32.to_be_bytes()[..], &[0, 3, 0, 0], b"user\0"].concat()
    }

    #[tokio::test]
    async fn the_list_of_files_is_asked_for_without_the_log_that_is_of_no_use() {
        let listing = format!("{}\n select 1\nunion all\n{}\n", LISTING.0, LISTING.1);
        let said = [startup(), message(QUERY, &listing), message(b'X', "")].concat();
        let (ended, got, found) = passed(&said).await;
        ended.unwrap();
        assert!(found);
        let useless = "files.path = 'pg_wal/' and files.filename ~ '^[0-9A-F]{24}$' and ( \
            substr(files.filename, 1, 8) < '00000005' or \
            substr(files.filename, 9) < substr(pg_walfile_name('1/83DEC318'), 9) or \
            substr(files.filename, 9) > substr(pg_walfile_name(pg_current_wal_insert_lsn()), 9))";
        let asked = format!("{}\nwhere not ({useless})", listing.trim_end());
        assert_eq!(got, [startup(), message(QUERY, &asked), message(b'X', "")].concat());
    }

    #[tokio::test]
    async fn all_else_goes_on_as_it_came() {
        let long = "x".repeat(MAX_QUERY_BYTES as usize + 1);
        let begun = format!("{} select 1", LISTING.0);
        for text in ["select 1", LISTING.1, &begun, &long, ""] {
            for kind in [QUERY, b'P'] {
                let said = [startup(), message(kind, text), message(b'X', "")].concat();
                let (ended, got, found) = passed(&said).await;
                ended.unwrap();
                assert!(got == said && !found, "{}", text.len());
            }
        }
        let listing = message(b'P', &format!("{} {}", LISTING.0, LISTING.1));
        assert_eq!(passed(&[startup(), listing.clone()].concat()).await.1, [startup(), listing].concat());
    }

    #[tokio::test]
    async fn what_breaks_off_or_is_no_message_ends_the_conversation() {
        let cut = [startup(), message(QUERY, "select 1")].concat();
        for said in [&cut[..3], &cut[..9], &cut[..cut.len() - 1]] {
            assert!(passed(said).await.0.is_err(), "{} bytes", said.len());
        }
        // A length that is less than itself.
        let (ended, got, _) = passed(&[startup(), vec![QUERY, 0, 0, 0, 1]].concat()).await;
        ended.unwrap();
        assert_eq!(got, [startup(), vec![QUERY, 0, 0, 0, 4]].concat());
    }
}
