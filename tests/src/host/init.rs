//! Pid 1 of a host: gives it mounts and a name of its own, reaps what is orphaned, and keeps its services running as
//! systemd would. Without namespaces it does the same for the processes that descend from it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::spec::{self, Disk, IsolationName, Service, ServiceState, Spec};
use crate::proc::{self, Process};
use crate::process::{Program, Running};
use crate::run::MARK;

/// As `RestartSec=` of the units in `deploy/`.
const RESTART: Duration = Duration::from_secs(1);

/// How long services may take to stop when the host is shut down.
const STOP: Duration = Duration::from_secs(15);

/// What an isolated host has as its boot id.
const BOOT_ID: &str = "/run/.boot-id";

/// Where an isolated host finds its own folder.
const FOLDER_INSIDE: &str = "/run/holdfast-testbed";

/// One service and what became of it.
#[derive(Debug)]
struct Kept {
    service: Service,
    running: Option<Running>,
    state: ServiceState,
    due: Option<Instant>,
}

#[derive(Debug)]
struct Init {
    folder: PathBuf,
    log: PathBuf,
    run: String,
    kept: BTreeMap<String, Kept>,
    /// How often it has booted again by itself.
    boots: u32,
}

/// Becomes pid 1 of the host described in `file`; ends when the host is shut down or the run's owner is gone.
///
/// # Errors
///
/// When the host cannot be given what it needs.
pub fn main(file: &Path) -> anyhow::Result<()> {
    let spec: Spec = spec::read(file)?;
    // Opened before the mounts, which would put another file in its place.
    let lock = spec.owner_lock.as_ref().map(File::open).transpose().context("open the owner's lock")?;
    let folder = match spec.isolation {
        IsolationName::Hosts => {
            furnish(&spec).context("furnish the host")?;
            PathBuf::from(FOLDER_INSIDE)
        }
        IsolationName::Processes => {
            nix::sys::prctl::set_child_subreaper(true).context("become the reaper of all descendants")?;
            spec.folder.clone()
        }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    let (boots, run) = (0, spec.run.clone());
    let init = Init { log: folder.join("log"), folder, run, kept: BTreeMap::new(), boots };
    let outcome = runtime.block_on(init.run(&spec, lock));
    if spec.isolation == IsolationName::Processes {
        end_descendants();
    }
    // The thread that waits for the owner must not hold this process back.
    runtime.shutdown_background();
    outcome
}

// === impl Init ===

impl Init {
    async fn run(mut self, spec: &Spec, lock: Option<File>) -> anyhow::Result<()> {
        let mut child = signal(SignalKind::child())?;
        let mut reload = signal(SignalKind::hangup())?;
        let mut end = signal(SignalKind::terminate())?;
        // As the kernel says it at Ctrl-Alt-Del.
        let mut reboot = signal(SignalKind::interrupt())?;
        let mut owner = owner_gone(lock);
        for Disk { image, place } in &spec.disks {
            let mount = Program::new("mount").args(["-o", "loop"]).arg(image).arg(place);
            mount.run().await.with_context(|| format!("mount {}", place.display()))?;
        }
        self.reload()?;
        fs::write(spec::ready_file(&self.folder), &spec.boot_id).context("say that the host is up")?;
        loop {
            self.start_due()?;
            let due = self.kept.values().filter_map(|kept| kept.due).min();
            // Every arm is cancel-safe: signals are remembered, the owner's end and a point in time stay what they are.
            tokio::select! {
                _ = child.recv() => self.reap()?,
                _ = reload.recv() => self.reload()?,
                _ = &mut owner => return Ok(()),
                () = until(due) => {}
                _ = end.recv() => break,
                _ = reboot.recv() => self.boot_again(spec, &mut child).await?,
            }
        }
        self.stop(&mut child).await
    }

    /// What a machine does when it is told to reboot, but for the mounts: they are what a boot makes them.
    async fn boot_again(&mut self, spec: &Spec, child: &mut Signals) -> anyhow::Result<()> {
        self.stop(child).await?;
        if spec.isolation == IsolationName::Hosts {
            // All but this process, which is pid 1.
            nix::sys::signal::kill(Pid::from_raw(-1), Signal::SIGKILL).or_else(|errno| match errno {
                nix::errno::Errno::ESRCH => Ok(()),
                errno => Err(errno),
            })?;
            while self.kept.values().any(|kept| kept.running.is_some()) {
                child.recv().await;
                self.reap()?;
            }
            // A namespace outlives a boot with all its rules; a machine's network does not.
            Program::new("nft").args(["flush", "ruleset"]).clean_env().env(MARK, &self.run).run().await?;
            self.boots += 1;
            fs::write(BOOT_ID, format!("{}-{}\n", spec.boot_id, self.boots)).context("write the boot id")?;
        }
        self.reload()
    }

    async fn stop(&mut self, child: &mut Signals) -> anyhow::Result<()> {
        for kept in self.kept.values_mut() {
            kept.due = None;
            kept.signal(Signal::SIGTERM)?;
        }
        let last = Instant::now() + STOP;
        while self.kept.values().any(|kept| kept.running.is_some()) {
            tokio::select! {
                _ = child.recv() => self.reap()?,
                () = sleep_until(last) => break,
            }
            self.kept.values_mut().for_each(|kept| kept.due = None);
        }
        Ok(())
    }

    /// Reads the services anew: new ones are due, those that are gone are stopped, a lifted hold makes one due.
    fn reload(&mut self) -> anyhow::Result<()> {
        let mut wanted = BTreeMap::new();
        for entry in fs::read_dir(spec::services(&self.folder)).context("list the services")?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "json") {
                let service: Service = spec::read(&entry.path())?;
                wanted.insert(service.name.clone(), service);
            }
        }
        for (name, kept) in &mut self.kept {
            if !wanted.contains_key(name) {
                kept.due = None;
                kept.signal(Signal::SIGTERM)?;
            }
        }
        self.kept.retain(|name, kept| wanted.contains_key(name) || kept.running.is_some());
        for (name, service) in wanted {
            let kept = self.kept.entry(name).or_insert_with(|| Kept {
                service: service.clone(),
                running: None,
                state: ServiceState::default(),
                due: None,
            });
            kept.service = service;
            if kept.running.is_none() && kept.due.is_none() {
                kept.due = Some(Instant::now());
            }
        }
        Ok(())
    }

    fn start_due(&mut self) -> anyhow::Result<()> {
        let Self { folder, log, run, kept, boots: _ } = self;
        let now = Instant::now();
        for (name, kept) in kept {
            if kept.due.is_none_or(|due| due > now) {
                continue;
            }
            kept.due = None;
            if spec::hold_file(folder, name).exists() {
                continue;
            }
            let log = log.join(format!("{name}.log"));
            match kept.start(run, &log) {
                Ok(()) => {}
                Err(error) => {
                    kept.state.last_end = Some(format!("not started: {error:#}"));
                    kept.due = Some(now + RESTART);
                }
            }
            spec::write(&spec::state_file(folder, name), &kept.state)?;
        }
        Ok(())
    }

    /// Takes leave of every child that has ended, ours or adopted. A service that failed is due again.
    fn reap(&mut self) -> anyhow::Result<()> {
        loop {
            let (pid, how, failed) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}"), code != 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("killed by {signal}"), true),
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
                Ok(_) => continue,
                Err(error) => return Err(error).context("wait for children"),
            };
            let Self { folder, kept, .. } = self;
            for (name, kept) in kept {
                if kept.state.pid.map(u32::cast_signed) != Some(pid.as_raw()) {
                    continue;
                }
                kept.running = None;
                kept.state.pid = None;
                kept.state.last_end = Some(how.clone());
                kept.due = failed.then(|| Instant::now() + RESTART);
                spec::write(&spec::state_file(folder, name), &kept.state)?;
            }
        }
    }
}

