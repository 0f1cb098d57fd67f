//! Two hosts on a cable: network namespaces of threads of this very test, which are gone with them.

#![expect(clippy::disallowed_methods, reason = "real programs, real kernel, real time")]

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use crate::host::Host;
use crate::host::exec::Processes;
use crate::host::fake::Fake;
use crate::host::netlink::Socket;

pub(crate) const SERVER: [IpAddr; 2] = addresses(1);
/// Each of the client's addresses; the first two are its usual ones.
pub(crate) const CLIENT: [IpAddr; 2] = addresses(2);
pub(crate) const OTHER: [IpAddr; 2] = addresses(3);
/// Longer than any of this takes on two busy cores.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// What is silent for so long is cut.
const SILENT: Duration = Duration::from_millis(400);

/// The server's side; this thread is in its namespace.
#[derive(Debug)]
pub(crate) struct Lab {
    client: File,
}

/// What became of a byte that was sent to be sent back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    Back,
    /// A reset, or a refusal to connect.
    Reset,
    Silence,
}

const fn addresses(last: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, last)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last as u16)),
    ]
}

/// Runs `test` on a host of its own, which needs root and nft.
pub(crate) fn with_lab(test: impl AsyncFnOnce(Lab) + Send + 'static) {
    let ran = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network of one's own needs root");
        let lab = Lab::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(lab));
    });
    if let Err(panic) = ran.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Looks again and again for so long.
pub(crate) fn for_a_while(length: Duration, mut look: impl FnMut()) {
    let begun = Instant::now();
    while begun.elapsed() < length {
        look();
    }
}

/// Waits for a condition.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut seen: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !seen() {
        assert!(begun.elapsed() < SOON, "waited for {what}");
        std::thread::yield_now();
    }
}

// === impl Lab ===

impl Lab {
    fn new() -> Self {
        let own = own_namespace();
        // A second namespace, held by its file alone.
        let client = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip", &["link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let client = client.join().unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"]);
        drop(own);
        let lab = Self { client };
        lab.cable();
        lab
    }

    /// Both ends get their addresses: the server one of each family, the client two.
    fn cable(&self) {
        use std::os::fd::AsRawFd as _;
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.client.as_raw_fd());
        run("ip", &["link", "set", "eth1", "netns", &path]);
        for address in SERVER {
            run(
                "ip",
                &["addr", "add", &with_length(address), "dev", "eth0", "nodad"]
                    [..usize::from(address.is_ipv6()) + 5],
            );
        }
        run("ip", &["link", "set", "eth0", "up"]);
        self.at_client(|| {
            for address in CLIENT.into_iter().chain(OTHER) {
                run(
                    "ip",
                    &["addr", "add", &with_length(address), "dev", "eth1", "nodad"]
                        [..usize::from(address.is_ipv6()) + 5],
                );
            }
            run("ip", &["link", "set", "eth1", "up"]);
        });
    }

    /// Runs something in the client's namespace.
    pub(crate) fn at_client<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let ran = scope.spawn(|| {
                setns(&self.client, CloneFlags::CLONE_NEWNET).unwrap();
                deed()
            });
            ran.join().unwrap()
        })
    }

    /// The machine of the server, with everything but firewall and programs in memory.
    pub(crate) fn host(&self) -> Host {
        let fake = Fake::new(["/state".into()]);
        let netlink = Arc::new(Socket::open().unwrap());
        Host::from_parts(
            Arc::new(Processes),
            fake.host().files().clone(),
            Arc::new(fake.units.clone()),
            Arc::new(fake.system.clone()),
            netlink,
        )
    }

    /// An engine of sorts: sends back what it gets, on all addresses.
    pub(crate) fn serve(&self, port: u16) {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(mut connection) = connection else { return };
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while matches!(connection.read(&mut byte), Ok(1)) && connection.write_all(&byte).is_ok() {
                    }
                });
            }
        });
    }

    /// Connects from one of the client's addresses.
    pub(crate) fn connect(&self, from: IpAddr, port: u16) -> Result<TcpStream, Echo> {
        let to = SERVER[usize::from(from.is_ipv6())];
        self.at_client(move || connect(SocketAddr::new(from, 0), SocketAddr::new(to, port)))
    }

    /// Connects, sends a byte and waits for it.
    pub(crate) fn try_from(&self, from: IpAddr, port: u16) -> Echo {
        match self.connect(from, port) {
            Ok(mut connection) => echo(&mut connection),
            Err(echo) => echo,
        }
    }
}

/// Sends a byte and waits for it.
pub(crate) fn echo(connection: &mut TcpStream) -> Echo {
    let reset = |kind| match kind {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Echo::Silence,
        _ => Echo::Reset,
    };
    let mut byte = [0];
    match connection.write_all(b"x").and_then(|()| connection.read(&mut byte)) {
        Ok(1) => Echo::Back,
        Ok(_) => Echo::Reset,
        Err(error) => reset(error.kind()),
    }
}

/// Connects from this thread's own namespace, sends a byte and waits for it.
pub(crate) fn connect_to(from: IpAddr, to: IpAddr, port: u16) -> Echo {
    match connect(SocketAddr::new(from, 0), SocketAddr::new(to, port)) {
        Ok(mut connection) => echo(&mut connection),
        Err(echo) => echo,
    }
}

fn connect(from: SocketAddr, to: SocketAddr) -> Result<TcpStream, Echo> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd as _;
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let wait = nix::sys::time::TimeVal::new(0, 400_000);
    setsockopt(&socket, sockopt::SendTimeout, &wait).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => {
            let connection = TcpStream::from(socket);
            connection.set_read_timeout(Some(SILENT)).unwrap();
            Ok(connection)
        }
        Err(nix::errno::Errno::ECONNREFUSED | nix::errno::Errno::ECONNRESET) => Err(Echo::Reset),
        Err(_) => Err(Echo::Silence),
    }
}

fn own_namespace() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

fn with_length(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })
}
