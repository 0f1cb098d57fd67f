//! How long a replica takes to be made anew: all of it, beside pg_basebackup alone from the same primary to the same machine; and
//! by pg_rewind after a small divergence.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use super::measure::{Load, Rounds, verdict};
use super::{Report, Table};
use crate::cluster::{self, NODES};
use crate::process::Program;
use crate::scene::now;
use crate::stage::Stage;
use crate::wait::wait_until;

/// How often each is done.
const ROUNDS: usize = 5;
/// What the tables of the database take, in chunks of a size that one statement fills quickly.
const CHUNKS: usize = 20;
const CHUNK_MIB: usize = 100;
const SOON: Duration = Duration::from_secs(300);
/// As the host sees it.
const RAW: &str = "/var/lib/holdfast/raw";

/// What the issue asks for.
const AIM_FULL: f64 = 1.1;
const AIM_REWIND: f64 = 10.0;

/// Measures it.
///
/// # Errors
///
/// When the cluster does not come to be, or a part of it ends.
pub(super) async fn measure() -> anyhow::Result<Report> {
    let before = Load::now()?;
    let stage = Stage::set(&[]).await?;
    stage.is_whole_under("n1").await?;
    fill(&stage).await?;
    let (mut raw, mut full, mut rewind) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        stage.is_whole_under("n1").await?;
        raw.push(copied_raw(&stage).await.context("pg_basebackup alone")?);
        full.push(copied(&stage).await.context("a full resync")?);
        say("pg_basebackup, full resync", round, &[raw.last(), full.last()]);
    }
    // What was loaded is on every disk before: a replica that becomes the primary does not write it then.
    for name in ["n1", "n2", "n3"] {
        stage.is_whole_under("n1").await?;
        checkpoint(&stage, name).await?;
    }
    for round in 1..=ROUNDS {
        rewind.push(rewound(&stage).await.context("a rewind")?);
        say("rewind", round, &[rewind.last()]);
    }
    let bytes = stage.ask("n1", "select pg_size_pretty(pg_database_size(current_database()))").await?;
    let [raw, full, rewind] = [Rounds::new(raw)?, Rounds::new(full)?, Rounds::new(rewind)?];
    Ok(report(&bytes, [&raw, &full, &rewind], &[before, Load::now()?]))
}

fn say(what: &str, round: usize, seconds: &[Option<&f64>]) {
    let told: Vec<String> = seconds.iter().flatten().map(|it| format!("{it:.1} s")).collect();
    crate::say(&format!("{what} {round} of {ROUNDS}: {}", told.join(", ")));
}

/// Rows below the size from which they would be compressed.
async fn fill(stage: &Stage) -> anyhow::Result<()> {
    stage.ask("n1", "create table ballast (id int8, filler text)").await?;
    let rows = CHUNK_MIB * 1024 * 1024 / 2000;
    for _ in 0..CHUNKS {
        let chunk = format!(
            "insert into ballast select i, (select string_agg(md5(random()::text || i || k), '') \
             from generate_series(1, 60 + i % 2) k) from generate_series(1, {rows}) i"
        );
        stage.ask("n1", &chunk).await?;
    }
    stage.is_whole_under("n1").await
}

/// On one member, by its superuser.
async fn checkpoint(stage: &Stage, name: &str) -> anyhow::Result<()> {
    const SCRIPT: &str = r#"run=$(dirname "$(find /var/lib/holdfast/data -name '.s.PGSQL.5432')")
        setpriv --reuid=postgres --regid=postgres --clear-groups psql -h "$run" -U postgres -d postgres -c checkpoint"#;
    let host = stage.fleet.node(name)?;
    host.run(Program::new("sh").args(["-c", SCRIPT]).deadline(SOON)).await.map(drop)
}

