//! Services under systemd, over D-Bus.
//!
//! They are *transient* units (`StartTransientUnit`), not unit files: they belong to PID 1 and so survive any end of the
//! agent and any daemon-reload, but leave nothing behind that a boot could start. Only the agent starts engines, after
//! it has looked at its term; a unit file that someone enables would break that. There is also no file to quote,
//! write, reload or forget. `systemctl cat` shows them as any other.

#[cfg(test)]
mod tests;

use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use zbus::{Connection, OwnedObjectPath, Variant};

use super::{Ending, Error, Service, ServiceName, Signal, Started, Status, Stop, Stopped, Units};
use crate::host::exec::SEARCH_PATH;

/// How long the bus may take to answer one call.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long systemd may take to start a process.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long after SIGKILL a unit may still be there.
const KILL_GRACE: Duration = Duration::from_secs(30);
/// How often a unit that is stopping is looked at. Asking is proof against a signal that was missed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Databases go last when memory runs out.
const OOM_SCORE_ADJUST: i32 = -900;
const OPEN_FILES: u64 = 65_536;

/// One property of a transient unit.
type Property = (&'static str, Variant<'static>);

/// Supervises services with systemd. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Systemd {
    bus: Connection,
    manager: ManagerProxy<'static>,
}

/// What systemd says of a unit.
struct Unit {
    active: String,
    main_pid: u32,
    started_micros: u64,
    code: i32,
    status: i32,
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        auxiliary: &[(&str, Vec<(&str, Variant<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait UnitState {
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
trait ServiceState {
    #[zbus(property(emits_changed_signal = "false"), name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn exec_main_start_timestamp(&self) -> zbus::Result<u64>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn exec_main_code(&self) -> zbus::Result<i32>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn exec_main_status(&self) -> zbus::Result<i32>;
}

// === impl Systemd ===

impl Systemd {
    /// Connects to the system bus and to systemd on it.
    ///
    /// # Errors
    /// [`Error::NoBus`].
    pub async fn connect() -> Result<Self, Error> {
        let no_bus = |source: zbus::Error| Error::NoBus { source: Box::new(source) };
        let connected = async {
            let bus = zbus::connection::Builder::system().method_timeout(CALL_DEADLINE).build().await?;
            let manager = ManagerProxy::new(&bus).await?;
            // Without it systemd sends no JobRemoved.
            manager.subscribe().await?;
            Ok::<Self, zbus::Error>(Self { bus, manager })
        };
        match tokio::time::timeout(CALL_DEADLINE, connected).await {
            Ok(connected) => connected.map_err(no_bus),
            Err(_elapsed) => Err(no_bus(zbus::Error::Failure("no answer in time".to_owned()))),
        }
    }

    /// Has systemd shut the machine down in order and boot it again, as `systemctl reboot` does. It goes on by itself.
    ///
    /// # Errors
    /// [`Error::NoBus`], [`Error::Machine`].
    pub async fn reboot_machine() -> Result<(), Error> {
        let Self { manager, .. } = Self::connect().await?;
        // Not the manager's `Reboot`: that stops nothing first.
        let asked = manager.start_unit("reboot.target", "replace-irreversibly").await;
        asked.map(drop).map_err(|source| Error::Machine { source: Box::new(source) })
    }

    async fn start_service(&self, service: &Service) -> Result<Started, Error> {
        service.checked()?;
        let deed = "start";
        let bus = |source| bus_error(deed, &service.name, source);
        match self.unit(&service.name).await.map_err(bus)? {
            Some(unit) if unit.is_up() => return Ok(Started::Already),
            Some(unit) if unit.active == "failed" => {
                self.manager.reset_failed_unit(&unit_name(&service.name)).await.map_err(bus)?;
            }
            Some(_) | None => {}
        }
        // Listening before the start: a job may end before its path is known here.
        let mut ended = self.manager.receive_job_removed().await.map_err(bus)?;
        let (name, properties) = (unit_name(&service.name), properties(service));
        let job = self.manager.start_transient_unit(&name, "fail", &properties, &[]).await.map_err(bus)?;
        let wait = async {
            while let Some(signal) = ended.next().await {
                let removed = signal.args()?;
                if *removed.job() == job {
                    return Ok(removed.result().clone());
                }
            }
            Err(zbus::Error::Failure("the bus closed".to_owned()))
        };
        match tokio::time::timeout(START_DEADLINE, wait).await {
            Ok(Ok(result)) if result == "done" => Ok(Started::Now),
            Ok(Ok(result)) => Err(Error::Result { deed, service: service.name.to_string(), result }),
            Ok(Err(source)) => Err(bus(source)),
            Err(_elapsed) => {
                Err(Error::Deadline { deed, service: service.name.to_string(), after: START_DEADLINE })
            }
        }
    }

    async fn stop_service(&self, name: &ServiceName, how: Stop) -> Result<Stopped, Error> {
        let deed = "stop";
        let bus = |source| bus_error(deed, name, source);
        match self.unit(name).await.map_err(bus)? {
            Some(unit) if unit.is_up() => {}
            Some(_) | None => {
                self.clear(name).await.map_err(bus)?;
                return Ok(Stopped::Already);
            }
        }
        // Not StopUnit: its signal is fixed when the unit is made, and engines know several ways to stop. When the main
        // process is gone, systemd kills whatever it left behind (KillMode=mixed) before the unit is inactive.
        ignore_gone(self.manager.kill_unit(&unit_name(name), "main", how.signal.number()).await)
            .map_err(bus)?;
        let stopped = match tokio::time::timeout(how.deadline, self.down(name)).await {
            Ok(down) => down.map(|()| Stopped::Gently).map_err(bus)?,
            Err(_elapsed) => {
                let killed = self.manager.kill_unit(&unit_name(name), "all", Signal::Kill.number()).await;
                ignore_gone(killed).map_err(bus)?;
                match tokio::time::timeout(KILL_GRACE, self.down(name)).await {
                    Ok(down) => down.map(|()| Stopped::Killed).map_err(bus)?,
                    Err(_elapsed) => {
                        return Err(Error::Deadline { deed, service: name.to_string(), after: KILL_GRACE });
                    }
                }
            }
        };
        self.clear(name).await.map_err(bus)?;
        Ok(stopped)
    }

    /// Returns when no process of the unit is left.
    async fn down(&self, name: &ServiceName) -> zbus::Result<()> {
        let mut ticks = tokio::time::interval(LOOK_AGAIN);
        loop {
            ticks.tick().await;
            if self.unit(name).await?.is_none_or(|unit| !unit.is_up()) {
                return Ok(());
            }
        }
    }

    /// Lets systemd forget a failure that was asked for or seen.
    async fn clear(&self, name: &ServiceName) -> zbus::Result<()> {
        ignore_gone(self.manager.reset_failed_unit(&unit_name(name)).await)
    }

    async fn unit(&self, name: &ServiceName) -> zbus::Result<Option<Unit>> {
        let path = match self.manager.get_unit(&unit_name(name)).await {
            Err(error) if is_gone(&error) => return Ok(None),
            other => other?,
        };
        match self.read(path).await {
            // It was collected between the two calls.
            Err(error) if is_gone(&error) => Ok(None),
            other => other.map(Some),
        }
    }

    async fn read(&self, path: OwnedObjectPath) -> zbus::Result<Unit> {
        let unit = UnitStateProxy::new(&self.bus, path.clone()).await?;
        let service = ServiceStateProxy::new(&self.bus, path).await?;
        Ok(Unit {
            active: unit.active_state().await?,
            main_pid: service.main_pid().await?,
            started_micros: service.exec_main_start_timestamp().await?,
            code: service.exec_main_code().await?,
            status: service.exec_main_status().await?,
        })
    }
}

impl Units for Systemd {
    fn start<'a>(&'a self, service: &'a Service) -> BoxFuture<'a, Result<Started, Error>> {
        Box::pin(self.start_service(service))
    }

    fn stop<'a>(&'a self, name: &'a ServiceName, how: Stop) -> BoxFuture<'a, Result<Stopped, Error>> {
        Box::pin(self.stop_service(name, how))
    }

    fn status<'a>(&'a self, name: &'a ServiceName) -> BoxFuture<'a, Status> {
        Box::pin(async move {
            match self.unit(name).await {
                Ok(None) => Status::NotFound,
                Ok(Some(unit)) => unit.status(),
                Err(error) => Status::Unknown { why: format!("systemd does not answer: {error}") },
            }
        })
    }

    fn signal<'a>(&'a self, name: &'a ServiceName, signal: Signal) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let bus = |source| bus_error("signal", name, source);
            if self.unit(name).await.map_err(bus)?.is_none_or(|unit| !unit.is_up()) {
                return Err(Error::NotRunning { service: name.to_string() });
            }
            self.manager.kill_unit(&unit_name(name), "main", signal.number()).await.map_err(bus)
        })
    }

    fn forget<'a>(&'a self, name: &'a ServiceName) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let bus = |source| bus_error("forget", name, source);
            if self.unit(name).await.map_err(bus)?.is_some_and(|unit| unit.is_up()) {
                return Err(Error::StillRunning { service: name.to_string() });
            }
            self.clear(name).await.map_err(bus)
        })
    }
}

