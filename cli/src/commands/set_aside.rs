//! `holdfast cluster set-aside …`: logs that nodes keep, listed, and copied to this machine.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_common::pki::sha256;
use holdfast_common::set_aside::FileName;
use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Session, interrupted};
use crate::args::SetAside;
use crate::error::Error;
use crate::output::progress::rest;
use crate::output::{self, or_dash};

/// Between two lines about the progress, where there is no terminal.
const BETWEEN_WORDS: Duration = Duration::from_secs(5);

/// A folder that is made under another name; removed unless it becomes whole.
struct Partial {
    path: PathBuf,
    whole: PathBuf,
    done: bool,
}

/// Puts parts together, in the order in which they must come.
struct Writing {
    folder: PathBuf,
    files: Vec<(FileName, u64)>,
    /// The file that is being written, and its index.
    open: Option<(usize, File)>,
    index: usize,
    offset: u64,
}

enum Bar {
    Live(ProgressBar),
    Lines { since: Instant, told: Instant },
    Silent,
}

pub(super) async fn run(session: &mut Session, command: SetAside) -> Result<(), Error> {
    match command {
        SetAside::List { cluster } => list(session, cluster).await,
        SetAside::Fetch { cluster, id, into, node } => {
            let into = into.unwrap_or_else(|| PathBuf::from(format!("{cluster}-{id}")));
            fetch(session, v1::FetchSetAsideLogRequest { cluster, id, node }, into).await
        }
    }
}

async fn list(session: &mut Session, cluster: String) -> Result<(), Error> {
    let request = v1::ListSetAsideLogsRequest { cluster };
    let answer = session.client().await?.list_set_aside_logs(request).await?;
    if session.out.is_json() {
        let silent = answer.silent_nodes.iter();
        let silent = silent.map(|silent| json!({"node": silent.node, "message": silent.message}));
        let logs: Vec<_> = answer.logs.iter().map(kept).collect();
        return Ok(session.out.json(&json!({"logs": logs, "silent_nodes": silent.collect::<Vec<_>>()}))?);
    }
    for silent in &answer.silent_nodes {
        session.note(&format!("Node {} does not tell: {}", silent.node, output::plain(&silent.message)));
    }
    let now = session.out.now;
    let rows =
        answer.logs.iter().filter_map(|kept| Some((&kept.node, kept.log.as_ref()?))).map(|(node, log)| {
            vec![
                node.clone(),
                log.id.clone(),
                output::distance(now, log.set_aside_time.as_ref()),
                log.timeline.to_string(),
                lsn(log.from_offset),
                lsn(log.to_offset),
                or_dash(
                    log.fork
                        .as_ref()
                        .map(|fork| format!("{} on timeline {}", output::position(fork), fork.era)),
                ),
                output::bytes(log.bytes),
                log.files.to_string(),
                if log.cut { "no" } else { "yes" }.to_owned(),
                output::expiry(now, log.remove_after_time.as_ref()),
            ]
        });
    let header = [
        "NODE",
        "ID",
        "AGE",
        "TIMELINE",
        "FROM",
        "TO",
        "SAME UNTIL",
        "SIZE",
        "FILES",
        "ALL OF IT",
        "KEPT FOR",
    ];
    let rows = rows.collect();
    Ok(session.out.table(&header, rows)?)
}

async fn fetch(
    session: &mut Session,
    request: v1::FetchSetAsideLogRequest,
    into: PathBuf,
) -> Result<(), Error> {
    // Before anything is asked for: who fetches is written down.
    let partial = Partial::new(into)?;
    let mut parts = session.client().await?.fetch_set_aside_log(request).await?;
    let first = parts.next_of_this_stream().await?.and_then(|first| first.message);
    let Some(v1::fetch_set_aside_log_response::Message::Contents(contents)) = first else {
        return Err(Error::Incomplete("contents"));
    };
    let mut writing = Writing::new(&partial.path, &contents.files)?;
    let (mut done, total) = (0, contents.files.iter().map(|file| file.bytes).sum());
    let mut bar = Bar::new(session.out.is_json(), total);
    loop {
        // Both arms are cancel-safe.
        let next = tokio::select! {
            next = parts.next_of_this_stream() => next?,
            () = interrupted() => return Err(broken("interrupted; nothing of it is kept")),
        };
        match next.map(|next| next.message) {
            Some(Some(v1::fetch_set_aside_log_response::Message::Part(part))) => {
                done += part.data.len() as u64;
                writing.take(&part)?;
                bar.show(done, total);
            }
            Some(_) => return Err(Error::Incomplete("part")),
            None => break,
        }
    }
    writing.finish()?;
    bar.end();
    let folder = partial.become_whole()?;
    if session.out.is_json() {
        let log = contents.log.as_ref().map(kept);
        return Ok(session.out.json(&json!({"folder": folder, "kept_log": log, "bytes": total}))?);
    }
    session.out.line(format!(
        "{} files, {}, are in {}.",
        contents.files.len(),
        output::bytes(total),
        folder.display()
    ))?;
    session.note("See what is in them with PostgreSQL's pg_waldump, of the same major version.");
    Ok(())
}

