//! A person with PostgreSQL's own programs.

use std::path::PathBuf;

use super::{ACCESS, FOLDER, PASSWORD, PORT, Servers, as_postgres, programs};
use crate::client::Client;
use crate::cluster::NODES;
use crate::host::Host;

/// A primary and two replicas, and a client of all of them.
#[derive(Debug)]
pub struct ByHand {
    /// The hosts.
    pub servers: Servers,
    /// On n4.
    pub client: Client,
    bin: PathBuf,
}

// === impl ByHand ===

impl ByHand {
    /// Makes them, n1 the primary, and waits until it serves the client. With the usual quarter of the memory, which costs a stop its time.
    ///
    /// # Errors
    ///
    /// When that does not come about.
    pub async fn begin() -> anyhow::Result<Self> {
        let (servers, bin) = (Servers::boot().await?, programs()?);
        let programs = bin.display();
        let access = ACCESS.join("\n");
        let n1 = servers.node("n1")?;
        sh(
            n1,
            &format!(
                "set -e; cd {FOLDER}
                 echo {PASSWORD} > password
                 {programs}/initdb -D data -U postgres -A scram-sha-256 --pwfile=password --data-checksums >/dev/null
                 echo \"{access}\" > data/pg_hba.conf
                 quarter=$(awk '/^MemTotal/ {{ print int($2 / 4096) }}' /proc/meminfo)
                 cat >> data/postgresql.conf <<EOF
                 shared_buffers = ${{quarter}}MB
                 listen_addresses = '*'
                 port = {PORT}
                 unix_socket_directories = '{FOLDER}'
                 ssl = on
                 ssl_cert_file = '{FOLDER}/server.crt'
                 ssl_key_file = '{FOLDER}/server.key'
                 wal_log_hints = on
EOF
                 {programs}/pg_ctl -D data -l log -w start >/dev/null",
            ),
        )
        .await?;
        for name in NODES.into_iter().skip(1) {
            let source = conninfo(n1);
            let copy = format!(
                "set -e; cd {FOLDER}
                 {programs}/pg_basebackup -d '{source}' -D data -R -X stream -c fast
                 {programs}/pg_ctl -D data -l log -w start >/dev/null"
            );
            sh(servers.node(name)?, &copy).await?;
        }
        let client = servers.client().await?;
        Ok(Self { servers, client, bin })
    }

    /// What many scripts do when their primary does not answer: the promotion of another one, and nothing else.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub async fn promote(&self, to: &str) -> anyhow::Result<()> {
        self.servers.ask(to, "select pg_promote()").await.map(drop)
    }

    /// A switchover with care: the old one stopped first, and everybody told whom to follow.
    ///
    /// # Errors
    ///
    /// When a step of it fails.
    pub async fn switch(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let (old, new, bin) = (self.servers.node(from)?, self.servers.node(to)?, self.bin.display());
        let change = format!(
            "set -e; cd {FOLDER}
             psql -h {FOLDER} -qAt -c checkpoint
             {bin}/pg_ctl -D data -m fast -w stop >/dev/null
             psql -d '{}' -qAt -c 'select pg_promote()'",
            conninfo(new)
        );
        sh(old, &change).await?;
        let follow = format!("alter system set primary_conninfo = '{}'", conninfo(new));
        let start = format!(
            "set -e; cd {FOLDER}
             touch data/standby.signal
             echo \"primary_conninfo = '{}'\" >> data/postgresql.auto.conf
             {bin}/pg_ctl -D data -l log -w start >/dev/null",
            conninfo(new)
        );
        sh(old, &start).await?;
        for other in NODES.into_iter().filter(|node| *node != from && *node != to) {
            self.servers.ask(other, &follow).await?;
            self.servers.ask(other, "select pg_reload_conf()").await?;
        }
        Ok(())
    }
}

fn conninfo(host: &Host) -> String {
    format!("host={} port={PORT} user=postgres dbname=postgres password={PASSWORD}", host.address())
}

async fn sh(host: &Host, script: &str) -> anyhow::Result<()> {
    host.run(as_postgres(&["bash", "-s"]).input(script)).await.map(drop)
}
