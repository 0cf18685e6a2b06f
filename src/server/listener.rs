//! Sockets to listen on: TCP and unix sockets.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
#[cfg(target_os = "linux")]
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::chunk::FileQueue;
use super::request::Peer;
use crate::config::Listen;
use crate::error_chain::on_one_line;
use crate::systemd::Bound;

/// Bytes that may wait in a socket without having been sent to the client. It keeps many slow clients
/// from holding the most that the kernel gives a socket (4 MiB), leaves what is on its way alone, and
/// fast clients gained nothing by more.
#[cfg(target_os = "linux")]
const MAX_UNSENT: u32 = 512 * 1024;

/// How long a client may be silent before its system is asked whether it is still there, how often it
/// is asked, and how many answers may be missing: a dead client is found after two minutes.
#[cfg(target_os = "linux")]
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
#[cfg(target_os = "linux")]
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
#[cfg(target_os = "linux")]
const KEEPALIVE_RETRIES: u32 = 4;
/// What a request on a connection beyond a limit is answered with.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Retry-After: 1\r\n\
    Content-Type: application/json\r\n\
    Content-Length: 85\r\n\
    Connection: close\r\n\
    \r\n\
    {\"errors\":[{\"code\":\"UNAVAILABLE\",\"message\":\"too many connections; try again later\"}]}";

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// Whoever handed it over keeps it open: what isn't accepted here waits for the next process.
    is_handed: bool,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that a client has made, not yet admitted.
pub(super) enum Connected {
    Tcp(TcpStream, SocketAddr),
    Unix(tokio::net::UnixStream),
}

/// A connection that is served.
pub(super) struct Accepted {
    pub(super) stream: Box<dyn Stream>,
    pub(super) peer: Peer,
    /// Where bodies queue what the stream sends from files. None where it can't.
    pub(super) files: Option<FileQueue>,
}

/// Why a socket can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("can't listen on {address}: {source}{}", hint(source))]
    Tcp { address: String, source: io::Error },
    #[error(
        "can't listen on the unix socket {path}: {source}{}",
        hint_for_socket(source)
    )]
    Unix { path: PathBuf, source: io::Error },
}

/// What to do about an address that can't be bound.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; is another program, or another millpond, using it?",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

/// What to do about a socket file that can't be made.
fn hint_for_socket(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; its directory must exist",
        io::ErrorKind::PermissionDenied => "; its directory must be writable for millpond's user",
        io::ErrorKind::AlreadyExists | io::ErrorKind::AddrInUse => {
            "; a file or another program's socket has that name"
        }
        _ => "",
    }
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
                    .inspect(prepare)
                    .map(|listener| Self::own(Socket::Tcp(listener)))
                    .map_err(|source| BindError::Tcp {
                        address: address.clone(),
                        source,
                    })
            }
            Listen::Unix(path) => UnixSocket::bind(path)
                .await
                .map(|socket| Self::own(Socket::Unix(socket)))
                .map_err(|source| BindError::Unix {
                    path: path.clone(),
                    source,
                }),
        }
    }

    const fn own(socket: Socket) -> Self {
        Self {
            socket,
            is_handed: false,
        }
    }

    /// Takes over a socket that the service manager has bound.
    pub fn handed(bound: Bound) -> io::Result<Self> {
        let socket = match bound {
            Bound::Tcp(listener, _) => {
                let listener = TcpListener::from_std(listener)?;
                prepare(&listener);
                Socket::Tcp(listener)
            }
            Bound::Unix(listener, path) => Socket::Unix(UnixSocket {
                listener: tokio::net::UnixListener::from_std(listener)?,
                path,
                is_handed: true,
            }),
        };
        Ok(Self {
            socket,
            is_handed: true,
        })
    }

    /// The next connection that waits already. None if there is none, and where another process will
    /// accept it.
    pub(super) fn waiting(&self) -> Option<io::Result<Connected>> {
        if self.is_handed {
            return None;
        }
        self.accept().now_or_never()
    }

    /// Where it listens: with the port that the system chose, for port 0.
    pub fn address(&self) -> io::Result<Address> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Socket::Unix(socket) => Ok(Address::Unix(socket.path.clone())),
        }
    }

    /// Permits only the owner to connect, where it is a unix socket.
    pub fn make_private(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(_) => Ok(()),
            Socket::Unix(socket) => {
                use std::os::unix::fs::PermissionsExt as _;
                std::fs::set_permissions(&socket.path, std::fs::Permissions::from_mode(0o600))
            }
        }
    }

    /// The next connection. Cancel safe.
    pub(super) async fn accept(&self) -> io::Result<Connected> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // On a socket for both families, IPv4 peers come as mapped addresses.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                Ok(Connected::Tcp(stream, peer))
            }
            Socket::Unix(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                Ok(Connected::Unix(stream))
            }
        }
    }
}

