//! Debian's Patroni at its defaults, with Debian's etcd.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Keeper, SOON, Site};
use crate::client::Client;
use crate::cluster::NODES;
use crate::host::{Host, Service};
use crate::unmanaged::{ACCESS, AS_POSTGRES, FOLDER, PASSWORD, PORT, Servers, as_postgres, programs};

/// The configuration, as the host sees it.
const FILE: &str = "/var/lib/holdfast/contest/patroni.yml";

pub(super) struct Patroni {
    servers: Servers,
    client: Client,
}

// === impl Patroni ===

impl Patroni {
    pub(super) async fn begin() -> anyhow::Result<Self> {
        let servers = Servers::boot().await?;
        let store = format!("{}:2379", servers.controller.address());
        let url = format!("http://{store}");
        let folder = servers.controller.state_folder().join("etcd");
        let etcd = ["etcd", "--data-dir", &folder.display().to_string(), "--listen-client-urls", &url];
        let etcd = etcd.into_iter().chain(["--advertise-client-urls", &url]);
        servers.controller.serve(&service("etcd", etcd)).await?;
        for name in NODES {
            let host = servers.node(name)?;
            // YAML is more than JSON.
            let configuration = serde_json::to_string(&configuration(host, &store)?)?;
            let save = format!("umask 077; cat > {FILE}");
            host.run(as_postgres(&["sh", "-c", &save]).input(configuration)).await?;
            let patroni = ["setpriv"].into_iter().chain(AS_POSTGRES).chain(["patroni", FILE]);
            host.serve(&service("patroni", patroni)).await?;
            if name == "n1" {
                crate::wait::wait_until("the first primary", SOON, || servers.ask("n1", "select 1")).await?;
            }
        }
        let client = servers.client().await?;
        Ok(Self { servers, client })
    }

    async fn ctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let words: Vec<&str> = ["patronictl", "-c", FILE].into_iter().chain(words.iter().copied()).collect();
        let mut said = Err(anyhow::anyhow!("no node answers"));
        for name in NODES {
            said = self.servers.node(name)?.run(as_postgres(&words).deadline(SOON)).await;
            if said.is_ok() {
                break;
            }
        }
        said
    }
}

impl Keeper for Patroni {
    fn site(&self) -> Site<'_> {
        Site::unmanaged(&self.servers, &self.client)
    }

    async fn whole(&self) -> anyhow::Result<String> {
        let listed: Value = serde_json::from_str(&self.ctl(&["list", "--format", "json"]).await?)?;
        let members = listed.as_array().context("no list")?;
        let leader = members.iter().find(|member| member["Role"] == "Leader");
        let leader = leader.and_then(|member| member["Member"].as_str()).context("no leader")?;
        let running = members.iter().filter(|one| one["State"] == "running" || one["State"] == "streaming");
        ensure!(running.count() == NODES.len(), "it is {listed}");
        self.servers.is_followed(leader).await?;
        Ok(leader.to_owned())
    }

    async fn switch(&self, from: &str, to: &str) -> anyhow::Result<()> {
        self.ctl(&["switchover", "--force", "--master", from, "--candidate", to, "orders"]).await.map(drop)
    }
}

fn service<'a>(name: &str, argv: impl IntoIterator<Item = &'a str>) -> Service {
    let argv = argv.into_iter().map(String::from).collect();
    Service { name: name.into(), argv, env: Vec::new(), socket: None }
}

/// As `patronictl` shows its defaults; pg_rewind is allowed, and TLS, which all have here.
fn configuration(host: &Host, store: &str) -> anyhow::Result<Value> {
    let (name, address) = (host.name(), host.address());
    let login = json!({"username": "postgres", "password": PASSWORD});
    Ok(json!({
        "scope": "orders",
        "name": name,
        "restapi": {"listen": format!("{address}:8008"), "connect_address": format!("{address}:8008")},
        "etcd3": {"hosts": store},
        "bootstrap": {
            "dcs": {
                "ttl": 30,
                "loop_wait": 10,
                "retry_timeout": 10,
                "maximum_lag_on_failover": 1_048_576,
                "postgresql": {"use_pg_rewind": true, "use_slots": true},
            },
            "initdb": [{"encoding": "UTF8"}, "data-checksums"],
            "pg_hba": ACCESS,
        },
        "postgresql": {
            "listen": format!("*:{PORT}"),
            "connect_address": format!("{address}:{PORT}"),
            "data_dir": format!("{FOLDER}/data"),
            "bin_dir": programs()?,
            "pgpass": format!("{FOLDER}/pgpass"),
            "authentication": {"superuser": login, "replication": login, "rewind": login},
            "parameters": {
                "unix_socket_directories": FOLDER,
                "ssl": "on",
                "ssl_cert_file": format!("{FOLDER}/server.crt"),
                "ssl_key_file": format!("{FOLDER}/server.key"),
            },
        },
    }))
}
