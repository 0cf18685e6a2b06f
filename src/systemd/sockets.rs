//! Socket activation: `sd_listen_fds(3)`.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::{is_own, variable};

/// The first descriptor (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;
/// More sockets than anybody has listeners.
const MAX_SOCKETS: i32 = 64;

/// The listening sockets that this process was started with.
#[derive(Debug, Default)]
pub struct Handed(Vec<HandedSocket>);

/// One of them.
#[derive(Debug)]
pub struct HandedSocket {
    /// `FileDescriptorName=` of the socket unit; by default the unit's own name.
    pub name: String,
    pub bound: Bound,
}

/// A socket that listens already.
#[derive(Debug)]
pub enum Bound {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, PathBuf),
}

/// Why sockets can't be taken over.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    #[error("LISTEN_FDS is {0:?}: a number from 0 to {MAX_SOCKETS} is expected")]
    Count(String),
    #[error("the handed-over socket {descriptor} ({name}) can't be used: {source}")]
    Socket {
        descriptor: i32,
        name: String,
        source: io::Error,
    },
    #[error(
        "the handed-over socket {name} listens on {address}, and no listener of the configuration \
         does: {configured}; make ListenStream= and the key agree"
    )]
    Unclaimed {
        name: String,
        address: String,
        /// Keys with their addresses.
        configured: String,
    },
    #[error(
        "the handed-over socket named {key} listens on {address}, but `{key}` is {configured}; make \
         ListenStream= and the key agree"
    )]
    Mismatch {
        key: String,
        address: String,
        configured: String,
    },
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(_, address) => address.fmt(f),
            Self::Unix(_, path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Handed {
    /// Takes the descriptors that `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` name. To be called
    /// once, before the process opens anything.
    pub fn from_environment() -> Result<Self, SocketsError> {
        if !variable("LISTEN_PID").is_some_and(|pid| is_own(&pid)) {
            return Ok(Self::default());
        }
        let count = variable("LISTEN_FDS").unwrap_or_default();
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let Ok(count @ 0..=MAX_SOCKETS) = count.parse() else {
            return Err(SocketsError::Count(count));
        };
        let mut names = names.split(':');
        let sockets = (FIRST..FIRST + count).map(|descriptor| {
            let name = names.next().filter(|name| !name.is_empty());
            let name = name.unwrap_or("unknown").to_owned();
            match bound(take_over(descriptor)) {
                Ok(bound) => Ok(HandedSocket { name, bound }),
                Err(source) => Err(SocketsError::Socket {
                    descriptor,
                    name,
                    source,
                }),
            }
        });
        Ok(Self(sockets.collect::<Result<_, _>>()?))
    }

    /// Sockets that are already this process's.
    pub fn new(sockets: Vec<HandedSocket>) -> Self {
        Self(sockets)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out the first socket for which `is` says so.
    pub fn take(&mut self, is: impl FnMut(&HandedSocket) -> bool) -> Option<HandedSocket> {
        let position = self.0.iter().position(is)?;
        Some(self.0.remove(position))
    }

    /// The sockets that nobody has taken.
    pub fn left(&self) -> &[HandedSocket] {
        &self.0
    }
}

#[expect(
    unsafe_code,
    reason = "systemd's protocol: LISTEN_PID names this process, so the descriptors from 3 on are open, \
              were opened for it, and nothing else in it owns them; this is called once, before anything \
              is opened"
)]
fn take_over(descriptor: i32) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: see above. A descriptor that isn't open is found by the first call on it, which fails.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// A listening stream socket, which children don't inherit.
fn bound(socket: OwnedFd) -> io::Result<Bound> {
    use rustix::io::{FdFlags, fcntl_setfd};
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    if !rustix::net::sockopt::socket_acceptconn(&socket)? {
        let reason = "it isn't a listening socket; with Accept=no, systemd passes one";
        return Err(io::Error::other(reason));
    }
    let domain = rustix::net::getsockname(&socket)?.address_family();
    if domain == rustix::net::AddressFamily::UNIX {
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let path = address.as_pathname().map(PathBuf::from);
        let path = path.ok_or_else(|| io::Error::other("the unix socket has no path"))?;
        return Ok(Bound::Unix(listener, path));
    }
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok(Bound::Tcp(listener, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_taken_and_others_are_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let taken = bound(tcp.into()).unwrap();
        assert_eq!(taken.to_string(), address.to_string());

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let unix = UnixListener::bind(&path).unwrap();
        let taken = bound(unix.into()).unwrap();
        assert_eq!(taken.to_string(), format!("unix:{}", path.display()));

        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(bound(datagrams.into()).is_err());
        let connected = std::net::TcpStream::connect(address);
        assert!(bound(connected.unwrap().into()).is_err());
    }
}
