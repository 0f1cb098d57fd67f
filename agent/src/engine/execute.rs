//! The engines of this node, and who may work on which member: each member has one lock, that a command holds from its
//! beginning to its end and a converge round only while it executes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use holdfast_common::command::{Outcome, Payload, Success};
use holdfast_common::engine::Engine as Kind;
use holdfast_common::error::{Classify, Failure};
use holdfast_common::id::ClusterId;
use holdfast_common::protocol::Tail;
use holdfast_common::question::{Answer, Question};
use tokio::sync::{OwnedMutexGuard, watch};

use super::{Around, Engine, Error, LocalMember, Resynced, Work};

/// The engines of this node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Engines {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    engines: Vec<Arc<dyn Engine>>,
    locks: Mutex<BTreeMap<ClusterId, Arc<tokio::sync::Mutex<()>>>>,
    building: Mutex<BTreeMap<ClusterId, &'static str>>,
    waker: Waker,
    around: OnceLock<Around>,
}

/// Has all members looked at now, not only at their next time. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Waker {
    count: watch::Sender<u64>,
}

/// The right to work on one member, until it is dropped.
#[derive(Debug)]
pub struct Held {
    _guard: OwnedMutexGuard<()>,
}

/// Holds a member and marks it as being made or replaced, until it is dropped.
struct Building<'a> {
    inner: &'a Inner,
    cluster: ClusterId,
    held: Option<Held>,
}

// === impl Engines ===

impl Engines {
    pub fn new(engines: Vec<Arc<dyn Engine>>) -> Self {
        let waker = Waker::default();
        for engine in &engines {
            engine.set_waker(waker.clone());
        }
        Self { inner: Arc::new(Inner { engines, waker, ..Inner::default() }) }
    }

    /// Tells what is true around the members; until then no data are replaced. Once.
    pub fn set_amid(&self, around: Around) {
        let first = self.inner.around.set(around).is_ok();
        assert!(first, "the surroundings are told once");
    }

    /// # Errors
    /// `INVALID_FIELD` if this agent has no driver for it.
    pub fn of(&self, kind: Kind) -> Result<&Arc<dyn Engine>, Error> {
        self.all().find(|engine| engine.kind() == kind).ok_or(Error::UnknownEngine { engine: kind })
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Engine>> {
        self.inner.engines.iter()
    }

    /// All members that have data here, with their engines.
    ///
    /// # Errors
    /// If an engine cannot list them.
    pub async fn members(&self) -> Result<Vec<(Arc<dyn Engine>, LocalMember)>, Error> {
        let mut found = Vec::new();
        for engine in self.all() {
            found.extend(engine.members().await?.into_iter().map(|member| (Arc::clone(engine), member)));
        }
        Ok(found)
    }

    /// Waits for the right to work on a member.
    pub async fn hold(&self, cluster: ClusterId) -> Held {
        Held { _guard: self.lock_of(cluster).lock_owned().await }
    }

    /// The right to work on a member, unless a command or a round has it.
    pub fn try_hold(&self, cluster: ClusterId) -> Option<Held> {
        self.lock_of(cluster).try_lock_owned().ok().map(|guard| Held { _guard: guard })
    }

    /// The kind of the command that is making or removing the member's data now.
    pub fn building(&self, cluster: ClusterId) -> Option<&'static str> {
        self.inner.building.lock().unwrap_or_else(PoisonError::into_inner).get(&cluster).copied()
    }

