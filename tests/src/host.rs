//! One host: addresses, folders, services, programs run in it; power cut and boot.
//!
//! ```text
//!  nsenter --net ─► unshare --mount --uts --ipc --pid ─► host-init (pid 1) ─┬─► agent ─► databases
//!                   (killing it kills all of them)                          └─► other services
//! ```

pub mod init;
pub mod spec;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

pub use self::spec::{Disk, Service, ServiceState};
use crate::binaries;
use crate::proc::{self, Entry, Process};
use crate::process::{Output, Program, Running};
use crate::run::{Isolation, MARK, Run};
use crate::wait::wait_until;

/// How long a host may take to come up or to shut down.
const BOOT: Duration = Duration::from_secs(20);

/// The addresses of a host.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// IPv4.
    pub v4: IpAddr,
    /// IPv6, where hosts are namespaces.
    pub v6: Option<IpAddr>,
}

/// What a host is given beyond its addresses.
#[derive(Debug, Default)]
pub struct Plug {
    /// A listening socket of another network namespace, for one of its services.
    pub socket: Option<TcpListener>,
}

/// A host. All that runs in it ends with it, and it ends with its run.
#[derive(Debug)]
pub struct Host {
    run: Arc<Run>,
    name: String,
    addresses: Addresses,
    folder: PathBuf,
    machine_id: String,
    plug: Plug,
    disks: Mutex<Vec<Disk>>,
    up: Mutex<Option<Up>>,
}

#[derive(Debug)]
struct Up {
    running: Running,
    init: Process,
}

// === impl Host ===

impl Host {
    pub(crate) fn new(run: Arc<Run>, name: &str, addresses: Addresses, plug: Plug) -> anyhow::Result<Self> {
        let folder = run.folder().join(name);
        for part in ["lib", "etc", "etc-changes", "etc-work", "log", "services"] {
            let part = folder.join(part);
            std::fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        let machine_id = uuid::Uuid::new_v4().simple().to_string();
        let (disks, up) = (Mutex::default(), Mutex::default());
        Ok(Self { run, name: name.into(), addresses, folder, machine_id, plug, disks, up })
    }

    /// Its name, which is its hostname.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.addresses.v4
    }

    /// Its network namespace, where it has one.
    #[must_use]
    pub fn namespace(&self) -> Option<String> {
        self.is_isolated().then(|| self.run.namespace(&self.name))
    }

    /// Its folder, under a name that means the same inside and outside; other users cannot reach into it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the host calls `/var/lib/holdfast`, where it has a root of its own; else the folder that stands for it.
    #[must_use]
    pub fn state_folder(&self) -> PathBuf {
        if self.is_isolated() { "/var/lib/holdfast".into() } else { self.folder.join("lib") }
    }

    /// [`Host::state_folder`], as seen from outside.
    #[must_use]
    pub fn state_folder_outside(&self) -> PathBuf {
        self.folder.join("lib")
    }

    /// The log of one of its services, as seen from outside.
    #[must_use]
    pub fn log(&self, service: &str) -> PathBuf {
        self.folder.join("log").join(format!("{service}.log"))
    }

    /// Its pid 1, as seen from outside.
    ///
    /// # Errors
    ///
    /// When the host is down.
    pub fn init(&self) -> anyhow::Result<Process> {
        let up = self.up.lock().unwrap_or_else(PoisonError::into_inner);
        up.as_ref().map(|up| up.init).with_context(|| format!("host {} is down", self.name))
    }

