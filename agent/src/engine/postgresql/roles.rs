//! Changing a member's role: made primary, sealed, stopped for another to take over, made a replica again.
//!
//! Each term is written into the data when its primary begins, so that a log tells by itself in which term it was written:
//! timelines cannot, because two primaries that nobody followed may have begun the same one.

use std::time::Duration;

use holdfast_common::assignment::{MemberAssignment, Peer, RoleAssignment};
use holdfast_common::id::ClusterId;
use holdfast_common::position::Position;
use holdfast_common::protocol::Tail;
use holdfast_common::role::Role;
use holdfast_common::term::Term;
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::history::Relation;
use super::layout::{Layout, Marker};
use super::render::Place;
use super::session::{BeforeLeading, CutOff, NoAnswer, Session};
use super::{Inner, control, process};
use crate::engine::Error;
use crate::host::files::Access;

/// How long a replica may take to leave recovery, or to let go of its primary and replay what it has.
const ROLE_DEADLINE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(3);
/// How long a replica that has just been told whom to follow is helped to find it, and how often.
const HELPED: Duration = Duration::from_secs(1);
const HELP_PAUSE: Duration = Duration::from_millis(10);
/// Between two looks at a server that becomes primary: clients wait for it.
const BRIEFLY: Duration = Duration::from_millis(2);
/// A checkpoint may have to write all of the server's memory.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(10 * 60);

const MAX_SEAL_BYTES: u64 = 4096;
const SEALED: &str = "# Written by Holdfast: this replica receives from nobody until it is told whom to follow.\n\
                      primary_conninfo = ''\n";
const OPEN: &str = "# Written by Holdfast: this member is not sealed.\n";

/// How a replica without a receiver was found.
#[derive(Debug, Default)]
struct Looks {
    before: Option<CutOff>,
    /// Since when it waits for the rest of a record, and where that begins.
    waits: Option<(u64, Instant)>,
}

// === impl Looks ===

impl Looks {
    /// Where its log ends, once that is sure: twice the same. A log may end within a record, whose rest nobody sent: it counts up to there, once the server has looked
    /// for more, in vain, since nobody sends.
    fn end_of_log(&mut self, found: Option<CutOff>, now: Instant) -> Option<u64> {
        let before = std::mem::replace(&mut self.before, found);
        let Some(found) = found else {
            self.waits = None;
            return None;
        };
        if found.replayed >= found.received {
            return before.filter(|before| before.replayed == found.replayed).map(|same| same.replayed);
        }
        if self.waits.is_none_or(|(offset, _)| offset != found.replayed) {
            self.waits = found.waits.then_some((found.replayed, now));
        }
        let (offset, since) = self.waits.filter(|_| found.waits)?;
        (now.duration_since(since) >= 2 * found.looks_every).then_some(offset)
    }
}

impl Inner {
    /// Out of recovery, where it is in it; then its term. Whatever can be done later is: clients wait for this.
    pub(super) async fn lead(&self, member: &MemberAssignment) -> Result<(), Error> {
        let cluster = member.cluster_id;
        let failed = |why: NoAnswer| why.during("promote");
        let session = self.session(cluster).await.map_err(failed)?;
        let before = session.before_leading().await.map_err(failed)?;
        if !before.waits {
            // Not a replica's own configuration: it would acknowledge what nobody else has.
            self.configure(member).await?;
        }
        let (promoted, configured, _or_in_the_next_round) =
            tokio::join!(promoted(&session, before), self.configure(member), self.admit(member));
        promoted?;
        configured?;
        let layout = self.layout(cluster);
        // A seal is about whom a replica receives from: on a primary it means nothing, so neither waits for the other.
        let (begun, lifted) = tokio::join!(
            session.begin_term(member.term, self.settings.node_id, before),
            self.lift_seal(&layout)
        );
        if begun.is_err() {
            // It may be left in the middle of writing it.
            self.forget(cluster);
        }
        begun.map_err(failed)?;
        lifted
    }

