//! The kernel's own door to nftables, and to its TCP connections: netlink messages, one transaction at a time.
//!
//! Answerable for getting bytes to the kernel and its answers back, whole and in order; not for what they mean
//! ([`crate::firewall`]). The kernel works through a message while it is being sent, so a call neither waits for another
//! process nor starts one: it may be made from a thread that has no runtime.

pub mod connections;
pub mod message;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

use self::connections::Connection;
use self::message::{Answer, Message};

/// What is read at once; the kernel makes no larger parts.
const READ_BYTES: usize = 64 * 1024;
/// What the kernel may hold of answers that were not read yet.
const RECEIVE_BYTES: usize = 1024 * 1024;
/// How often a listing is begun anew because the rules changed meanwhile.
const ATTEMPTS: usize = 10;

/// Talks to the nftables and the TCP of the kernel: the real one, or the fake.
pub trait Netlink: fmt::Debug + Send + Sync {
    /// Sends messages as one transaction: all of it holds afterwards, or nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with the kernel's reason; nothing has changed then.
    fn transact(&self, messages: &[Message]) -> Result<(), Error>;

    /// Everything that the kernel answers to a request, as it was at one moment.
    ///
    /// # Errors
    /// As above.
    fn ask(&self, request: &Message) -> Result<Vec<Message>, Error>;

    /// A second connection to the same kernel, which waits for nothing that is under way on this one.
    ///
    /// # Errors
    /// [`Error::Open`].
    fn another(&self) -> Result<Arc<dyn Netlink>, Error>;

    /// The established connections from other machines that end at this port of this one.
    ///
    /// # Errors
    /// Also where the kernel cannot tell them.
    fn connections(&self, port: u16) -> Result<Vec<Connection>, Error>;

    /// Ends a connection for whoever holds it here, and for the other end, as far as that can be told. One that has ended already is
    /// no error.
    ///
    /// # Errors
    /// Also where the kernel ends none.
    fn end(&self, connection: &Connection) -> Result<(), Error>;
}

/// A kernel that nobody can talk to.
#[derive(Debug, Clone, Copy)]
pub struct Closed(pub Errno);

/// The kernel of this machine, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    inner: Mutex<Inner>,
    /// For connections: opened when it is needed.
    of_tcp: Mutex<Option<Inner>>,
}