fn kept(kept: &v1::KeptLog) -> Value {
    let position = |position: &nouns::Position| json!({"era": position.era, "offset": position.offset});
    let log = kept.log.as_ref();
    json!({
        "node": kept.node,
        "id": log.map(|log| &log.id),
        "set_aside_time": log.and_then(|log| output::time(log.set_aside_time.as_ref())),
        "timeline": log.map(|log| log.timeline),
        "from_offset": log.map(|log| log.from_offset),
        "to_offset": log.map(|log| log.to_offset),
        "fork": log.and_then(|log| log.fork.as_ref()).map(position),
        "checkpoint": log.and_then(|log| log.checkpoint.as_ref()).map(position),
        "bytes": log.map(|log| log.bytes),
        "files": log.map(|log| log.files),
        "cut": log.map(|log| log.cut),
        "keep_until_time": log.and_then(|log| output::time(log.keep_until_time.as_ref())),
        "remove_after_time": log.and_then(|log| output::time(log.remove_after_time.as_ref())),
    })
}

fn lsn(offset: u64) -> String {
    output::position(&nouns::Position { era: 0, offset })
}

fn broken(why: &str) -> Error {
    Error::local("fetch the log", why)
}

fn local(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = format!("{what} {}", path.display());
    move |error| Error::local(what, error)
}

// === impl Partial ===

impl Partial {
    fn new(whole: PathBuf) -> Result<Self, Error> {
        let Some(name) = whole.file_name() else {
            return Err(Error::Usage("--into: give the name of a folder that is not there yet".to_owned()));
        };
        if whole.symlink_metadata().is_ok() {
            let problem = format!("--into: {} is there already; give another name", whole.display());
            return Err(Error::Usage(problem));
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".partial");
        let path = whole.with_file_name(hidden);
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Error::Usage(format!(
                "--into: {} is what another fetch has left, or is writing; remove it if none is under way",
                path.display()
            )),
            _ => local("make the folder", &path)(error),
        })?;
        Ok(Self { path, whole, done: false })
    }

    fn become_whole(mut self) -> Result<PathBuf, Error> {
        std::fs::rename(&self.path, &self.whole).map_err(local("rename the folder to", &self.whole))?;
        self.done = true;
        Ok(self.whole.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            // What stays is told by the next attempt.
            let _left = std::fs::remove_dir_all(&self.path);
        }
    }
}

// === impl Writing ===

impl Writing {
    /// The names are checked here: the coordinator chooses no place.
    fn new(folder: &Path, files: &[nouns::SetAsideFile]) -> Result<Self, Error> {
        let named = files.iter().map(|file| {
            let name = file.name.parse().map_err(|error| Error::local("understand the answer", error))?;
            Ok((name, file.bytes))
        });
        let files = named.collect::<Result<Vec<_>, Error>>()?;
        Ok(Self { folder: folder.to_owned(), files, open: None, index: 0, offset: 0 })
    }

    fn take(&mut self, part: &v1::SetAsidePart) -> Result<(), Error> {
        self.pass_full_files()?;
        let follows =
            usize::try_from(part.file).is_ok_and(|index| index == self.index) && part.offset == self.offset;
        let Some((name, bytes)) = self.files.get(self.index).filter(|_| follows) else {
            return Err(broken("the parts do not follow each other; fetch it again"));
        };
        let length = part.data.len() as u64;
        if length == 0 || length > bytes - self.offset || sha256(&part.data).as_slice() != part.sha256 {
            return Err(broken("a part is not what the node has read; fetch it again"));
        }
        let path = self.folder.join(name.as_str());
        let file = self.file(&path)?;
        file.write_all(&part.data).map_err(local("write", &path))?;
        self.offset += length;
        Ok(())
    }