    /// Receives from nobody any more, and tells where its log ends once all of it is replayed.
    pub(super) async fn seal(&self, cluster: ClusterId) -> Result<Tail, Error> {
        let deed = "seal";
        let (layout, _) = self.complete(cluster).await?;
        let written =
            self.host.files().write(layout.sealed(), SEALED.as_bytes().to_vec(), Access::PUBLIC).await;
        written.map_err(|error| Error::failed(deed, error))?;
        // A receiver that is begun in this moment, by what the server went by before, cannot prove itself: whoever is not seen from here
        // on receives nothing.
        let removed = self.host.files().remove_file(layout.receiver_key()).await;
        removed.map_err(|error| Error::failed(deed, error))?;
        let session = self.session(cluster).await.map_err(|why| why.during(deed))?;
        session.ask_to_reload().await.map_err(|why| why.during(deed))?;
        let until = Instant::now() + ROLE_DEADLINE;
        let mut looks = Looks::default();
        loop {
            let found = session.cut_off().await.map_err(|why| why.during(deed))?;
            if let Some(offset) = looks.end_of_log(found, Instant::now()) {
                let (term, era) = session.term().await.map_err(|why| why.during(deed))?;
                return Ok(Tail { term: term.max(Term::FIRST), position: Position { era, offset } });
            }
            past(until, deed)?;
            sleep(PAUSE).await;
        }
    }

    /// Stops a primary in such a way that whoever receives from it has all of its log, and waits until nothing of it writes or sends any
    /// more.
    pub(super) async fn rest(&self, cluster: ClusterId) -> Result<Tail, Error> {
        let deed = "stop for a switchover";
        let (layout, _) = self.complete(cluster).await?;
        let name = process::service_name(cluster)?;
        let kept = layout.resting();
        if !self.host.units().status(&name).await.is_running() {
            process::refuse_users(&layout.data()).await?;
        } else if !process::only_lets_go(&self.host, &layout).await {
            match self.session(cluster).await {
                Ok(session) => self.end_log(cluster, &session).await?,
                // In its very last moment, or in its first.
                Err(NoAnswer::Nobody) => self.stop(cluster).await?,
                Err(why) => return Err(why.during(deed)),
            }
        }
        let term = self.host.files().read(&kept, 64).await.map_err(|error| Error::failed(deed, error))?;
        let term = String::from_utf8_lossy(&term).parse().map(Term::new);
        let problem = "its term is not readable".to_owned();
        let term = term.map_err(|_| Error::Damaged { what: kept.display().to_string(), problem })?;
        let problem = "its log does not end with a clean stop".to_owned();
        let end = self.clean_end(&layout).await?;
        let position = end.ok_or_else(|| Error::Wrong { deed: deed.to_owned(), problem })?;
        Ok(Tail { term, position })
    }

    /// Its term is read back where it is already stopped, and asked again.
    async fn end_log(&self, cluster: ClusterId, session: &Session) -> Result<(), Error> {
        let layout = self.layout(cluster);
        let failed = |why: NoAnswer| why.during("stop for a switchover");
        let term = session.term().await.map_err(failed)?.0.max(Term::FIRST);
        let text = term.to_string().into_bytes();
        let written = self.host.files().write(layout.resting(), text, Access::PUBLIC).await;
        written.map_err(|error| Error::failed("stop for a switchover", error))?;
        // Whoever else receives could hold the stop up.
        session.end_strangers().await.map_err(failed)?;
        self.forget(cluster);
        process::end_log(&self.host, &layout, &process::service_name(cluster)?).await
    }

    /// Writes out what the server has in memory, so that a stop that follows is short.
    pub(super) async fn checkpoint(&self, cluster: ClusterId) -> Result<(), Error> {
        let deed = "checkpoint";
        self.complete(cluster).await?;
        // One of its own: on the kept one it would be in the way of looking.
        let session = self.connect(cluster).await.map_err(|why| why.during(deed))?;
        match tokio::time::timeout(CHECKPOINT_DEADLINE, session.checkpoint()).await {
            Ok(done) => done.map_err(|why| why.during(deed)),
            Err(_) => Err(Error::TimedOut { deed: deed.to_owned(), seconds: CHECKPOINT_DEADLINE.as_secs() }),
        }
    }