/// Sets what accepted sockets inherit, so that no connection costs the system calls. Without any of
/// it everything works, though with more memory, later packets, or later news of dead clients.
#[cfg(target_os = "linux")]
fn prepare(listener: &TcpListener) {
    let socket = socket2::SockRef::from(listener);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let set = socket
        .set_tcp_notsent_lowat(MAX_UNSENT)
        // Heads and small manifests must not wait for an acknowledgement.
        .and_then(|()| socket.set_tcp_nodelay(true))
        .and_then(|()| socket.set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!(error = %on_one_line(&error), "the listening socket takes not all options");
    }
}

#[cfg(not(target_os = "linux"))]
fn prepare(_listener: &TcpListener) {}

impl Accepted {
    #[cfg(target_os = "linux")]
    fn tcp(stream: TcpStream, peer: SocketAddr) -> Self {
        let files = FileQueue::default();
        Self {
            stream: Box::new(super::sendfile::FileSocket::new(stream, files.clone())),
            peer: Peer::tcp(peer),
            files: Some(files),
        }
    }

    /// Other systems don't hand the listening socket's options on.
    #[cfg(not(target_os = "linux"))]
    fn tcp(stream: TcpStream, peer: SocketAddr) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %on_one_line(&error), "the client has gone");
        }
        Self {
            stream: Box::new(stream),
            peer: Peer::tcp(peer),
            files: None,
        }
    }
}

impl Connected {
    /// None for a unix socket.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(_, peer) => Some(peer.ip()),
            Self::Unix(_) => None,
        }
    }

    pub(super) fn accept(self) -> Accepted {
        match self {
            Self::Tcp(stream, peer) => Accepted::tcp(stream, peer),
            Self::Unix(stream) => Accepted {
                stream: Box::new(stream),
                peer: Peer {
                    address: None,
                    name: "unix".into(),
                    certificate: None,
                    is_secure: false,
                },
                files: None,
            },
        }
    }

    /// Closes the connection without waiting for anything. A request that has come already is
    /// answered; clients take an answer without a request for a broken connection.
    pub(super) fn refuse(self) {
        let refused = match self {
            Self::Tcp(stream, _) => stream.into_std().and_then(refuse),
            Self::Unix(stream) => stream.into_std().and_then(refuse),
        };
        if let Err(error) = refused {
            tracing::trace!(error = %on_one_line(&error), "the client was not told why it was refused");
        }
    }
}

/// The socket doesn't block.
fn refuse(mut stream: impl io::Read + io::Write) -> io::Result<()> {
    // Besides, a socket with unread bytes is reset when it is closed, and an answer may be lost.
    match stream.read(&mut [0; 2048])? {
        0 => Ok(()),
        _ => stream.write_all(REFUSAL),
    }
}

/// A unix socket whose file goes with it, unless it was handed over.
#[derive(Debug)]
pub struct UnixSocket {
    listener: tokio::net::UnixListener,
    path: PathBuf,
    is_handed: bool,
}

impl UnixSocket {
    /// Replaces a socket file at which no process answers: a killed process leaves one.
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
            is_handed: false,
        })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if self.is_handed {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), error = %on_one_line(&error), "the socket's file was gone already");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_sockets_probe_idle_clients() {
        let listener = Listener::bind(&Listen::Tcp("127.0.0.1:0".to_owned()))
            .await
            .unwrap();
        let Ok(Address::Tcp(address)) = listener.address() else {
            panic!("not a TCP address");
        };
        let _client = TcpStream::connect(address).await.unwrap();
        let Connected::Tcp(accepted, _) = listener.accept().await.unwrap() else {
            panic!("not a TCP socket");
        };
        let socket = socket2::SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
    }
}