    /// Boots it: pid 1, and the services that it had. A host that is up stays up.
    ///
    /// # Errors
    ///
    /// When it does not come up; the message bears its log.
    pub async fn boot(&self) -> anyhow::Result<()> {
        if self.init().is_ok_and(Process::is_alive) {
            return Ok(());
        }
        let boot_id = uuid::Uuid::new_v4().to_string();
        let file = self.folder.join("spec.json");
        let told = spec::Spec {
            name: self.name.clone(),
            run: self.run.id().into(),
            isolation: self.run.isolation().into(),
            folder: self.folder.clone(),
            owner_lock: self.run.owner_lock(),
            boot_id: boot_id.clone(),
            machine_id: self.machine_id.clone(),
            disks: self.disks.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        spec::write(&file, &told)?;
        let mut program = Program::new(binaries::testbed()?).arg("host-init").arg(&file);
        if let Some(namespace) = self.namespace() {
            let net = format!("--net=/run/netns/{namespace}");
            let unshare =
                ["unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--pid", "--fork"];
            program = program
                .wrapped(unshare.into_iter().chain(["--kill-child=KILL", "--"]))
                .wrapped(["nsenter", &net]);
        }
        let input = match &self.plug.socket {
            Some(socket) => Stdio::from(OwnedFd::from(socket.try_clone().context("copy the socket")?)),
            None => Stdio::null(),
        };
        let program = program.clean_env().env(MARK, self.run.id()).folder("/");
        let mut running = program.start_with(&self.log("host-init"), input)?;
        let ready = wait_until(format!("host {} to come up", self.name), BOOT, || {
            let ready = std::fs::read_to_string(spec::ready_file(&self.folder)).unwrap_or_default();
            let ended = running.ended();
            let boot_id = &boot_id;
            async move {
                match ended? {
                    None if ready == *boot_id => Ok(true),
                    None => bail!("not ready"),
                    Some(_) => Ok(false),
                }
            }
        });
        if !ready.await? {
            let log = std::fs::read_to_string(self.log("host-init")).unwrap_or_default();
            bail!("host {} did not come up: {}", self.name, log.lines().last().unwrap_or("it said nothing"));
        }
        let init = self.find_init(running.process())?;
        *self.up.lock().unwrap_or_else(PoisonError::into_inner) = Some(Up { running, init });
        Ok(())
    }

    /// Puts what is in `place` on a disk of its own of so many MiB, which is the host's alone and goes with it; a boot mounts it again.
    /// Nobody may use the folder meanwhile, and from outside it is seen as it was.
    ///
    /// # Errors
    ///
    /// When there can be no such disk here.
    pub async fn add_disk(&self, place: &Path, mib: u32) -> anyhow::Result<()> {
        const MAKE: &str = r#"set -e
            truncate --size="$2M" "$1"; mkfs.ext4 -q -m 0 "$1"
            mkdir "$1.new"; mount -o loop "$1" "$1.new"; rmdir "$1.new/lost+found"
            cp --archive --no-target-directory "$0" "$1.new"; umount "$1.new"; rmdir "$1.new"
            mount -o loop "$1" "$0""#;
        let name = place.file_name().context("a folder with a name")?.to_string_lossy();
        let image = self.folder.join(format!("{name}.disk"));
        let make = Program::new("sh").args(["-c", MAKE]).arg(place).arg(&image).arg(mib.to_string());
        self.run(make).await.context("make a disk")?;
        let disk = Disk { image, place: place.to_owned() };
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).push(disk);
        Ok(())
    }