/// By PostgreSQL's own program, as n2's engine's user, with the connection that n2 replicates by.
async fn copied_raw(stage: &Stage) -> anyhow::Result<f64> {
    const SCRIPT: &str = r#"set -e
        root=$(dirname "$(dirname "$(find /var/lib/holdfast/data -path '*/data/PG_VERSION' | head -n 1)")")
        owner=$(stat -c %u:%g "$root/data")
        conninfo=$(sed -n "s/^primary_conninfo = '\(.*\)'$/\1/p" "$root"/conf/*.conf | grep . | head -n 1 | sed "s/''/'/g")
        program=$(find /usr/lib/postgresql -name pg_basebackup | sort | tail -n 1)
        rm -rf "$0"; install -d -o "${owner%:*}" -g "${owner#*:}" -m 700 "$0"; sync
        begun=$(date +%s.%N)
        setpriv --reuid="${owner%:*}" --regid="${owner#*:}" --clear-groups "$program" -d "$conninfo" \
            -D "$0" --wal-method=stream --checkpoint=fast --no-password
        ended=$(date +%s.%N)
        rm -rf "$0"
        echo "$begun $ended""#;
    let host = stage.fleet.node("n2")?;
    let said = host.run(Program::new("sh").args(["-c", SCRIPT, RAW]).deadline(SOON)).await?;
    let times: Vec<f64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [begun, ended] = times[..] else { anyhow::bail!("it says {said}") };
    Ok(ended - begun)
}

async fn copied(stage: &Stage) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let resync = ["cluster", "resync", "orders", "--node", "n2", "--mode", "full", "--confirm", "orders"];
    stage.fleet.cli(resync)?.deadline(SOON).run().await?;
    Ok(begun.elapsed().as_secs_f64())
}

/// A primary that was cut off while it still wrote comes back by itself: how long that operation took.
async fn rewound(stage: &Stage) -> anyhow::Result<f64> {
    let shown = stage.fleet.json(["cluster", "show", "orders"]).await?;
    let primary = shown["primary"].as_str().context("no primary")?.to_owned();
    let (network, old) = (stage.fleet.network(), stage.fleet.node(&primary)?);
    let mut others = vec![stage.fleet.controller()];
    for node in NODES.into_iter().filter(|node| *node != primary) {
        others.push(stage.fleet.node(node)?);
    }
    let begun = now();
    network.partition(&[old], &others).await?;
    stage.client.is_served(|ack| ack.sent > begun && ack.node != primary, SOON).await?;
    network.heal().await?;
    wait_until("the old primary to be rewound", SOON, || async {
        let newest = cluster::operations(&stage.fleet).await?;
        let resync = newest.iter().find(|one| one["kind"] == "resync").context("nothing is resynced")?;
        let [create, update] = [time(&resync["create_time"])?, time(&resync["update_time"])?];
        ensure!(create > begun && resync["state"] == "succeeded", "it is {resync}");
        let successor = stage.fleet.json(["cluster", "show", "orders"]).await?;
        ensure!(successor["state"] == "healthy", "it is {successor}");
        Ok(update - create)
    })
    .await
}

fn time(value: &Value) -> anyhow::Result<f64> {
    let time: Timestamp = value.as_str().context("no time")?.parse().context("read a time")?;
    Ok(time.as_duration().as_secs_f64())
}

fn report(bytes: &str, [raw, full, rewind]: [&Rounds; 3], load: &[Load; 2]) -> Report {
    let [before, after] = load;
    let about = format!(
        "Release build. Three members of the testbed on one disk, a database of {bytes}, and a client that inserts a row every 5 ms all the \
         time. *pg_basebackup alone*: run by hand on a replica's machine, by the engine's user, over the connection that the \
         replica replicates by, into an empty folder. *Full resync*: `holdfast cluster resync --mode full`, from the command to its \
         end: the copy beside the old data, the swap, and the proof that it streams; in turns with the former. *Rewind*: a primary that \
         was cut off from all but its clients comes back by itself, after a checkpoint on each member; its operation, from its beginning to its end, with the old \
         log set aside. Seconds: medians of {ROUNDS}, with the smallest and largest in parentheses. Load average of the machine \
         {before} before, {after} after.",
    );
    let row = |what: &str, rounds: &Rounds, aim: String| vec![what.to_owned(), format!("{rounds:.1}"), aim];
    let times = full.median() / raw.median();
    let faster = full.median() / rewind.median();
    let rows = vec![
        row("pg_basebackup alone", raw, String::new()),
        row(
            "full resync",
            full,
            format!("at most {AIM_FULL} times that: {times:.2}, {}", verdict(times <= AIM_FULL)),
        ),
        row(
            "rewind",
            rewind,
            format!("{AIM_REWIND} times faster than full: {faster:.1}, {}", verdict(faster >= AIM_REWIND)),
        ),
    ];
    let columns = ["what", "seconds", "aim"].map(String::from).to_vec();
    Report { title: "A replica made anew".into(), about, tables: vec![Table { columns, rows }] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_resync_is_held_against_the_copy_alone_and_a_rewind_against_that() -> anyhow::Result<()> {
        let [raw, full, rewind] = [Rounds::new([10.0])?, Rounds::new([11.5])?, Rounds::new([1.0])?];
        let load = [Load::now()?, Load::now()?];
        let rows = report("2 GB", [&raw, &full, &rewind], &load).tables.remove(0).rows;
        let aims: Vec<&str> = rows.iter().map(|row| row[2].as_str()).collect();
        assert_eq!(
            aims,
            ["", "at most 1.1 times that: 1.15, missed", "10 times faster than full: 11.5, met"]
        );
        Ok(())
    }
}