    /// Goes on to the file that has room; empty ones are made on the way.
    fn pass_full_files(&mut self) -> Result<(), Error> {
        while let Some((name, bytes)) = self.files.get(self.index).filter(|(_, bytes)| *bytes == self.offset)
        {
            let (path, empty) = (self.folder.join(name.as_str()), *bytes == 0);
            if empty || self.open.is_some() {
                self.file(&path)?.sync_all().map_err(local("write", &path))?;
            }
            (self.open, self.index, self.offset) = (None, self.index + 1, 0);
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<&mut File, Error> {
        if self.open.as_ref().is_none_or(|(index, _)| *index != self.index) {
            let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            self.open = Some((self.index, opened.map_err(local("create", path))?));
        }
        self.open.as_mut().map(|(_, file)| file).ok_or_else(|| broken("no file is open"))
    }

    /// # Errors
    /// If something is missing.
    fn finish(mut self) -> Result<(), Error> {
        self.pass_full_files()?;
        if self.index < self.files.len() {
            return Err(broken("it ended early; fetch it again"));
        }
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(local("write", &self.folder))
    }
}

// === impl Bar ===

impl Bar {
    fn new(is_json: bool, total: u64) -> Self {
        let now = Instant::now();
        match () {
            () if is_json => Self::Silent,
            () if io::stderr().is_terminal() => {
                let style = "  {bar:20} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
                let style = ProgressStyle::with_template(style);
                let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
                Self::Live(ProgressBar::new(total).with_style(style))
            }
            () => Self::Lines { since: now, told: now },
        }
    }

    fn show(&mut self, done: u64, total: u64) {
        match self {
            Self::Live(bar) => bar.set_position(done),
            Self::Lines { since, told } if told.elapsed() >= BETWEEN_WORDS => {
                *told = Instant::now();
                let left = rest(done, total, since.elapsed()).map(|left| format!(", {left} left"));
                // Progress that cannot be shown does not end the fetch.
                let _ = writeln!(
                    io::stderr(),
                    "{} of {}{}",
                    output::bytes(done),
                    output::bytes(total),
                    left.unwrap_or_default()
                );
            }
            Self::Lines { .. } | Self::Silent => {}
        }
    }

    fn end(&self) {
        if let Self::Live(bar) = self {
            bar.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(file: u32, offset: u64, data: &[u8]) -> v1::SetAsidePart {
        v1::SetAsidePart { file, offset, data: data.to_vec(), sha256: sha256(data).to_vec() }
    }

    fn files(files: &[(&str, u64)]) -> Vec<nouns::SetAsideFile> {
        files
            .iter()
            .map(|(name, bytes)| nouns::SetAsideFile { name: (*name).into(), bytes: *bytes })
            .collect()
    }

    #[test]
    fn files_are_put_together_and_nothing_else_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let listed = files(&[("a", 3), ("empty", 0), ("b", 1), ("last", 0)]);
        let mut writing = Writing::new(folder.path(), &listed).unwrap();
        writing.take(&part(0, 0, b"xy")).unwrap();
        writing.take(&part(0, 0, b"xy")).unwrap_err();
        writing.take(&part(0, 3, b"z")).unwrap_err();
        writing.take(&part(0, 2, b"zz")).unwrap_err();
        writing.take(&v1::SetAsidePart { data: b"w".to_vec(), ..part(0, 2, b"z") }).unwrap_err();
        writing.take(&part(0, 2, b"z")).unwrap();
        writing.take(&part(2, 0, b"w")).unwrap();
        writing.take(&part(2, 1, b"w")).unwrap_err();
        writing.finish().unwrap();
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(
            (read("a"), read("empty"), read("b"), read("last")),
            (b"xyz".to_vec(), vec![], b"w".to_vec(), vec![])
        );
    }

    #[test]
    fn what_ends_early_or_names_a_path_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writing = Writing::new(folder.path(), &files(&[("a", 3)])).unwrap();
        writing.take(&part(0, 0, b"xy")).unwrap();
        assert!(writing.finish().is_err());
        for bad in ["../a", "/etc/passwd", "", "."] {
            assert!(Writing::new(folder.path(), &files(&[(bad, 1)])).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_folder_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("log");
        let partial = Partial::new(whole.clone()).unwrap();
        assert!(Partial::new(whole.clone()).is_err(), "another fetch is writing");
        drop(partial);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        Partial::new(whole.clone()).unwrap().become_whole().unwrap();
        assert!(whole.is_dir());
        assert!(Partial::new(whole).is_err(), "it is there already");
    }
}