    /// Makes it a replica of the assignment's upstream. Data that were a primary's only if the upstream has all of their log.
    pub(super) async fn follow(&self, member: &MemberAssignment) -> Result<(), Error> {
        let deed = "follow";
        let RoleAssignment::Replica { upstream } = &member.role else {
            let message = "is no replica's".to_owned();
            return Err(Error::Field { field: "role".to_owned(), message });
        };
        let (layout, marker) = self.complete(member.cluster_id).await?;
        // Before a seal is lifted: else a server that starts in between would receive from whom it followed before.
        self.write_configuration(member, &marker, Place::Data).await?;
        if self.data_role(&layout).await != Some(Role::Replica) {
            let name = process::service_name(member.cluster_id)?;
            if process::only_lets_go(&self.host, &layout).await {
                self.stop(member.cluster_id).await?;
            }
            if self.host.units().status(&name).await.is_running() {
                let why = "its server runs as primary; it is stopped first".to_owned();
                return Err(Error::WouldDestroyData { why });
            }
            process::refuse_users(&layout.data()).await?;
            self.is_prefix(member, &marker, &layout, upstream).await?;
            let access = Access { mode: 0o600, owner: self.owner()? };
            let signal = layout.data().join("standby.signal");
            let written = self.host.files().write(signal, Vec::new(), access).await;
            written.map_err(|error| Error::failed(deed, error))?;
            let removed = self.host.files().remove_file(layout.resting()).await;
            removed.map_err(|error| Error::failed(deed, error))?;
        }
        self.unseal(&layout).await?;
        self.configure(member).await?;
        let name = process::service_name(member.cluster_id)?;
        if self.host.units().status(&name).await.is_running() {
            // It follows without this too, if later.
            let _or_not = tokio::time::timeout(HELPED, self.help_to_find(member.cluster_id)).await;
        }
        Ok(())
    }

    /// A server waits after each failed try to receive, and fails until the new primary has left recovery and made its slots: a
    /// reload ends that wait. In quorum mode clients wait for this.
    async fn help_to_find(&self, cluster: ClusterId) -> Result<(), NoAnswer> {
        let session = self.session(cluster).await?;
        while !session.streams().await? {
            session.reload().await?;
            sleep(HELP_PAUSE).await;
        }
        Ok(())
    }

    /// A replica may receive again.
    pub(super) async fn unseal(&self, layout: &Layout) -> Result<(), Error> {
        self.lift_seal(layout).await?;
        let key = Zeroizing::new(self.credentials.borrow().key.as_bytes().to_vec());
        let access = Access { mode: 0o600, owner: self.owner()? };
        let written = self.host.files().write(layout.receiver_key(), key.to_vec(), access).await;
        written.map_err(|error| Error::failed("lift the seal", error))
    }

    async fn lift_seal(&self, layout: &Layout) -> Result<(), Error> {
        let written =
            self.host.files().write(layout.sealed(), OPEN.as_bytes().to_vec(), Access::PUBLIC).await;
        written.map_err(|error| Error::failed("lift the seal", error))
    }

    /// Makes the file that says so where there is none: without it the server complains at each start.
    pub(super) async fn ensure_seal_file(&self, layout: &Layout) -> Result<(), Error> {
        let failed = |error| Error::failed("look at the seal", error);
        match self.host.files().stat(layout.sealed()).await.map_err(failed)? {
            Some(_) => Ok(()),
            None => self.lift_seal(layout).await,
        }
    }

    /// Whether it is to receive from nobody.
    pub(super) async fn is_sealed(&self, layout: &Layout) -> bool {
        let found = self.host.files().read(layout.sealed(), MAX_SEAL_BYTES).await;
        found.is_ok_and(|found| found == SEALED.as_bytes())
    }

