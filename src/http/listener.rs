//! Sockets to listen on: TCP and, where there are any, unix sockets.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::chunk::FileQueue;
use crate::config::Listen;

/// Bytes that may wait in a socket without having been sent to the client. It keeps many slow clients
/// from holding the most that the kernel gives a socket (4 MiB), leaves what is on its way alone, and
/// fast clients gained nothing by more.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 512 * 1024;

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixSocket),
}

/// A connection of either kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that a client has made.
pub struct Accepted {
    pub(super) stream: Box<dyn Stream>,
    /// Who it is from, for people.
    pub(super) peer: String,
    /// Where bodies queue what the stream sends from files. None where it can't.
    pub(super) files: Option<FileQueue>,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Why a socket can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "can't listen on {address}: {source}; is another program, or another millpond, using it?"
    )]
    Tcp { address: String, source: io::Error },
    #[error("can't listen on the unix socket {path}: {source}")]
    Unix { path: PathBuf, source: io::Error },
    #[error("unix sockets are not available on this system; set http.net to tcp")]
    NoUnix,
}

/// Where a listener listens, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Listener {
    /// Binds. An address without a host, `:5000`, means every interface, as it does in Go.
    pub async fn bind(listen: &Listen) -> Result<Self, BindError> {
        match listen {
            Listen::Tcp(address) => {
                let bound = match address.strip_prefix(':') {
                    // One socket for both families; IPv4 alone where the kernel has no IPv6.
                    Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
                        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                            TcpListener::bind(format!("0.0.0.0:{port}")).await
                        }
                        bound => bound,
                    },
                    None => TcpListener::bind(address).await,
                };
                bound
                    .inspect(limit_unsent)
                    .map(Self::Tcp)
                    .map_err(|source| BindError::Tcp {
                        address: address.clone(),
                        source,
                    })
            }
            #[cfg(unix)]
            Listen::Unix(path) => UnixSocket::bind(path)
                .await
                .map(Self::Unix)
                .map_err(|source| BindError::Unix {
                    path: path.clone(),
                    source,
                }),
            #[cfg(not(unix))]
            Listen::Unix(_) => Err(BindError::NoUnix),
        }
    }

    /// Where it listens: with the port that the system chose, for port 0.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            #[cfg(unix)]
            Self::Unix(socket) => Ok(Address::Unix(socket.path.clone())),
        }
    }

    /// Lets nobody but the owner connect: for a unix socket.
    pub fn make_private(&self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            #[cfg(unix)]
            Self::Unix(socket) => {
                use std::os::unix::fs::PermissionsExt as _;
                std::fs::set_permissions(&socket.path, std::fs::Permissions::from_mode(0o600))
            }
        }
    }

    /// The next connection. Cancel safe.
    pub async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Heads and small manifests must not wait for an acknowledgement.
                stream.set_nodelay(true)?;
                // On a socket for both families, IPv4 peers come as mapped addresses.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                Ok(Accepted::tcp(stream, peer))
            }
            #[cfg(unix)]
            Self::Unix(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                Ok(Accepted {
                    stream: Box::new(stream),
                    peer: "unix".to_owned(),
                    files: None,
                })
            }
        }
    }
}

/// Connections inherit it. Without it everything works, with more memory.
#[cfg(target_os = "linux")]
fn limit_unsent(listener: &TcpListener) {
    if let Err(error) = socket2::SockRef::from(listener).set_tcp_notsent_lowat(MAX_UNSENT) {
        tracing::debug!(%error, "what waits in sockets isn't limited");
    }
}

#[cfg(not(target_os = "linux"))]
fn limit_unsent(_listener: &TcpListener) {}

impl Accepted {
    #[cfg(target_os = "linux")]
    fn tcp(stream: TcpStream, peer: SocketAddr) -> Self {
        let files = FileQueue::default();
        Self {
            stream: Box::new(super::sendfile::FileSocket::new(stream, files.clone())),
            peer: peer.to_string(),
            files: Some(files),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn tcp(stream: TcpStream, peer: SocketAddr) -> Self {
        Self {
            stream: Box::new(stream),
            peer: peer.to_string(),
            files: None,
        }
    }
}

/// A unix socket whose file goes with it.
#[cfg(unix)]
#[derive(Debug)]
pub struct UnixSocket {
    listener: tokio::net::UnixListener,
    path: PathBuf,
}

#[cfg(unix)]
impl UnixSocket {
    /// Takes the place of a socket file that nobody answers at: what a killed process leaves.
    async fn bind(path: &std::path::Path) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt as _;
        if let Ok(found) = std::fs::symlink_metadata(path)
            && found.file_type().is_socket()
        {
            if tokio::net::UnixStream::connect(path).await.is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another program answers there",
                ));
            }
            std::fs::remove_file(path)?;
        }
        Ok(Self {
            listener: tokio::net::UnixListener::bind(path)?,
            path: path.to_owned(),
        })
    }
}

#[cfg(unix)]
impl Drop for UnixSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the socket's file was gone already");
        }
    }
}