// === impl Unit ===

impl Unit {
    /// Whether a process of it may exist.
    fn is_up(&self) -> bool {
        !matches!(self.active.as_str(), "inactive" | "failed")
    }

    fn status(&self) -> Status {
        let Self { active, main_pid, started_micros, code, status } = self;
        match active.as_str() {
            "inactive" => Status::Exited,
            // CLD_EXITED, CLD_KILLED, CLD_DUMPED.
            "failed" => match code {
                1 => Status::ended(Ending::Code(*status), false),
                2 | 3 => Status::ended(Ending::Signal(*status), false),
                _ => Status::Failed { ending: Ending::Unseen },
            },
            _ if *main_pid > 0 => match i64::try_from(*started_micros).map(Timestamp::from_microsecond) {
                Ok(Ok(since)) => Status::Running { pid: *main_pid, since },
                _ => Status::Unknown { why: format!("systemd says that it started at {started_micros} µs") },
            },
            other => Status::Unknown { why: format!("systemd says {other:?}, without a main process") },
        }
    }
}

fn unit_name(name: &ServiceName) -> String {
    format!("{name}.service")
}

/// The whole transient unit.
fn properties(service: &Service) -> Vec<Property> {
    let program = service.program.to_string_lossy().into_owned();
    let mut command = vec![program.clone()];
    command.extend(service.args.iter().map(|arg| arg.to_string_lossy().into_owned()));
    let mut variables = vec![format!("PATH={SEARCH_PATH}"), "LC_ALL=C".to_owned()];
    variables.extend(service.variables.iter().map(|(name, value)| format!("{name}={value}")));
    let log = service.log.to_string_lossy().into_owned();
    let stop_micros = u64::try_from(service.shutdown.deadline.as_micros()).unwrap_or(u64::MAX);
    let mut properties: Vec<Property> = vec![
        ("Description", service.description.clone().into()),
        // `exec`: the start fails if the program cannot be executed at all.
        ("Type", "exec".into()),
        ("ExecStart", vec![(program, command, false)].into()),
        ("WorkingDirectory", service.directory.to_string_lossy().into_owned().into()),
        ("Environment", variables.into()),
        ("StandardOutputFileToAppend", log.clone().into()),
        ("StandardErrorFileToAppend", log.into()),
        ("Restart", "no".into()),
        ("KillMode", "mixed".into()),
        ("KillSignal", service.shutdown.signal.number().into()),
        ("TimeoutStopUSec", stop_micros.into()),
        ("After", vec!["network.target".to_owned()].into()),
        ("OOMScoreAdjust", OOM_SCORE_ADJUST.into()),
        ("LimitNOFILE", OPEN_FILES.into()),
        ("NoNewPrivileges", true.into()),
    ];
    if let Some(owner) = service.owner {
        properties.push(("User", owner.uid.to_string().into()));
        properties.push(("Group", owner.gid.to_string().into()));
    }
    properties
}

fn bus_error(deed: &'static str, name: &ServiceName, source: zbus::Error) -> Error {
    Error::Bus { deed, service: name.to_string(), source: Box::new(source) }
}

fn is_gone(error: &zbus::Error) -> bool {
    let zbus::Error::MethodError(name, _, _) = error else { return false };
    matches!(
        name.as_str(),
        "org.freedesktop.systemd1.NoSuchUnit"
            | "org.freedesktop.systemd1.NoSuchProcess"
            | "org.freedesktop.DBus.Error.UnknownObject"
    )
}

fn ignore_gone(result: zbus::Result<()>) -> zbus::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}
