//! TLS handshakes, each in its connection's own task.
//!
//! A client that sends its request without TLS is told so, in HTTP. Everything else that goes wrong
//! is counted and, because anybody can cause it, logged at debug level only.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::rustls::{self, HandshakeKind, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::buffers::ResponseBuffers;
use super::chunk::FileQueue;
use super::listener::Accepted;
use super::request::Peer;
use super::tls_socket::TlsSocket;
use crate::auth::Certificate;
use crate::error_chain::on_one_line;
use crate::metrics::{Handshake, Metrics};
use crate::oci::{ErrorCode, error_document};
use crate::tls::ServerTls;

/// How long a client may take from its connection to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request without TLS that are read, so that its answer isn't lost in a reset.
const MAX_PLAIN: u64 = 64 * 1024;

/// Slow signatures that a listener makes at the same time; the other handshakes wait.
const MAX_SIGNING: usize = 4;

/// Secures the connections of one listener.
#[derive(Debug, Clone)]
pub(super) struct Handshakes {
    tls: Arc<ServerTls>,
    buffers: ResponseBuffers,
    metrics: Arc<Metrics>,
    /// Bounds the slow signatures.
    signing: Arc<Semaphore>,
}

/// Why a connection isn't secured.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the client sent a request without TLS")]
    Plain,
    #[error("the client didn't complete it in time")]
    Timeout,
    #[error("the connection broke: {0}")]
    Connection(#[source] io::Error),
    #[error("the client's certificate isn't accepted: {0}")]
    Certificate(#[source] rustls::Error),
    #[error("the client gave up: {0}")]
    Refused(#[source] rustls::Error),
    #[error(transparent)]
    Protocol(rustls::Error),
}

impl Handshakes {
    pub(super) fn new(
        tls: Arc<ServerTls>,
        buffers: ResponseBuffers,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            tls,
            buffers,
            metrics,
            signing: Arc::new(Semaphore::new(MAX_SIGNING)),
        }
    }

    /// The secured connection. None where there is none, which is counted and logged.
    pub(super) async fn accept(&self, stream: TcpStream, address: SocketAddr) -> Option<Accepted> {
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream, address));
        match handshake.await.unwrap_or(Err(Failure::Timeout)) {
            Ok((accepted, kind)) => {
                self.metrics.handshake(match kind {
                    Some(HandshakeKind::Resumed) => Handshake::Resumed,
                    _ => Handshake::Full,
                });
                Some(accepted)
            }
            Err(failure) => {
                self.metrics.handshake(failure.result());
                tracing::debug!(peer = %address, error = %on_one_line(&failure), "the TLS handshake failed");
                None
            }
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<(Accepted, Option<HandshakeKind>), Failure> {
        // Other systems than Linux don't hand the listening socket's options on.
        #[cfg(not(target_os = "linux"))]
        stream.set_nodelay(true).map_err(Failure::Connection)?;
        let mut first = [0];
        let read = stream.peek(&mut first).await;
        // A TLS record never begins with a letter, and a request always does.
        if read.map_err(Failure::Connection)? == 1 && first[0].is_ascii_uppercase() {
            refuse_plain(stream).await.map_err(Failure::Connection)?;
            return Err(Failure::Plain);
        }
        let version = self.tls.current();
        let config = Arc::clone(version.config());
        let stream = if version.signs_slowly() {
            Box::pin(self.accept_slowly(stream, config)).await
        } else {
            TlsAcceptor::from(config).accept(stream).await
        };
        let stream = stream.map_err(Failure::of)?;
        let connection = stream.get_ref().1;
        let kind = connection.handshake_kind();
        let certificate = version.verified_client(connection);
        let certificate = certificate.map_err(Failure::Certificate)?;
        let certificate = certificate.map(|der| Arc::new(Certificate { der: der.to_vec() }));
        let files = FileQueue::default();
        let accepted = Accepted {
            stream: Box::new(TlsSocket::new(stream, files.clone(), self.buffers.clone())),
            peer: Peer {
                certificate,
                is_secure: true,
                ..Peer::tcp(address)
            },
            files: Some(files),
        };
        Ok((accepted, kind))
    }
}

impl Handshakes {
    /// The handshake with a key whose signature takes long: it is made on the blocking pool, in the step
    /// that answers the client's first message. Only a client that has to send that message again, for
    /// want of a key exchange in common, has it made by the thread of the runtime.
    async fn accept_slowly(
        &self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let turn = Arc::clone(&self.signing).acquire_owned().await;
        let turn = turn.map_err(io::Error::other)?;
        let signed = spawn_blocking(move || {
            let _held = turn;
            hello.into_stream(config)
        });
        signed.await.map_err(io::Error::other)?.await
    }
}

impl Failure {
    fn of(error: io::Error) -> Self {
        let inner = error.get_ref();
        let Some(of_tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Connection(error);
        };
        let of_tls = of_tls.clone();
        match of_tls {
            rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_) => {
                Self::Certificate(of_tls)
            }
            rustls::Error::AlertReceived(_) => Self::Refused(of_tls),
            _ => Self::Protocol(of_tls),
        }
    }

    fn result(&self) -> Handshake {
        match self {
            Self::Plain => Handshake::Plain,
            Self::Timeout => Handshake::Timeout,
            Self::Connection(_) => Handshake::Disconnected,
            Self::Certificate(_) => Handshake::Certificate,
            Self::Refused(_) => Handshake::Refused,
            Self::Protocol(_) => Handshake::Protocol,
        }
    }
}

/// Answers a request that came without TLS.
async fn refuse_plain(mut stream: TcpStream) -> io::Result<()> {
    let message = "this port speaks TLS, and the request came without: use https:// (and take the \
                   mirror out of the client's insecure registries)";
    let document = error_document(ErrorCode::Unsupported, message);
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        document.len()
    );
    stream
        .write_all(&[head.as_bytes(), &document].concat())
        .await?;
    stream.shutdown().await?;
    let rest = &mut stream.take(MAX_PLAIN);
    tokio::io::copy(rest, &mut tokio::io::sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
