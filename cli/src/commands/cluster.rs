//! `holdfast cluster …`

use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1;
use serde_json::json;

use super::{Session, interrupted, lease, members, next_page, roles, set_aside};
use crate::args::{Cluster, Durability, Engine, LeaseProfile};
use crate::client::request_id;
use crate::error::Error;
use crate::output::{self, json, or_dash, plain};

pub(super) async fn run(session: &mut Session, command: Cluster) -> Result<(), Error> {
    match command {
        Cluster::Create { .. } => create(session, command).await,
        Cluster::List => list(session).await,
        Cluster::Show { name } => {
            let answer = session.client().await?.get_cluster(v1::GetClusterRequest { name }).await?;
            let cluster = answer.cluster.ok_or(Error::Incomplete("cluster"))?;
            if session.out.is_json() {
                return Ok(session.out.json(&json::cluster(&cluster))?);
            }
            show(session, &cluster)
        }
        Cluster::Watch { name } => watch(session, name).await,
        Cluster::Delete { .. } | Cluster::AddMember { .. } | Cluster::RemoveMember { .. } => {
            change(session, command).await
        }
        Cluster::Promote { .. }
        | Cluster::Failover { .. }
        | Cluster::Resync { .. }
        | Cluster::Restart { .. }
        | Cluster::Upgrade { .. }
        | Cluster::Pause { .. }
        | Cluster::Resume { .. }
        | Cluster::Set { .. } => roles::run(session, command).await,
        Cluster::SetAside(command) => set_aside::run(session, command).await,
        Cluster::Connection { cluster, reveal_password, uri } => {
            let request = v1::GetConnectionRequest { cluster: cluster.clone(), reveal_password };
            let answer = session.client().await?.get_connection(request).await?;
            let shown = answer.connection.ok_or(Error::Incomplete("connection"))?;
            if uri && !session.out.is_json() {
                return Ok(session.out.line(shown.uri)?);
            }
            connection(session, &cluster, &shown)
        }
        Cluster::ResetPassword { cluster } => {
            let request = v1::ResetPasswordRequest { cluster: cluster.clone(), request_id: request_id() };
            let answer = session.client().await?.reset_password(request).await?;
            connection(session, &cluster, &answer.connection.ok_or(Error::Incomplete("connection"))?)
        }
    }
}

/// Changes of a cluster that there is.
async fn change(session: &mut Session, command: Cluster) -> Result<(), Error> {
    let request_id = request_id();
    match command {
        Cluster::Delete { name, confirm, force, run } => {
            let deed = "stops the cluster and removes its data on every node";
            let confirm =
                if run.plan.plan { name.clone() } else { session.confirmed(&name, confirm, deed)? };
            let done = format!("Cluster {name} is gone, and so are its data.");
            let request =
                v1::DeleteClusterRequest { name, confirm, force, request_id, validate_only: run.plan.plan };
            match session
                .client()
                .await?
                .delete_cluster(request)
                .await?
                .outcome
                .ok_or(Error::Incomplete("outcome"))?
            {
                v1::delete_cluster_response::Outcome::Plan(plan) => session.plan(&plan),
                v1::delete_cluster_response::Outcome::Operation(operation) => {
                    session.follow(operation, run, &done).await
                }
            }
        }
        Cluster::AddMember { cluster, node, run } => {
            let done = format!(
                "Node {node} is a replica of {cluster}. See it with: holdfast cluster show {cluster}"
            );
            let request = v1::AddMemberRequest { cluster, node, request_id, validate_only: run.plan.plan };
            match session
                .client()
                .await?
                .add_member(request)
                .await?
                .outcome
                .ok_or(Error::Incomplete("outcome"))?
            {
                v1::add_member_response::Outcome::Plan(plan) => session.plan(&plan),
                v1::add_member_response::Outcome::Operation(operation) => {
                    session.follow(operation, run, &done).await
                }
            }
        }
        Cluster::RemoveMember { cluster, node, confirm, force, run } => {
            let deed = "removes the replica and its data";
            let confirm =
                if run.plan.plan { node.clone() } else { session.confirmed(&node, confirm, deed)? };
            let done = format!("Node {node} is no longer a member of {cluster}.");
            let request = v1::RemoveMemberRequest {
                cluster,
                node,
                confirm,
                force,
                request_id,
                validate_only: run.plan.plan,
            };
            match session
                .client()
                .await?
                .remove_member(request)
                .await?
                .outcome
                .ok_or(Error::Incomplete("outcome"))?
            {
                v1::remove_member_response::Outcome::Plan(plan) => session.plan(&plan),
                v1::remove_member_response::Outcome::Operation(operation) => {
                    session.follow(operation, run, &done).await
                }
            }
        }
        // `run` sends no others here.
        _other => Ok(()),
    }
}