    /// Changes whenever a server has ended by itself, or a command that made, replaced or removed a member's data.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.inner.waker.count.subscribe()
    }

    /// Runs a command's payload to its end. Term, journal and deadline are looked after by the caller.
    ///
    /// # Cancel safety
    /// Cancel through `work`; a dropped future leaves what a repeat of the same command begins again.
    pub async fn execute(&self, payload: &Payload, work: &Work) -> Outcome {
        self.run(payload, work).await.map_err(|error| error.to_failure())
    }

    async fn run(&self, payload: &Payload, work: &Work) -> Result<Success, Error> {
        match payload {
            Payload::CheckMember(request) => {
                Ok(Success::CheckMember(self.of(request.engine)?.check(request).await?))
            }
            Payload::InstallEngine(request) => {
                let installed_version = self.of(request.engine)?.install(request, work).await?;
                Ok(Success::InstallEngine { installed_version })
            }
            Payload::UpgradeEngine(request) => {
                let installed_build = self.of(request.engine)?.upgrade(request, work).await?;
                Ok(Success::UpgradeEngine { installed_build })
            }
            Payload::InitialiseMember(request) => {
                let engine = self.of(request.member.engine)?;
                let _building = self.build(request.member.cluster_id, payload.kind(), work).await?;
                let system_identifier = engine.initialise(request, work).await?;
                Ok(Success::InitialiseMember { system_identifier })
            }
            Payload::CloneMember(request) => {
                let engine = self.of(request.member.engine)?;
                let _building = self.build(request.member.cluster_id, payload.kind(), work).await?;
                let copied = engine.copy_from(request, work).await?;
                Ok(Success::CloneMember {
                    system_identifier: copied.system_identifier,
                    copied_bytes: copied.bytes,
                })
            }
            Payload::ResyncMember(request) => {
                let engine = self.of(request.member.engine)?;
                let _building = self.build(request.member.cluster_id, payload.kind(), work).await?;
                let work = self
                    .inner
                    .around
                    .get()
                    .map_or_else(|| work.clone(), |around| work.amid(Arc::clone(around)));
                let Resynced { how, system_identifier, copied_bytes, set_aside_bytes } =
                    engine.resync(request, &work).await?;
                Ok(Success::ResyncMember { how, system_identifier, copied_bytes, set_aside_bytes })
            }
            Payload::RestartMember(request) => {
                let engine = self.of(request.member.engine)?;
                let _building = self.build(request.member.cluster_id, payload.kind(), work).await?;
                super::restart::replica(engine.as_ref(), &request.member, work).await?;
                Ok(Success::RestartMember)
            }
            Payload::DestroyMember(request) => {
                let _building = self.build(request.cluster_id, payload.kind(), work).await?;
                let mut removed = false;
                for engine in self.all() {
                    removed |= engine.destroy(request, work).await?;
                }
                Ok(Success::DestroyMember { removed })
            }
            // Of the node as a whole: it is no engine's.
            Payload::RebootNode(_) => Err(Error::Wrong {
                deed: payload.kind().to_owned(),
                problem: "no engine reboots a node".to_owned(),
            }),
            // It takes long and changes nothing: whoever wants to stop the member need not wait for it.
            Payload::CheckpointMember(request) => {
                self.holder(request.cluster_id).await?.checkpoint(request.cluster_id).await?;
                Ok(Success::CheckpointMember)
            }
            Payload::RetuneMember(request) => {
                let _held = self.hold_for(request.cluster_id, work).await?;
                let budget = self.holder(request.cluster_id).await?.retune(request).await?;
                Ok(Success::RetuneMember { budget })
            }
            Payload::SetPassword(request) => {
                let _held = self.hold_for(request.cluster_id, work).await?;
                self.holder(request.cluster_id).await?.set_password(request).await?;
                Ok(Success::SetPassword)
            }
        }
    }

    /// Answers what is asked of a member.
    pub async fn answer(&self, cluster: ClusterId, question: &Question) -> Result<Answer, Failure> {
        let answer = async {
            let engine = self.holder(cluster).await?;
            match question {
                Question::SetAside(question) => engine.set_aside(cluster, question).await.map(Into::into),
                Question::Upgrades => engine.upgrades(cluster).await.map(Answer::Upgrades),
                Question::Retuning => engine.retuning(cluster).await.map(Answer::Retuning),
            }
        };
        answer.await.map_err(|error: Error| error.to_failure())
    }

    /// Ends the member's process at once, whatever else is being done to it.
    ///
    /// # Errors
    /// If it may still run.
    pub async fn halt(&self, cluster: ClusterId) -> Result<(), Error> {
        match self.holder(cluster).await {
            Ok(engine) => engine.halt(cluster).await,
            Err(Error::Absent { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Stops a member's primary for another to take over, and says where its log ends. `wanted` is asked once nobody else works on the
    /// member: it may have been started again by then.
    ///
    /// # Errors
    /// Those of [`Engine::rest`]; `ENGINE_UNAVAILABLE` where it is not wanted any more.
    pub async fn rest(&self, cluster: ClusterId, wanted: impl Fn() -> bool) -> Result<Tail, Error> {
        let _held = self.hold(cluster).await;
        if !wanted() {
            return Err(Error::NotNow { why: "it is to run again".to_owned() });
        }
        self.holder(cluster).await?.rest(cluster).await
    }

    /// Has a replica receive from nobody any more, and says where its log ends.
    ///
    /// # Errors
    /// Those of [`Engine::seal`].
    pub async fn seal(&self, cluster: ClusterId) -> Result<Tail, Error> {
        let _held = self.hold(cluster).await;
        self.holder(cluster).await?.seal(cluster).await
    }

    /// The engine that has the member's data.
    async fn holder(&self, cluster: ClusterId) -> Result<Arc<dyn Engine>, Error> {
        let found = self.members().await?.into_iter().find(|(_, member)| member.cluster_id == cluster);
        found.map(|(engine, _)| engine).ok_or(Error::Absent { cluster })
    }

    async fn hold_for(&self, cluster: ClusterId, work: &Work) -> Result<Held, Error> {
        // Both arms are cancel-safe: nothing is lost with an unfinished wait for a lock.
        tokio::select! {
            held = self.hold(cluster) => Ok(held),
            () = work.cancelled.cancelled() => Err(Error::Cancelled { deed: "wait for the member".to_owned() }),
        }
    }

    async fn build(
        &self,
        cluster: ClusterId,
        kind: &'static str,
        work: &Work,
    ) -> Result<Building<'_>, Error> {
        let held = Some(self.hold_for(cluster, work).await?);
        let inner = self.inner.as_ref();
        inner.building.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster, kind);
        Ok(Building { inner, cluster, held })
    }

    fn lock_of(&self, cluster: ClusterId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.inner.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks that nobody has are made anew when they are wanted: their number stays bounded by the work going on.
        locks.retain(|id, lock| *id == cluster || Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(cluster).or_default())
    }
}

// === impl Waker ===

impl Waker {
    pub fn wake(&self) {
        self.count.send_modify(|count| *count = count.wrapping_add(1));
    }
}

// === impl Building ===

impl Drop for Building<'_> {
    fn drop(&mut self) {
        self.inner.building.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.cluster);
        drop(self.held.take());
        self.inner.waker.wake();
    }
}

/// An error as the outcome of a command.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        error.to_failure()
    }
}
