//! The two listening sockets: from systemd where it holds them, else bound here.

use std::io;
use std::net::SocketAddr;

use listenfd::ListenFd;
use tokio::net::TcpListener;

use crate::config::Config;

/// Where agents and operators connect.
#[derive(Debug)]
pub struct Sockets {
    pub agents: TcpListener,
    pub operators: TcpListener,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen on {address} (`{key}` in coordinator.toml)")]
    Bind {
        key: &'static str,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("take over the socket `{name}` from the service manager")]
    Inherit {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "the service manager passes a socket named `{name}`; expected are `agents` and `operators` (FileDescriptorName=)"
    )]
    UnknownName { name: String },
}

impl Sockets {
    /// Those that the service manager passes by name (`LISTEN_FDNAMES`); what it does not pass is bound.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open(config: &Config, names: Option<&str>) -> Result<Self, Error> {
        let (agents, operators) = inherited(names)?;
        Ok(Self {
            agents: or_bound(agents, "agents", config.agents).await?,
            operators: or_bound(operators, "operators", config.operators).await?,
        })
    }
}

fn inherited(names: Option<&str>) -> Result<(Option<TcpListener>, Option<TcpListener>), Error> {
    let mut passed = ListenFd::from_env();
    let (mut agents, mut operators) = (None, None);
    let names =
        names.filter(|_| passed.len() > 0).unwrap_or_default().split(':').filter(|name| !name.is_empty());
    for (index, name) in names.enumerate() {
        let failed = |source| Error::Inherit { name: name.to_owned(), source };
        let slot = match name {
            "agents" => &mut agents,
            "operators" => &mut operators,
            _ => return Err(Error::UnknownName { name: name.to_owned() }),
        };
        let Some(socket) = passed.take_tcp_listener(index).map_err(failed)? else { continue };
        socket.set_nonblocking(true).map_err(failed)?;
        *slot = Some(TcpListener::from_std(socket).map_err(failed)?);
    }
    Ok((agents, operators))
}

async fn or_bound(
    inherited: Option<TcpListener>,
    key: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, Error> {
    match inherited {
        Some(socket) => Ok(socket),
        None => TcpListener::bind(address).await.map_err(|source| Error::Bind { key, address, source }),
    }
}