/// 0 on the wire means the usual port, so a 0 that a person wrote is refused here.
fn port_or_default(option: &str, port: Option<u32>) -> Result<u32, Error> {
    match port {
        Some(0) => Err(Error::Usage(format!(
            "{option}: 0 is no port; give 1024–65535, or leave it out for the usual one"
        ))),
        port => Ok(port.unwrap_or(0)),
    }
}

/// The same key twice would be decided by chance.
pub(super) fn parameters(
    given: Vec<(String, String)>,
) -> Result<std::collections::HashMap<String, String>, Error> {
    let mut map = std::collections::HashMap::new();
    for (key, value) in given {
        if map.contains_key(&key) {
            return Err(Error::Usage(format!("--param: `{}` is given twice; give it once", plain(&key))));
        }
        map.insert(key, value);
    }
    Ok(map)
}

async fn create(session: &mut Session, command: Cluster) -> Result<(), Error> {
    let Cluster::Create {
        name,
        engine,
        engine_version,
        nodes,
        primary,
        durability,
        port,
        replication_port,
        gated_port,
        param,
        extension,
        allow_unfiltered,
        lease_profile,
        run,
    } = command
    else {
        return Ok(());
    };
    let Engine::Postgresql = engine;
    let durability = match durability {
        Durability::Async => nouns::Durability::Async,
        Durability::Quorum => nouns::Durability::Quorum,
    };
    let note = durability_note(durability, nodes.len());
    let request = v1::CreateClusterRequest {
        name: name.clone(),
        engine: nouns::Engine::Postgresql.into(),
        engine_version,
        nodes,
        primary,
        durability: durability.into(),
        port: port_or_default("--port", port)?,
        replication_port: port_or_default("--replication-port", replication_port)?,
        gated_ports: gated_port,
        parameters: parameters(param)?,
        extensions: extension,
        request_id: request_id(),
        validate_only: run.plan.plan,
        allow_unfiltered,
        lease_profile: profile(lease_profile).into(),
    };
    let outcome =
        session.client().await?.create_cluster(request).await?.outcome.ok_or(Error::Incomplete("outcome"))?;
    session.note(&note);
    match outcome {
        v1::create_cluster_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::create_cluster_response::Outcome::Operation(operation) => {
            let done = format!(
                "Cluster {name} is ready. Next:\n  holdfast cluster show {name}\n  holdfast cluster connection {name} --reveal-password"
            );
            session.follow(operation, run, &done).await
        }
    }
}

/// What the durability means when a replica dies, said before anybody relies on it.
fn durability_note(durability: nouns::Durability, members: usize) -> String {
    let needed = members / 2;
    let replicas = members.saturating_sub(1);
    let of_replicas = |count: usize| output::counted(count, "replica", "replicas");
    match durability {
        nouns::Durability::Unspecified | nouns::Durability::Async if replicas == 0 => {
            "One member: there is no copy of the data; backups are all that survives the loss of this node.".to_owned()
        }
        nouns::Durability::Unspecified | nouns::Durability::Async => format!(
            "Durability async: a commit waits for the primary only. If the primary is lost, the last instants of commits may be \
             lost with it. Dead replicas ({replicas} of {replicas}) do not hold up writes."
        ),
        nouns::Durability::Quorum if replicas == 0 => {
            "Durability quorum with one member: there is nobody to wait for yet; it takes effect with the second member.".to_owned()
        }
        nouns::Durability::Quorum => {
            let spare = replicas - needed;
            let dead = if spare == 0 {
                "with one replica dead, writes WAIT for some 10 s, then go on with the primary alone until it is back".to_owned()
            } else {
                format!(
                    "with up to {} dead, writes go on; with more at once, they WAIT for some 10 s, then go on with those that are left",
                    of_replicas(spare)
                )
            };
            format!("Durability quorum: a commit waits for the primary and {} of {replicas}: {dead}.", of_replicas(needed))
        }
    }
}

