//! What is refused by name, before anything is done, with real programs.

use anyhow::{Context as _, ensure};
use holdfast_tests::cluster::{DEADLINE, operations};
use holdfast_tests::fleet::Fleet;
use holdfast_tests::network::Network;
use serde_json::Value;

/// A coordinator and one node.
async fn small() -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::start(Network::new().await?, ([127, 0, 0, 1], 0).into()).await?;
    fleet.join_all(&["n1"]).await?;
    Ok(fleet)
}

/// The command line that makes a cluster of one member, and more arguments for it.
fn creation<'a>(fleet: &Fleet, more: &[&'a str]) -> Vec<&'a str> {
    let create = ["cluster", "create", "orders", "--engine", "postgresql", "--nodes", "n1"];
    create.into_iter().chain(fleet.unfiltered()).chain(more.iter().copied()).collect()
}

/// The error of a command that must fail: its exit code and its JSON.
async fn refused(fleet: &Fleet, words: &[&str]) -> anyhow::Result<(i32, Value)> {
    let words = ["--output", "json"].into_iter().chain(words.iter().copied());
    let ended = fleet.cli(words)?.deadline(DEADLINE).output().await?;
    let code = ended.status.code().context("an exit code")?;
    let error: Value = serde_json::from_str(&ended.stderr)
        .with_context(|| format!("exit code {code}, no JSON: {}{}", ended.stdout, ended.stderr))?;
    Ok((code, error["error"].clone()))
}

fn fields(error: &Value) -> Vec<&str> {
    let violations = error["violations"].as_array().map(Vec::as_slice).unwrap_or_default();
    violations.iter().filter_map(|one| one["field"].as_str()).collect()
}

#[tokio::test]
async fn parameters_that_no_member_could_start_with_are_refused_before_anything_is_done() -> anyhow::Result<()>
{
    let fleet = small().await?;
    let given =
        ["--param", "max_connections=abc", "--param", "no_such_parameter=1", "--param", "jit=perhaps"];
    let (code, error) = refused(&fleet, &creation(&fleet, &given)).await?;
    ensure!(code == 2 && error["reason"] == "INVALID_FIELD", "it is {error}");
    let expected = ["parameters[jit]", "parameters[max_connections]", "parameters[no_such_parameter]"];
    ensure!(fields(&error) == expected, "it names {:?}", fields(&error));

    // Names of what is in no new cluster; the server would take them and fail later.
    let given = ["--param", "default_tablespace=nope", "--param", "default_text_search_config=nope"];
    let (_, error) = refused(&fleet, &creation(&fleet, &given)).await?;
    let expected = ["parameters[default_tablespace]", "parameters[default_text_search_config]"];
    ensure!(fields(&error) == expected, "it names {:?}", fields(&error));

    // More memory than the machine has; the plan says so too.
    for more in [&["--param", "shared_buffers=900GB"][..], &["--param", "shared_buffers=900GB", "--plan"]] {
        let words: Vec<&str> = ["--output", "json"].into_iter().chain(creation(&fleet, more)).collect();
        let ended = fleet.cli(words)?.deadline(DEADLINE).output().await?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        ensure!(
            said.contains("parameters[shared_buffers]") && said.contains("MiB of memory"),
            "it says {said}"
        );
    }

    let made = operations(&fleet).await?;
    ensure!(made.is_empty(), "an operation was begun: {made:?}");

    // What only the server knows, and not before it is installed, ends the operation before anything is made.
    let (_, error) = refused(&fleet, &creation(&fleet, &["--param", "datestyle=Nonsense"])).await?;
    ensure!(error.to_string().contains("parameters[datestyle]"), "it is {error}");

    // Those of extensions go through as they are, and so does what would keep us from making the database.
    let given = ["--extension", "pg_stat_statements", "--param", "pg_stat_statements.max=500"];
    let odd = ["--param", "search_path=app", "--param", "default_transaction_read_only=on"];
    let given = [&given[..], &odd].concat();
    fleet.cli(creation(&fleet, &given))?.deadline(DEADLINE).run().await.map(drop)
}

/// Others that take something on the same node in the same moment are no reason to refuse.
#[tokio::test]
async fn clusters_that_are_asked_for_at_the_same_moment_are_all_begun() -> anyhow::Result<()> {
    let fleet = small().await?;
    let begun = (0_u16..4).map(|number| {
        let (name, port) = (format!("c{number}"), (5500 + number).to_string());
        let fleet = &fleet;
        async move {
            let create = ["cluster", "create", &name, "--engine", "postgresql", "--nodes", "n1"];
            let create = create.into_iter().chain(["--port", &port, "--detach"]).chain(fleet.unfiltered());
            fleet.cli(create)?.deadline(DEADLINE).run().await
        }
    });
    futures::future::try_join_all(begun).await?;
    ensure!(operations(&fleet).await?.len() == 4, "not all of them were begun");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_a_command_line_is_told_as_the_command_line_asks() -> anyhow::Result<()> {
    let fleet = small().await?;
    for words in
        [&["node", "show"][..], &["node", "frobnicate"], &["cluster", "create", "x", "--port", "many"]]
    {
        let (code, error) = refused(&fleet, words).await?;
        ensure!(
            code == 2 && error["reason"] == "USAGE" && error["exit_code"] == 2,
            "{words:?}: it is {error}"
        );
    }
    let (code, error) = refused(&fleet, &["node", "token", "create", "--uses", "0"]).await?;
    ensure!(code == 2 && fields(&error) == ["uses"], "it is {error}");
    for (words, name) in [
        (["event", "list", "--cluster", "c9"], "c9"),
        (["event", "list", "--node", "n9"], "n9"),
        (["operation", "list", "--resource", "clusters/c9"], "c9"),
    ] {
        let (code, error) = refused(&fleet, &words).await?;
        ensure!(code == 3 && error.to_string().contains(name), "{words:?}: it is {error}");
    }
    let (code, error) = refused(&fleet, &["node", "token", "create", "--node", "n1"]).await?;
    ensure!(code == 2 && fields(&error) == ["node_name"], "it is {error}");
    let (code, error) = refused(&fleet, &["node", "watch", "n9"]).await?;
    ensure!(code == 3 && error["reason"] == "NODE_NOT_FOUND", "it is {error}");
    Ok(())
}