// === impl Kept ===

impl Kept {
    fn start(&mut self, run: &str, log: &Path) -> anyhow::Result<()> {
        let (program, arguments) = self.service.argv.split_first().context("a service names its program")?;
        let mut program = Program::new(program).args(arguments).clean_env().env(MARK, run).folder("/");
        for (name, value) in &self.service.env {
            program = program.env(name, value);
        }
        let mut input = Stdio::null();
        if let Some(name) = &self.service.socket {
            // The pid that socket activation wants to see is known only to the process itself: a shell moves the
            // socket from standard input to 3, says its pid, and becomes the program.
            const HAND_OVER: &str =
                r#"export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES="$0"; exec "$@" 3<&0 </dev/null"#;
            program = program.wrapped(["/bin/sh", "-c", HAND_OVER, name.as_str()]);
            let socket = std::io::stdin().as_fd().try_clone_to_owned().context("copy the socket")?;
            input = Stdio::from(socket);
        }
        let running = program.start_with(log, input)?;
        self.state.pid = Some(running.process().pid);
        self.state.starts += 1;
        self.running = Some(running);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.running.as_ref().map_or(Ok(()), |running| running.process().signal(signal))
    }
}

/// Waits for the owner's end on a thread: the lock is granted when the kernel takes it from whoever held it.
fn owner_gone(lock: Option<File>) -> impl Future<Output = ()> + Unpin {
    let (told, gone) = tokio::sync::oneshot::channel::<()>();
    let wait = move || match lock {
        Some(lock) => {
            // A failure to wait is answered like the owner's end: a host must not outlive what it cannot watch.
            lock.lock_shared().ok();
            drop(told);
        }
        // Without an owner there is nothing to wait for: the host goes on.
        None => std::mem::forget(told),
    };
    std::thread::spawn(wait);
    Box::pin(async move {
        gone.await.ok();
    })
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Kills all that descends from this process, until nothing does.
fn end_descendants() {
    let Some(me) = Process::of(std::process::id()) else { return };
    loop {
        let others: Vec<_> = proc::tree(me).into_iter().filter(|one| one.process != me).collect();
        if others.iter().all(|one| one.zombie) {
            return;
        }
        for one in others {
            // One that ended meanwhile is what we want.
            one.process.signal(Signal::SIGKILL).ok();
        }
        while matches!(waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some())
        {
        }
        std::thread::yield_now();
    }
}

/// Gives the host what a machine has of its own. All of it is in this process's mount namespace and goes with it.
fn furnish(spec: &Spec) -> anyhow::Result<()> {
    let Spec { name, run: _, isolation: _, folder, owner_lock: _, boot_id, machine_id, disks: _ } = spec;
    std::env::set_current_dir("/").context("leave the folder we came from")?;
    // Opened first: they are below folders that get covered, and are bound again by their handles.
    let own = Handle::open(folder)?;
    let packages = Handle::open("/var/lib/dpkg".as_ref()).ok();
    let lists = Handle::open("/var/lib/apt".as_ref()).ok();
    let cgroups = Handle::open("/sys/fs/cgroup".as_ref()).ok();

    layer("/etc", &folder.join("etc-changes"), &folder.join("etc-work"))?;
    fresh("proc", "/proc", "")?;
    fresh("sysfs", "/sys", "")?;
    fresh("tmpfs", "/run", "mode=755")?;
    fresh("tmpfs", "/dev/shm", "mode=1777")?;
    if let Some(cgroups) = cgroups {
        cgroups.bind("/sys/fs/cgroup", MsFlags::MS_REC)?;
    }
    own.bind(FOLDER_INSIDE, MsFlags::empty())?;
    fs::create_dir_all("/run/lock").context("make /run/lock")?;
    // Only so that there is a place to bind to that the machine itself does not get to see.
    for part in ["lib", "log"] {
        let changes = PathBuf::from(format!("/run/.layers/{part}/changes"));
        let work = PathBuf::from(format!("/run/.layers/{part}/work"));
        fs::create_dir_all(&changes).and_then(|()| fs::create_dir_all(&work)).context("make a layer")?;
        layer(&format!("/var/{part}"), &changes, &work)?;
    }
    // Packages are the machine's: the programs under /usr are shared, so what is said of them must be shared too.
    for (handle, place) in [(packages, "/var/lib/dpkg"), (lists, "/var/lib/apt")] {
        if let Some(handle) = handle {
            handle.bind(place, MsFlags::empty())?;
        }
    }
    // Under its outer name too, so that a path means the same file on both sides.
    own.bind(&folder.to_string_lossy(), MsFlags::empty())?;
    for (part, place) in
        [("lib", "/var/lib/holdfast"), ("etc", "/etc/holdfast"), ("log", "/var/log/holdfast")]
    {
        Handle::open(&Path::new(FOLDER_INSIDE).join(part))?.bind(place, MsFlags::empty())?;
    }

    nix::unistd::sethostname(name).context("set the hostname")?;
    fs::write("/etc/hostname", format!("{name}\n")).context("write /etc/hostname")?;
    fs::write("/etc/machine-id", format!("{machine_id}\n")).context("write /etc/machine-id")?;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {name}\n");
    fs::write("/etc/hosts", hosts).context("write /etc/hosts")?;
    // There is no name server on this network: a question is answered at once, by a refusal of loopback.
    fs::remove_file("/etc/resolv.conf").ok();
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n").context("write /etc/resolv.conf")?;
    fs::write(BOOT_ID, format!("{boot_id}\n")).context("write the boot id")?;
    let place = "/proc/sys/kernel/random/boot_id";
    mount(Some(BOOT_ID), place, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("give a boot id")
}

/// A folder by its handle, which stays what it was when something is mounted over its path.
#[derive(Debug)]
struct Handle(File);

// === impl Handle ===

impl Handle {
    fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self(File::open(path).with_context(|| format!("open {}", path.display()))?))
    }

    fn bind(&self, place: &str, more: MsFlags) -> anyhow::Result<()> {
        fs::create_dir_all(place).with_context(|| format!("make {place}"))?;
        let source = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        mount(Some(source.as_str()), place, None::<&str>, MsFlags::MS_BIND | more, None::<&str>)
            .with_context(|| format!("bind {place}"))
    }
}

/// A file system of its own at `place`.
fn fresh(kind: &str, place: &str, options: &str) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(kind), place, Some(kind), flags, Some(options))
        .with_context(|| format!("mount {kind} on {place}"))
}

/// What is at `place` stays to be read; what is changed is kept in `changes`.
fn layer(place: &str, changes: &Path, work: &Path) -> anyhow::Result<()> {
    let options = format!("lowerdir={place},upperdir={},workdir={}", changes.display(), work.display());
    mount(Some("overlay"), place, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("lay changes over {place}"))
}