async fn list(session: &mut Session) -> Result<(), Error> {
    let client = session.client().await?;
    let mut clusters = Vec::new();
    let mut page = Some(String::new());
    while let Some(page_token) = page {
        let answer = client.list_clusters(v1::ListClustersRequest { page_size: 1000, page_token }).await?;
        clusters.extend(answer.clusters);
        page = next_page(answer.next_page_token);
    }
    if session.out.is_json() {
        let all: Vec<_> = clusters.iter().map(json::cluster).collect();
        return Ok(session.out.json(&json!({"clusters": all}))?);
    }
    let now = session.out.now;
    let rows = clusters.iter().map(|cluster| {
        vec![
            cluster.name.clone(),
            engine(cluster),
            state(cluster),
            or_dash(Some(cluster.primary_node.clone())),
            cluster.members.len().to_string(),
            or_dash(output::word(cluster.durability().as_str_name(), "DURABILITY_")),
            cluster.port.to_string(),
            output::distance(now, cluster.create_time.as_ref()),
        ]
    });
    let rows = rows.collect();
    Ok(session
        .out
        .table(&["NAME", "ENGINE", "STATE", "PRIMARY", "MEMBERS", "DURABILITY", "PORT", "AGE"], rows)?)
}

fn engine(cluster: &v1::Cluster) -> String {
    let name = output::word(cluster.engine().as_str_name(), "ENGINE_").unwrap_or_default();
    format!("{name} {}", cluster.engine_version).trim().to_owned()
}

fn state(cluster: &v1::Cluster) -> String {
    output::word(cluster.state().as_str_name(), "CLUSTER_STATE_").unwrap_or_else(|| "unknown".to_owned())
}

fn show(session: &mut Session, cluster: &v1::Cluster) -> Result<(), Error> {
    let durability = or_dash(output::word(cluster.durability().as_str_name(), "DURABILITY_"));
    let durability = match cluster.durability() {
        nouns::Durability::Quorum => {
            format!("{durability} (a commit waits for {} of the replicas)", cluster.synchronous_count)
        }
        nouns::Durability::Async | nouns::Durability::Unspecified => durability,
    };
    let why = if cluster.message.is_empty() { String::new() } else { format!(" ({})", cluster.message) };
    let mut parameters: Vec<_> =
        cluster.parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
    parameters.sort();
    session.out.facts(&[
        ("name", cluster.name.clone()),
        ("engine", engine(cluster)),
        ("state", format!("{}{why}", state(cluster))),
        ("term", cluster.term.to_string()),
        ("primary", or_dash(Some(cluster.primary_node.clone()))),
        ("durability", durability),
        ("lease", cluster.lease.as_ref().map(|it| lease::lease(it, session.out.now)).unwrap_or_default()),
        ("failover", cluster.lease.as_ref().map(lease::failover).unwrap_or_default()),
        ("automatic", automatic(cluster)),
        ("port", ports(cluster)),
        ("extensions", cluster.extensions.join(", ")),
        ("parameters", parameters.join(", ")),
        ("operation", cluster.operation_id.clone()),
    ])?;
    session.out.line("")?;
    let (header, rows) = members::table(cluster, session.out.is_wide(), session.out.now);
    Ok(session.out.table(&header, rows)?)
}

