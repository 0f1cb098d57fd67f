//! A client that writes without pause on one connection, and knows what was acknowledged to it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use crate::fleet::Uri;
use crate::host::Host;
use crate::process::{Program, Running};

/// Between two writes.
const PAUSE: Duration = Duration::from_millis(50);

/// Writes until its connection is cut, or it is dropped.
#[derive(Debug)]
pub struct Writer {
    name: String,
    running: Running,
    log: PathBuf,
    secret: PathBuf,
}

/// One acknowledged write: its number, and when the server made it, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Write {
    pub id: u64,
    pub at: f64,
}

/// What a database needs for it, once.
pub const TABLE: &str = "create table if not exists written (id bigserial primary key, writer text not null)";

// === impl Writer ===

impl Writer {
    /// Starts one on `host`, against one server.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(host: &Host, uri: &Uri, name: &str) -> anyhow::Result<Self> {
        let write = format!(
            "insert into written (writer) values ('{name}') \
             returning 'wrote', id, extract(epoch from clock_timestamp()) \\watch {}\n",
            PAUSE.as_secs_f64()
        );
        Self::with_script(host, uri, name, &write)
    }

    /// One that writes nothing: it asks once, and waits for an answer that takes longer than any test.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn waiting(host: &Host, uri: &Uri, name: &str) -> anyhow::Result<Self> {
        Self::with_script(host, uri, name, "select pg_sleep(86400);\n")
    }

    fn with_script(host: &Host, uri: &Uri, name: &str, sql: &str) -> anyhow::Result<Self> {
        let secret = host.folder().join(format!("pgpass-{name}"));
        let script = host.folder().join(format!("{name}.sql"));
        uri.write_passwords(&secret)?;
        std::fs::write(&script, sql).with_context(|| format!("write {}", script.display()))?;
        let psql = Program::new("stdbuf").args(["-oL", "psql", "--no-psqlrc", "--no-password", "-qAt"]);
        let psql = psql.args(["-v", "ON_ERROR_STOP=1", "-d", &uri.without_password(), "-f"]).arg(&script);
        let psql = psql.env("PGPASSFILE", &secret).env("PGCONNECT_TIMEOUT", "5");
        let running = host.start(psql, name)?;
        Ok(Self { name: name.to_owned(), running, log: host.log(name), secret })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// All that was acknowledged, in order.
    ///
    /// # Errors
    ///
    /// When its log cannot be read.
    pub fn acknowledged(&self) -> anyhow::Result<Vec<Write>> {
        let log = std::fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())?;
        let write = |line: &str| {
            let mut words = line.strip_prefix("wrote|")?.split('|');
            Some(Write { id: words.next()?.parse().ok()?, at: words.next()?.parse().ok()? })
        };
        Ok(log.lines().filter_map(write).collect())
    }

    /// The end of what it and the server said.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn said(&self) -> anyhow::Result<String> {
        let log = std::fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())?;
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        Ok(last.join(" | "))
    }

    /// When the last one was made; the beginning of time where there is none.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn last(&self) -> anyhow::Result<f64> {
        Ok(self.acknowledged()?.last().map_or(0.0, |write| write.at))
    }

    /// Whether its connection was cut.
    ///
    /// # Errors
    ///
    /// When nobody says.
    pub fn is_cut(&mut self) -> anyhow::Result<bool> {
        Ok(self.running.ended()?.is_some())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.running.kill();
        // Its folder goes with the host; a secret goes at once.
        let _gone = std::fs::remove_file(&self.secret);
    }
}