    /// Whether all of this log is in the upstream's too.
    async fn is_prefix(
        &self,
        member: &MemberAssignment,
        marker: &Marker,
        layout: &Layout,
        upstream: &Peer,
    ) -> Result<(), Error> {
        let unmet = |message: String| Err(Error::Unmet { check: "log_is_a_prefix", message });
        let Some(end) = self.clean_end(layout).await? else {
            return unmet(
                "its server did not stop cleanly, so its log may have more than the primary's".to_owned(),
            );
        };
        let said = self.ask_about_log(marker, layout, upstream).await?;
        let system = &said.system;
        if member.system_identifier.as_deref().is_some_and(|expected| expected != system) {
            return unmet(format!("{} has database system {system}, which is another", upstream.name));
        }
        match said.relation(&self.lines(layout, end.era).await, end) {
            Relation::Prefix => Ok(()),
            Relation::Beyond { more } => {
                unmet(format!("its log has {more} bytes that the primary's does not have"))
            }
            Relation::Unrelated => unmet(format!(
                "{} is on timeline {}, and this log on {}: neither continues the other",
                upstream.name, said.timeline, end.era
            )),
        }
    }

    /// Where the log of a stopped primary ends; none if it was not stopped cleanly.
    pub(super) async fn clean_end(&self, layout: &Layout) -> Result<Option<Position>, Error> {
        let path = layout.data().join("global/pg_control");
        let bytes = self.host.files().read(&path, control::MAX_BYTES).await;
        let bytes = bytes.map_err(|error| Error::failed("read the control file", error))?;
        Ok(control::clean_end(&bytes).map(|(era, offset)| Position { era, offset }))
    }
}

/// Out of recovery, where it is in it.
async fn promoted(session: &Session, before: BeforeLeading) -> Result<(), Error> {
    let failed = |why: NoAnswer| why.during("promote");
    let until = Instant::now() + ROLE_DEADLINE;
    if !before.is_replica {
        return Ok(());
    }
    session.promote().await.map_err(failed)?;
    while session.is_replica().await.map_err(failed)? {
        past(until, "promote")?;
        sleep(BRIEFLY).await;
    }
    Ok(())
}

fn past(until: Instant, deed: &str) -> Result<(), Error> {
    if Instant::now() < until {
        return Ok(());
    }
    Err(Error::TimedOut { deed: deed.to_owned(), seconds: ROLE_DEADLINE.as_secs() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(200);

    fn found(received: u64, replayed: u64, waits: bool) -> Option<CutOff> {
        Some(CutOff { received, replayed, waits, looks_every: EVERY })
    }

    #[tokio::test]
    async fn a_log_ends_where_it_was_found_to_end_twice() {
        let (mut looks, now) = (Looks::default(), Instant::now());
        assert_eq!(looks.end_of_log(found(9, 9, false), now), None);
        assert_eq!(looks.end_of_log(None, now), None, "it receives");
        assert_eq!(looks.end_of_log(found(12, 12, false), now), None);
        assert_eq!(looks.end_of_log(found(12, 12, true), now), Some(12));
    }

    #[tokio::test]
    async fn a_log_that_ends_within_a_record_ends_before_it_once_more_was_looked_for() {
        let (mut looks, begun) = (Looks::default(), Instant::now());
        assert_eq!(looks.end_of_log(found(12, 7, false), begun), None, "it replays");
        assert_eq!(looks.end_of_log(found(12, 7, false), begun + 9 * EVERY), None, "it still does");
        assert_eq!(looks.end_of_log(found(12, 7, true), begun + 9 * EVERY), None);
        assert_eq!(looks.end_of_log(found(12, 9, true), begun + 11 * EVERY), None, "it went on");
        assert_eq!(looks.end_of_log(found(12, 9, false), begun + 12 * EVERY), None, "it looks");
        assert_eq!(looks.end_of_log(found(12, 9, true), begun + 13 * EVERY), Some(9));
        assert_eq!(looks.end_of_log(None, begun + 13 * EVERY), None, "it receives again");
        assert_eq!(looks.end_of_log(found(12, 9, true), begun + 14 * EVERY), None);
    }
}
