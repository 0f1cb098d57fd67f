//! What is true of a member now: of its data, its process, its server.

use std::time::Duration;

use holdfast_common::id::ClusterId;
use holdfast_common::report::EngineState;
use holdfast_common::role::Role;
use tokio::time::Instant;

use super::layout::{Layout, Marker, State};
use super::render::Place;
use super::session::{NoAnswer, Session};
use super::{Inner, build, process, words};
use crate::engine::{Error, Observation};
use crate::host::units::{Ending, Status};

/// How often what is dear to ask for is asked again.
const SLOW_PERIOD: Duration = Duration::from_secs(10);
/// Somebody else may change packages too.
const BUILD_PERIOD: Duration = Duration::from_secs(60);
const SIZE_PERIOD: Duration = Duration::from_secs(60);

impl Inner {
    pub(super) async fn observe(&self, cluster: ClusterId) -> Observation {
        // Before all else: whatever is said of settings that wait for a restart is said of these.
        let applied = self.applied(cluster);
        let layout = self.layout(cluster);
        let marker = match layout.read_marker(self.host.files(), cluster).await {
            Ok(Some(marker)) => marker,
            Ok(None) => return Observation::only(EngineState::Absent),
            Err(error) => return with_message(EngineState::Unknown, error.to_string()),
        };
        if marker.state == State::Building {
            let message = format!("command {} has not finished making the data", marker.made_by);
            return with_message(EngineState::Absent, message);
        }
        if !marker.state.is_usable() {
            let message = "its data cannot be started: a resync of them was cut; resync it again".to_owned();
            return Observation {
                system_identifier: marker.system_identifier,
                needs_resync: true,
                ..with_message(EngineState::Stopped, message)
            };
        }
        let mut observed = self.observe_process(cluster, &layout, &marker).await;
        // A server that runs says it, and its files do not contradict.
        observed.data_role = match observed.role {
            Some(role) => Some(role),
            None => self.data_role(&layout).await,
        };
        observed.sealed = self.is_sealed(&layout).await;
        if observed.state == EngineState::Running {
            observed.troubles = self.troubles(cluster, &layout, &marker, &observed).await;
        }
        observed.tuning = self.tuning(cluster, &marker, applied).await;
        let complaints = [observed.message, self.starved(&marker).unwrap_or_default()];
        observed.message =
            complaints.into_iter().filter(|said| !said.is_empty()).collect::<Vec<_>>().join("; ");
        if observed.system_identifier.is_none() {
            observed.system_identifier = match build::identity(self, &layout, Place::Data).await {
                Ok(found) => Some(found),
                Err(error) => {
                    observed.message = error.to_string();
                    None
                }
            };
        }
        observed
    }

    /// The role in which the data would start; unknown if there are none.
    pub(super) async fn data_role(&self, layout: &Layout) -> Option<Role> {
        let files = self.host.files();
        files.stat(layout.data().join("PG_VERSION")).await.ok()??;
        match files.stat(layout.data().join("standby.signal")).await {
            Ok(Some(_)) => Some(Role::Replica),
            Ok(None) => Some(Role::Primary),
            Err(_) => None,
        }
    }

    async fn observe_process(&self, cluster: ClusterId, layout: &Layout, marker: &Marker) -> Observation {
        let status = match process::service_name(cluster) {
            Ok(name) => self.host.units().status(&name).await,
            Err(error) => Status::Unknown { why: error.to_string() },
        };
        match status {
            Status::Running { .. } => self.observe_server(cluster, marker).await,
            Status::Unknown { why } => with_message(EngineState::Unknown, why),
            Status::Exited | Status::NotFound => {
                self.forget(cluster);
                Observation::only(EngineState::Stopped)
            }
            Status::Failed { ending } => {
                self.forget(cluster);
                let how = match ending {
                    Ending::Code(code) => format!("ended with code {code}"),
                    Ending::Signal(signal) => format!("was ended by signal {signal}"),
                    Ending::Unseen => "ended while no agent ran".to_owned(),
                };
                let words = words::last(&self.host, layout).await;
                with_message(EngineState::Stopped, format!("the server {how}: {words}"))
            }
        }
    }

    async fn observe_server(&self, cluster: ClusterId, marker: &Marker) -> Observation {
        let session = match self.session(cluster).await {
            Ok(session) => session,
            Err(why @ (NoAnswer::NotYet | NoAnswer::Nobody)) => {
                return with_message(EngineState::Starting, why.to_string());
            }
            Err(why) => return with_message(EngineState::Unknown, why.to_string()),
        };
        match session.observe().await {
            Ok(mut observed) => {
                let before =
                    self.with_known(cluster, |known| std::mem::replace(&mut known.term, observed.term));
                if before == observed.term {
                    self.observe_slowly(cluster, &session).await;
                    self.observe_build(cluster, marker).await;
                } else {
                    // Clients may wait for a new primary to be seen; what takes its time is for later.
                    self.put_off_care(cluster);
                }
                let known = self.with_known(cluster, |known| known.clone());
                observed.pending_restart = known.pending_restart;
                observed.data_bytes = known.data_bytes;
                observed.installed_build = known.installed_build;
                if observed.message.is_empty() {
                    observed.message = known.refused_settings.join("; ");
                }
                observed
            }
            Err(why) => {
                self.forget(cluster);
                with_message(EngineState::Unknown, why.to_string())
            }
        }
    }

    pub(super) async fn probe(&self, cluster: ClusterId) -> Result<(), Error> {
        let deed = "probe";
        // Not the kept connection: that is no sign of a server that lets somebody in.
        let session = self.connect(cluster).await.map_err(|why| why.during(deed))?;
        session.write().await.map_err(|why| why.during(deed))
    }

    /// What a start would run: packages change without anybody telling.
    async fn observe_build(&self, cluster: ClusterId, marker: &Marker) {
        let now = Instant::now();
        let at = self.with_known(cluster, |known| known.build_at);
        if at.is_some_and(|at| now.duration_since(at) < BUILD_PERIOD) {
            return;
        }
        // Before it is asked: packages that change meanwhile make it due again.
        self.with_known(cluster, |known| known.build_at = Some(now));
        let build = self.packages.build(&marker.engine_version).await;
        self.with_known(cluster, |known| known.installed_build = build.ok());
    }

    /// What is dear to ask for and seldom changes.
    async fn observe_slowly(&self, cluster: ClusterId, session: &Session) {
        let now = Instant::now();
        let due = |at: Option<Instant>, period| at.is_none_or(|at| now.duration_since(at) >= period);
        let known = self.with_known(cluster, |known| known.clone());
        if due(known.slow_at, SLOW_PERIOD) {
            let pending = session.pending_restart().await;
            let refused = session.refused_settings().await;
            let before = known.reloads;
            self.with_known(cluster, |known| {
                // Not where the server has read its configuration anew in between: that is asked again.
                known.slow_at = (known.reloads == before).then_some(now);
                known.pending_restart = pending.unwrap_or_default();
                known.refused_settings = refused.unwrap_or_default();
            });
        }
        if due(known.size_at, SIZE_PERIOD) {
            let size = session.data_bytes().await;
            self.with_known(cluster, |known| {
                known.size_at = Some(now);
                known.data_bytes = size.ok().flatten();
            });
        }
    }
}

fn with_message(state: EngineState, message: String) -> Observation {
    Observation { message, ..Observation::only(state) }
}