#[derive(Debug)]
struct Inner {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open a netlink socket")]
    Open(#[source] Errno),
    #[error("send to netlink")]
    Send(#[source] Errno),
    #[error("read from netlink")]
    Receive(#[source] Errno),
    #[error("list the machine's own addresses")]
    Addresses(#[source] Errno),
    #[error("the kernel refused {deed}")]
    Refused { deed: &'static str, source: Errno },
    #[error("the kernel did not answer {deed}")]
    Silent { deed: &'static str },
    #[error("the kernel's answer is not understood: {0}")]
    Malformed(&'static str),
}

/// The kernel of this machine; where it has no netlink for nftables, one that refuses everything and says why.
pub fn open() -> Arc<dyn Netlink> {
    match Socket::open() {
        Ok(socket) => Arc::new(socket),
        Err(Error::Open(errno)) => Arc::new(Closed(errno)),
        Err(_) => Arc::new(Closed(Errno::EPROTONOSUPPORT)),
    }
}

// === impl Socket ===

impl Socket {
    /// # Errors
    /// Where the kernel has no netlink for nftables. That there is no leave to use it shows with the first call.
    pub fn open() -> Result<Self, Error> {
        let inner = Inner::open(SockProtocol::NetlinkNetFilter)?;
        Ok(Self { inner: Mutex::new(inner), of_tcp: Mutex::new(None) })
    }

    /// Asks for connections.
    fn of_tcp<T>(&self, deed: impl FnOnce(&mut Inner) -> Result<T, Error>) -> Result<T, Error> {
        let mut of_tcp = self.of_tcp.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = match &mut *of_tcp {
            Some(inner) => inner,
            None => of_tcp.insert(Inner::open(SockProtocol::NetlinkSockDiag)?),
        };
        deed(inner)
    }
}

impl Netlink for Socket {
    fn transact(&self, messages: &[Message]) -> Result<(), Error> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).transact(messages)
    }

    fn ask(&self, request: &Message) -> Result<Vec<Message>, Error> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ATTEMPTS {
            if let Some(answers) = inner.ask(request)? {
                return Ok(answers);
            }
        }
        Err(Error::Refused { deed: request.deed(), source: Errno::EINTR })
    }

    fn another(&self) -> Result<Arc<dyn Netlink>, Error> {
        Ok(Arc::new(Self::open()?))
    }

    fn connections(&self, port: u16) -> Result<Vec<Connection>, Error> {
        let mut found = self.of_tcp(|inner| inner.connections(port))?;
        if !found.is_empty() {
            let own = own_addresses()?;
            found.retain(|connection| !connection.peer.is_loopback() && !own.contains(&connection.peer));
        }
        Ok(found)
    }

    fn end(&self, connection: &Connection) -> Result<(), Error> {
        self.of_tcp(|inner| inner.end(connection))
    }
}

// === impl Closed ===

impl Netlink for Closed {
    fn transact(&self, _: &[Message]) -> Result<(), Error> {
        Err(Error::Open(self.0))
    }

    fn ask(&self, _: &Message) -> Result<Vec<Message>, Error> {
        Err(Error::Open(self.0))
    }

    fn another(&self) -> Result<Arc<dyn Netlink>, Error> {
        Err(Error::Open(self.0))
    }

    fn connections(&self, _: u16) -> Result<Vec<Connection>, Error> {
        Err(Error::Open(self.0))
    }

    fn end(&self, _: &Connection) -> Result<(), Error> {
        Err(Error::Open(self.0))
    }
}

// === impl Inner ===

impl Inner {
    fn open(protocol: SockProtocol) -> Result<Self, Error> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(Error::Open)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(Error::Open)?;
        // Without leave to go beyond the usual limit a large transaction fails by itself, and says so.
        let _smaller = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES);
        Ok(Self { socket, sequence: 0, buffer: vec![0; READ_BYTES] })
    }

    fn transact(&mut self, messages: &[Message]) -> Result<(), Error> {
        let Some(last) = messages.last() else { return Ok(()) };
        let deed = last.deed();
        let first = self.sequence.wrapping_add(1);
        let (bytes, acknowledged) = message::batch(messages, first);
        self.sequence = acknowledged.wrapping_add(1);
        self.drop_unread()?;
        // The whole transaction is one datagram.
        let _smaller = setsockopt(&self.socket, sockopt::SndBufForce, &(bytes.len() + READ_BYTES));
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(Error::Send)?;
        let mut done = false;
        let mut refused = None;
        // All answers are there by now.
        while let Some(length) = self.receive(MsgFlags::MSG_DONTWAIT)? {
            for answer in message::answers(&self.buffer[..length])? {
                match answer {
                    Answer::Error { errno, .. } => refused = refused.or(Some(errno)),
                    Answer::Done { sequence } => done |= sequence == acknowledged,
                    Answer::Data { .. } => {}
                }
            }
        }
        match (refused, done) {
            (Some(errno), _) => Err(Error::Refused { deed, source: errno }),
            (None, true) => Ok(()),
            (None, false) => Err(Error::Silent { deed }),
        }
    }

    /// `None`: something changed while the kernel told it.
    fn ask(&mut self, request: &Message) -> Result<Option<Vec<Message>>, Error> {
        self.exchange(request.deed(), |sequence| message::request(request, sequence))
    }

    fn connections(&mut self, port: u16) -> Result<Vec<Connection>, Error> {
        let mut found = Vec::new();
        for family in connections::FAMILIES {
            let request = |sequence| connections::list(family, port, sequence);
            let told = match self.exchange("to list connections", request) {
                // A kernel without IPv6.
                Err(error) if family == connections::Family::V6 && error.is_absent() => continue,
                told => told?,
            };
            // It is no moment's picture, and never said to be.
            for message in told.iter().flatten() {
                found.push(Connection::read(family, message)?);
            }
        }
        Ok(found)
    }

    fn end(&mut self, connection: &Connection) -> Result<(), Error> {
        let ended = self.exchange("to end a connection", |sequence| connections::end(connection, sequence));
        match ended {
            Err(error) if error.is_absent() => Ok(()),
            ended => ended.map(drop),
        }
    }

    /// Sends a request and reads all that is answered. `None`: something changed while the kernel told it.
    fn exchange(
        &mut self,
        deed: &'static str,
        request: impl FnOnce(u32) -> Vec<u8>,
    ) -> Result<Option<Vec<Message>>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let wanted = self.sequence;
        let bytes = request(wanted);
        self.drop_unread()?;
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(Error::Send)?;
        let (mut told, mut interrupted) = (Vec::new(), false);
        loop {
            // A listing goes on as it is read; its first part is there already.
            let Some(length) = self.receive(MsgFlags::MSG_DONTWAIT)? else {
                return Err(Error::Silent { deed });
            };
            for answer in message::answers(&self.buffer[..length])? {
                match answer {
                    Answer::Data { sequence, interrupted: changed, message } if sequence == wanted => {
                        interrupted |= changed;
                        told.push(message);
                    }
                    Answer::Error { sequence, errno } if sequence == wanted => {
                        return Err(Error::Refused { deed, source: errno });
                    }
                    Answer::Done { sequence } if sequence == wanted => {
                        return Ok((!interrupted).then_some(told));
                    }
                    Answer::Data { .. } | Answer::Error { .. } | Answer::Done { .. } => {}
                }
            }
        }
    }

    /// What an earlier call that failed has left.
    fn drop_unread(&mut self) -> Result<(), Error> {
        while self.receive(MsgFlags::MSG_DONTWAIT)?.is_some() {}
        Ok(())
    }

    fn receive(&mut self, flags: MsgFlags) -> Result<Option<usize>, Error> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags | MsgFlags::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => return Err(Error::Malformed("it is cut off")),
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EAGAIN) => return Ok(None),
                // Answers were lost: what is left of them cannot be trusted, and shows as silence.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => return Err(Error::Receive(errno)),
            }
        }
    }
}

// === impl Error ===

impl Error {
    /// Whether this thing does not exist in the kernel.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { source: Errno::ENOENT, .. })
    }

    /// Whether nftables cannot be used here at all.
    pub fn is_no_leave(&self) -> bool {
        use Errno::{EACCES, EAFNOSUPPORT, EOPNOTSUPP, EPERM, EPROTONOSUPPORT};
        match self {
            Self::Open(errno)
            | Self::Send(errno)
            | Self::Receive(errno)
            | Self::Addresses(errno)
            | Self::Refused { source: errno, .. } => {
                matches!(errno, EACCES | EPERM | EPROTONOSUPPORT | EAFNOSUPPORT | EOPNOTSUPP)
            }
            Self::Silent { .. } | Self::Malformed(_) => false,
        }
    }
}

/// Of all interfaces; a connection from one of them is this machine's own, and passes over loopback.
fn own_addresses() -> Result<BTreeSet<IpAddr>, Error> {
    let address = |interface: InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    };
    Ok(getifaddrs().map_err(Error::Addresses)?.filter_map(address).collect())
}
