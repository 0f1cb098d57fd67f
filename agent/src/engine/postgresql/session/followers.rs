//! Who receives from this server.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use holdfast_common::id::NodeId;
use holdfast_common::report::Follower;
use tokio_postgres::{Client, Row, Statement};

use super::super::render::REPLICATION_USER;
use super::unsigned;

const FOLLOWERS: &str = "
select application_name, (flush_lsn - '0/0')::int8, sync_state, state
  from pg_stat_replication where usename = $1 order by application_name limit 64";

pub(super) async fn prepare(client: &Client) -> Result<Statement, tokio_postgres::Error> {
    client.prepare(FOLLOWERS).await
}

pub(super) async fn followers(
    client: &Client,
    prepared: &Statement,
) -> Result<Vec<Follower>, tokio_postgres::Error> {
    let rows = client.query(prepared, &[&REPLICATION_USER]).await?;
    let found: Vec<Follower> =
        rows.iter().filter_map(|row| follower(row).transpose()).collect::<Result<_, _>>()?;
    Ok(one_each(found))
}

fn follower(row: &Row) -> Result<Option<Follower>, tokio_postgres::Error> {
    let name: String = row.try_get(0)?;
    let Ok(node_id) = name.parse::<NodeId>() else { return Ok(None) };
    let (synchronous, state): (Option<String>, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
    Ok(Some(Follower {
        node_id,
        flushed_offset: row.try_get::<_, Option<i64>>(1)?.and_then(unsigned),
        synchronous: matches!(synchronous.as_deref(), Some("quorum" | "sync")),
        streaming: state.as_deref() == Some("streaming"),
    }))
}

/// A node has several connections where an old one is not known to be dead, or somebody copies by hand with the replica's own
/// name: one that streams stands for it, and of such the one that has flushed least.
fn one_each(found: Vec<Follower>) -> Vec<Follower> {
    let mut nodes: BTreeMap<NodeId, Follower> = BTreeMap::new();
    for one in found {
        match nodes.entry(one.node_id) {
            Entry::Vacant(entry) => drop(entry.insert(one)),
            Entry::Occupied(mut entry) => {
                let rank = |follower: &Follower| (!follower.streaming, follower.flushed_offset);
                if rank(&one) < rank(entry.get()) {
                    entry.insert(one);
                }
            }
        }
    }
    nodes.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_several_connections_is_one_follower_with_what_is_sure() {
        let [a, b] = [1, 2].map(|number| NodeId::from_uuid(uuid::Uuid::from_u128(number)));
        let follower = |node_id, flushed_offset, streaming| Follower {
            node_id,
            flushed_offset,
            synchronous: streaming,
            streaming,
        };
        let copies = follower(a, None, false);
        let (behind, ahead) = (follower(a, Some(7), true), follower(a, Some(9), true));
        let other = follower(b, Some(8), true);
        for order in [[&copies, &behind, &ahead, &other], [&other, &ahead, &behind, &copies]] {
            let found = order.into_iter().cloned().collect();
            assert_eq!(one_each(found), [behind.clone(), other.clone()]);
        }
        assert_eq!(one_each(vec![copies.clone()]), [copies]);
    }
}