    /// Cuts its power: everything in it is killed at once. Its folders stay. A host that is down stays down.
    ///
    /// # Errors
    ///
    /// When something in it does not end.
    pub async fn cut_power(&self) -> anyhow::Result<()> {
        let up = self.up.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut up) = up else { return Ok(()) };
        let all = self.processes_of(up.init);
        up.running.kill();
        crate::wait::wait_for(format!("all of host {} to end", self.name), BOOT, || async {
            all.iter().all(|one| !one.process.is_alive())
        })
        .await
    }

    /// Shuts it down in order: its services are asked to stop first.
    ///
    /// # Errors
    ///
    /// When it is down already, or does not end in time.
    pub async fn shut_down(&self) -> anyhow::Result<()> {
        let init = self.init()?;
        init.signal(Signal::SIGTERM)?;
        crate::wait::wait_for(format!("host {} to shut down", self.name), BOOT, || async {
            !init.is_alive()
        })
        .await?;
        self.cut_power().await
    }

    /// The same program, to be run in this host.
    ///
    /// # Errors
    ///
    /// When the host is down.
    pub fn inside(&self, program: Program) -> anyhow::Result<Program> {
        let init = self.init()?;
        let program = program.env(MARK, self.run.id());
        if !self.is_isolated() {
            return Ok(program);
        }
        // Killing nsenter would leave its child behind in the host, so the deadline is also kept in there.
        let seconds = (program.patience().as_secs() + 1).to_string();
        let target = init.pid.to_string();
        let enter =
            ["nsenter", "--target", &target, "--net", "--mount", "--uts", "--ipc", "--pid", "--wd", "--"];
        Ok(program.wrapped(["timeout", "--signal=KILL", &seconds]).wrapped(enter))
    }

    /// Runs a program in this host to its end.
    ///
    /// # Errors
    ///
    /// When the host is down, or the program does not start or end in time.
    pub async fn output(&self, program: Program) -> anyhow::Result<Output> {
        self.inside(program)?.output().await
    }

    /// Runs a program in this host; it must succeed; gives its standard output.
    ///
    /// # Errors
    ///
    /// As [`Program::run`], and when the host is down.
    pub async fn run(&self, program: Program) -> anyhow::Result<String> {
        self.inside(program)?.run().await
    }

    /// Starts a program in this host and leaves it running until it is killed or the host ends.
    ///
    /// # Errors
    ///
    /// When the host is down, or the program does not start.
    pub fn start(&self, program: Program, log: &str) -> anyhow::Result<Running> {
        const FOR_EVER: Duration = Duration::from_secs(7 * 24 * 3600);
        self.inside(program.deadline(FOR_EVER))?.start(&self.log(log))
    }

    /// Has pid 1 run a service from now on, also after a boot, and waits for its first start. A service of that name
    /// is replaced by the new description when it next starts.
    ///
    /// # Errors
    ///
    /// When the host is down or the service is not started in time.
    pub async fn serve(&self, service: &Service) -> anyhow::Result<Process> {
        spec::write(&spec::service_file(&self.folder, &service.name), service)?;
        self.release(&service.name).await
    }

    /// Keeps a service from being started again when it ends. It is not stopped by this.
    ///
    /// # Errors
    ///
    /// When that cannot be written down.
    pub fn hold(&self, service: &str) -> anyhow::Result<()> {
        std::fs::write(spec::hold_file(&self.folder, service), "").context("hold a service")
    }

    /// Ends a hold, and waits until the service runs.
    ///
    /// # Errors
    ///
    /// When the host is down or the service does not start in time.
    pub async fn release(&self, service: &str) -> anyhow::Result<Process> {
        if let Err(error) = std::fs::remove_file(spec::hold_file(&self.folder, service))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error).context("release a service");
        }
        self.init()?.signal(Signal::SIGHUP)?;
        wait_until(format!("{service} to run on {}", self.name), BOOT, || async {
            self.service(service)?
                .with_context(|| format!("{service} does not run: {:?}", self.state(service)))
        })
        .await
    }

    /// Kills a service as kill -9 does and keeps it down; [`Host::release`] lets it run again.
    ///
    /// # Errors
    ///
    /// When it does not run or does not end.
    pub async fn kill(&self, service: &str) -> anyhow::Result<()> {
        self.hold(service)?;
        let process =
            self.service(service)?.with_context(|| format!("{service} does not run on {}", self.name))?;
        process.signal(Signal::SIGKILL)?;
        crate::wait::wait_for(format!("{service} to end"), BOOT, || async {
            !process.is_alive() && self.state(service).pid.is_none()
        })
        .await
    }

    /// Kills a service as kill -9 does and waits until pid 1 has started it again.
    ///
    /// # Errors
    ///
    /// When it does not run or is not started again.
    pub async fn crash(&self, service: &str) -> anyhow::Result<Process> {
        let before =
            self.service(service)?.with_context(|| format!("{service} does not run on {}", self.name))?;
        before.signal(Signal::SIGKILL)?;
        wait_until(format!("{service} to be started again"), BOOT, || async {
            self.service(service)?.filter(|now| *now != before).context("not yet")
        })
        .await
    }

    /// The process of a service, as seen from outside, if it runs.
    ///
    /// # Errors
    ///
    /// When the host is down.
    pub fn service(&self, service: &str) -> anyhow::Result<Option<Process>> {
        let init = self.init()?;
        let Some(pid) = self.state(service).pid else { return Ok(None) };
        let found = self.processes_of(init).into_iter().find(|one| one.inner_pid == pid && !one.zombie);
        Ok(found.map(|one| one.process))
    }

    /// What pid 1 says of a service; nothing, if it never heard of it.
    #[must_use]
    pub fn state(&self, service: &str) -> ServiceState {
        spec::read(&spec::state_file(&self.folder, service)).unwrap_or_default()
    }

    /// All processes of the host, pid 1 first.
    ///
    /// # Errors
    ///
    /// When the host is down.
    pub fn processes(&self) -> anyhow::Result<Vec<Entry>> {
        Ok(self.processes_of(self.init()?))
    }

    /// Connects from this host, though the socket is then used by this process.
    ///
    /// # Errors
    ///
    /// When nobody answers within `deadline`.
    pub async fn connect(&self, to: SocketAddr, deadline: Duration) -> anyhow::Result<tokio::net::TcpStream> {
        let stream = self.in_network(move || TcpStream::connect_timeout(&to, deadline)).await?;
        let stream = stream.with_context(|| format!("connect from {} to {to}", self.name))?;
        stream.set_nonblocking(true).context("make a socket non-blocking")?;
        tokio::net::TcpStream::from_std(stream).context("hand a socket to the runtime")
    }

    /// Listens on this host, though the socket is then served by this process.
    ///
    /// # Errors
    ///
    /// When the address is in use or not the host's.
    pub async fn listen(&self, at: SocketAddr) -> anyhow::Result<TcpListener> {
        let listener = self.in_network(move || TcpListener::bind(at)).await?;
        listener.with_context(|| format!("listen on {at} of {}", self.name))
    }

    /// A datagram socket of this host, used by this process.
    ///
    /// # Errors
    ///
    /// When the address is in use or not the host's.
    pub async fn datagrams(&self, at: SocketAddr) -> anyhow::Result<tokio::net::UdpSocket> {
        let socket = self.in_network(move || UdpSocket::bind(at)).await?;
        let socket = socket.with_context(|| format!("bind {at} of {}", self.name))?;
        socket.set_nonblocking(true).context("make a socket non-blocking")?;
        tokio::net::UdpSocket::from_std(socket).context("hand a socket to the runtime")
    }

    /// Runs a closure on a thread of its own that is in the host's network. Sockets stay in the network that they
    /// were made in; the thread ends at once, so no other code ever runs there.
    pub(crate) async fn in_network<T: Send + 'static>(
        &self,
        deed: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let namespace = self.namespace();
        let (told, answer) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let entered = namespace.map_or(Ok(()), |name| {
                let space =
                    std::fs::File::open(Path::new("/run/netns").join(name)).context("open a namespace")?;
                setns(space, CloneFlags::CLONE_NEWNET).context("enter a network namespace")
            });
            // Nobody waits any more: then the answer is of no use.
            told.send(entered.map(|()| deed())).ok();
        });
        answer.await.context("the thread in the host's network ended")?
    }

    fn is_isolated(&self) -> bool {
        self.run.isolation() == Isolation::Hosts
    }

    /// Of an isolated host `started` is `unshare`, and its only child is pid 1.
    fn find_init(&self, started: Process) -> anyhow::Result<Process> {
        if !self.is_isolated() {
            return Ok(started);
        }
        let child = proc::all().into_iter().find(|one| one.parent == started.pid && one.inner_pid == 1);
        child.map(|one| one.process).with_context(|| format!("host {} lost its pid 1", self.name))
    }

    fn processes_of(&self, init: Process) -> Vec<Entry> {
        if self.is_isolated() { proc::in_pid_namespace_of(init.pid) } else { proc::tree(init) }
    }
}