/// What happens without a person.
fn automatic(cluster: &v1::Cluster) -> String {
    if let Some(pause) = &cluster.pause {
        let why = if pause.reason.is_empty() { String::new() } else { format!(": {}", pause.reason) };
        return format!("no failover: paused by {}{why}", pause.by);
    }
    let lag = match cluster.durability() {
        nouns::Durability::Quorum => String::new(),
        nouns::Durability::Async | nouns::Durability::Unspecified => {
            format!(" that loses at most {}", output::bytes(cluster.max_lag_on_failover_bytes))
        }
    };
    let loss = match (cluster.durability(), cluster.on_replica_loss()) {
        (nouns::Durability::Quorum, v1::OnReplicaLoss::Shrink) => {
            "; a lost replica leaves the quorum after 10 s"
        }
        (nouns::Durability::Quorum, v1::OnReplicaLoss::Block) => "; with a lost replica writes may wait",
        _ => "",
    };
    format!("failover{lag}{loss}")
}

/// Such as `5432, with 6432; members replicate at 15432`.
fn ports(cluster: &v1::Cluster) -> String {
    let mut text = cluster.port.to_string();
    if !cluster.gated_ports.is_empty() {
        let gated: Vec<String> = cluster.gated_ports.iter().map(ToString::to_string).collect();
        text.push_str(&format!(", with {}", gated.join(", ")));
    }
    if cluster.replication_port != 0 {
        text.push_str(&format!("; members replicate at {}", cluster.replication_port));
    }
    text
}

fn connection(session: &mut Session, cluster: &str, connection: &v1::Connection) -> Result<(), Error> {
    if session.out.is_json() {
        return Ok(session.out.json(&json::connection(cluster, connection))?);
    }
    session.out.facts(&[
        ("uri", connection.uri.clone()),
        ("for readers", connection.read_uri.clone()),
        ("user", connection.user.clone()),
        ("database", connection.database.clone()),
        ("password", connection.password.clone()),
    ])?;
    if !connection.password.is_empty() {
        session.note(&format!(
            "The password is shown only now. A new one: holdfast cluster reset-password {cluster}"
        ));
    } else if connection.password_shown_before {
        session.note(&format!(
            "The password was shown before and is not shown again. A new one: holdfast cluster reset-password {cluster}"
        ));
    } else {
        session.note("The password has not been shown yet: --reveal-password shows it, once.");
    }
    Ok(())
}

async fn watch(session: &mut Session, name: String) -> Result<(), Error> {
    let mut watch = session.client().await?.watch_cluster(v1::WatchClusterRequest { name }).await?;
    loop {
        // Both arms are cancel-safe.
        let next = tokio::select! {
            next = watch.next() => next?,
            () = interrupted() => return Ok(()),
        };
        let Some(cluster) = next.and_then(|answer| answer.cluster) else {
            session.note("The cluster is gone.");
            return Ok(());
        };
        if session.out.is_json() {
            session.out.json_line(&json::cluster(&cluster))?;
            continue;
        }
        if session.out.is_terminal() {
            session.out.raw(b"\x1b[H\x1b[2J")?;
        }
        show(session, &cluster)?;
        session.out.line("")?;
        session.out.raw(b"")?;
    }
}

/// How patient leases are to be.
pub(super) fn profile(profile: LeaseProfile) -> nouns::LeaseProfile {
    match profile {
        LeaseProfile::Default => nouns::LeaseProfile::Default,
        LeaseProfile::Fast => nouns::LeaseProfile::Fast,
        LeaseProfile::Wide => nouns::LeaseProfile::Wide,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_replica_means_is_said() {
        let notes: Vec<_> = [
            (nouns::Durability::Quorum, 1),
            (nouns::Durability::Quorum, 2),
            (nouns::Durability::Quorum, 3),
            (nouns::Durability::Quorum, 5),
            (nouns::Durability::Async, 1),
            (nouns::Durability::Async, 3),
        ]
        .into_iter()
        .map(|(durability, members)| format!("{members}: {}", durability_note(durability, members)))
        .collect();
        insta::assert_snapshot!(notes.join("\n"));
    }

    #[test]
    fn a_parameter_given_twice_and_port_zero_are_refused() {
        let twice = parameters(vec![("a".into(), "1".into()), ("a".into(), "2".into())]);
        assert_eq!(twice.unwrap_err().to_string(), "--param: `a` is given twice; give it once");
        assert!(port_or_default("--port", Some(0)).unwrap_err().to_string().starts_with("--port"));
    }
}
