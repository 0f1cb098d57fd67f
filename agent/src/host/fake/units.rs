//! Services in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use holdfast_common::clock::Clock;

use super::locked;
use crate::host::units::{
    Ending, Error, Service, ServiceName, Signal, Started, Status, Stop, Stopped, Units,
};

/// Services that run because a test says so. Cheap to clone; clones share the services.
#[derive(Debug, Clone, Default)]
pub struct FakeUnits {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    services: BTreeMap<ServiceName, Running>,
    failing_starts: BTreeMap<ServiceName, u32>,
    stubborn: BTreeMap<ServiceName, ()>,
    unanswered: Option<String>,
    next_pid: u32,
}

#[derive(Debug)]
struct Running {
    service: Service,
    status: Status,
    starts: u32,
    signals: Vec<Signal>,
}

// === impl FakeUnits ===

impl FakeUnits {
    /// The next `times` starts of this service fail.
    pub fn fail_starts(&self, name: &ServiceName, times: u32) {
        locked(&self.state).failing_starts.insert(name.clone(), times);
    }

    /// This service ends only by being killed.
    pub fn make_stubborn(&self, name: &ServiceName) {
        locked(&self.state).stubborn.insert(name.clone(), ());
    }

    /// While set, every question is answered with `Unknown`, and every deed fails.
    pub fn set_unanswered(&self, why: Option<&str>) {
        locked(&self.state).unanswered = why.map(str::to_owned);
    }

    /// The service ends by itself.
    pub fn end(&self, name: &ServiceName, ending: Ending) {
        if let Some(found) = locked(&self.state).services.get_mut(name) {
            found.status = Status::ended(ending, false);
        }
    }

    /// What the service was started with last.
    pub fn service(&self, name: &ServiceName) -> Option<Service> {
        locked(&self.state).services.get(name).map(|found| found.service.clone())
    }

    /// How often it was really started.
    pub fn starts(&self, name: &ServiceName) -> u32 {
        locked(&self.state).services.get(name).map_or(0, |found| found.starts)
    }

    /// The signals that its main process got.
    pub fn signals(&self, name: &ServiceName) -> Vec<Signal> {
        locked(&self.state).services.get(name).map(|found| found.signals.clone()).unwrap_or_default()
    }

    pub(super) fn reboot(&self) {
        for found in locked(&self.state).services.values_mut().filter(|found| found.status.is_running()) {
            found.status = Status::Exited;
        }
    }
}

impl Units for FakeUnits {
    fn start<'a>(&'a self, service: &'a Service) -> BoxFuture<'a, Result<Started, Error>> {
        let started = service.checked().and_then(|()| locked(&self.state).start(service));
        Box::pin(std::future::ready(started))
    }

    fn stop<'a>(&'a self, name: &'a ServiceName, how: Stop) -> BoxFuture<'a, Result<Stopped, Error>> {
        Box::pin(async move {
            let Stop { signal, deadline } = how;
            let stubborn = {
                let mut state = locked(&self.state);
                state.answering(name)?;
                let stubborn = state.stubborn.contains_key(name) && signal != Signal::Kill;
                match state.services.get_mut(name).filter(|found| found.status.is_running()) {
                    Some(found) => found.signals.push(signal),
                    None => return Ok(Stopped::Already),
                }
                stubborn
            };
            if stubborn {
                tokio::time::sleep(deadline).await;
            }
            if let Some(found) = locked(&self.state).services.get_mut(name) {
                if stubborn {
                    found.signals.push(Signal::Kill);
                }
                found.status = Status::Exited;
            }
            Ok(if stubborn { Stopped::Killed } else { Stopped::Gently })
        })
    }

    fn status<'a>(&'a self, name: &'a ServiceName) -> BoxFuture<'a, Status> {
        let state = locked(&self.state);
        let status = match (&state.unanswered, state.services.get(name)) {
            (Some(why), _) => Status::Unknown { why: why.clone() },
            (None, Some(found)) => found.status.clone(),
            (None, None) => Status::NotFound,
        };
        Box::pin(std::future::ready(status))
    }

    fn signal<'a>(&'a self, name: &'a ServiceName, signal: Signal) -> BoxFuture<'a, Result<(), Error>> {
        let mut state = locked(&self.state);
        let sent = state.answering(name).and_then(|()| {
            let running = state.services.get_mut(name).filter(|found| found.status.is_running());
            let found = running.ok_or_else(|| Error::NotRunning { service: name.to_string() })?;
            found.signals.push(signal);
            Ok(())
        });
        Box::pin(std::future::ready(sent))
    }

    fn forget<'a>(&'a self, name: &'a ServiceName) -> BoxFuture<'a, Result<(), Error>> {
        let mut state = locked(&self.state);
        let forgotten = state.answering(name).and_then(|()| {
            if state.services.get(name).is_some_and(|found| found.status.is_running()) {
                return Err(Error::StillRunning { service: name.to_string() });
            }
            state.services.remove(name);
            Ok(())
        });
        Box::pin(std::future::ready(forgotten))
    }
}

// === impl State ===

impl State {
    fn answering(&self, name: &ServiceName) -> Result<(), Error> {
        match &self.unanswered {
            Some(why) => Err(Error::Unknown { service: name.to_string(), why: why.clone() }),
            None => Ok(()),
        }
    }

    fn start(&mut self, service: &Service) -> Result<Started, Error> {
        self.answering(&service.name)?;
        if self.services.get(&service.name).is_some_and(|found| found.status.is_running()) {
            return Ok(Started::Already);
        }
        if let Some(left @ 1..) = self.failing_starts.get_mut(&service.name) {
            *left -= 1;
            let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Err(Error::Io { deed: "start", service: service.name.to_string(), source });
        }
        self.next_pid += 1;
        let (starts, signals) = match self.services.remove(&service.name) {
            Some(before) => (before.starts + 1, before.signals),
            None => (1, Vec::new()),
        };
        let status = Status::Running { pid: 1000 + self.next_pid, since: Clock::system().now() };
        let running = Running { service: service.clone(), status, starts, signals };
        self.services.insert(service.name.clone(), running);
        Ok(Started::Now)
    }
}
