//! Connections: accepting or refusing them, detecting the protocol, ending them.
//!
//! A client has [`FIRST_BYTE_TIMEOUT`](super::socket::FIRST_BYTE_TIMEOUT) for its first byte,
//! [`HEAD_TIMEOUT`](super::socket::HEAD_TIMEOUT) for a head, and [`IDLE_TIMEOUT`] between requests.
//! At a stop, the next response says that its connection ends, and a connection on which nothing happens
//! ends after [`LINGER`].

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Request;
use http::header::{CONNECTION, HeaderValue};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::buffers::ResponseBuffers;
use super::http2::Http2;
use super::limits::{Admission, Reports};
use super::listener::{Accepted, Connected, Listener, Stream};
use super::request::{Handler, RequestBody};
use super::socket::{ClientSocket, IDLE_TIMEOUT, LINGER, Progress};
use super::tls::Handshakes;
use crate::clock::Clock;
use crate::error_chain::on_one_line;
use crate::metrics::{Metrics, RefusedConnection};
use crate::tasks::Tasks;
use crate::tls::ServerTls;

/// Most bytes of a request's head, and of an answer that hyper holds for one connection. With a
/// body chunk this is what a slow client costs.
const MAX_BUFFER: usize = 64 * 1024;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are accepted after the stop, at most.
const MAX_LATE: usize = 1024;
/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The connection ends with this response (RFC 9112, section 9.6).
const CLOSE: HeaderValue = HeaderValue::from_static("close");
/// Bytes read at first: the whole head of most requests.
const FIRST_READ: usize = 1024;

/// How connections are served.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// HTTP/2 with prior knowledge, beside HTTP/1.1.
    pub http2: bool,
    /// None for plain connections. Unix sockets are always plain.
    pub tls: Option<Arc<ServerTls>>,
    /// Shared by the listeners whose connections are limited together.
    pub admission: Arc<Admission>,
    pub buffers: ResponseBuffers,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
}

/// Serves `listener` until `stop`; then connections end after the requests that are under way.
/// `tasks` owns them.
pub async fn serve<H: Handler>(
    listener: Listener,
    handler: Arc<H>,
    settings: ConnectionSettings,
    tasks: Tasks,
    stop: CancellationToken,
) {
    let metrics = Arc::clone(&settings.metrics);
    let server = Arc::new(Server {
        http1: http1_builder(),
        http2: settings
            .http2
            .then(|| Http2::new(settings.clock, tasks.tracker().clone())),
        handler,
        tls: settings
            .tls
            .map(|tls| Handshakes::new(tls, settings.buffers.clone(), Arc::clone(&metrics))),
        buffers: settings.buffers,
        stop: stop.clone(),
    });
    let mut reports = Reports::default();
    let mut late = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            // What has connected already is served.
            () = stop.cancelled() => match listener.waiting() {
                Some(accepted) if late < MAX_LATE => accepted,
                _ => return,
            },
            accepted = listener.accept() => accepted,
        };
        late += usize::from(stop.is_cancelled());
        let refusal = match accepted {
            Ok(connected) => match settings.admission.admit(connected.address()) {
                Ok(permit) => {
                    let (server, counted) = (Arc::clone(&server), metrics.connection());
                    tasks.spawn(async move {
                        server.connection(connected).await;
                        drop((counted, permit));
                    });
                    continue;
                }
                Err(reason) => {
                    let address = connected.address();
                    // Nothing can be said without a handshake.
                    if server.tls.is_none() {
                        connected.refuse();
                    }
                    Refusal::Limit(reason, address)
                }
            },
            // The client has gone before it was accepted.
            Err(error) if gone(&error) => continue,
            Err(error) => Refusal::System(error),
        };
        metrics.connection_refused(refusal.reason());
        if let Some(count) = reports.count() {
            refusal.report(count);
        }
        if matches!(refusal, Refusal::System(_)) {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// A connection that isn't served.
enum Refusal {
    Limit(RefusedConnection, Option<IpAddr>),
    System(io::Error),
}

impl Refusal {
    fn reason(&self) -> RefusedConnection {
        match self {
            Self::Limit(reason, _) => *reason,
            Self::System(_) => RefusedConnection::System,
        }
    }

    /// `count` is how many connections were refused since the last report.
    fn report(&self, count: u64) {
        match self {
            Self::Limit(reason, address) => tracing::warn!(
                limit = reason.as_str(),
                address = address.map(tracing::field::display),
                refused = count,
                "refused client connections: too many are open (http.limits)"
            ),
            Self::System(error) => tracing::warn!(
                error = %on_one_line(&error),
                failed = count,
                "can't accept client connections; trying again"
            ),
        }
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(MAX_BUFFER);
    builder
}

/// What all connections of a listener share.
struct Server<H> {
    http1: http1::Builder,
    http2: Option<Http2>,
    handler: Arc<H>,
    tls: Option<Handshakes>,
    buffers: ResponseBuffers,
    stop: CancellationToken,
}

type Socket = ClientSocket<Box<dyn Stream>>;
type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

impl<H: Handler> Server<H> {
    async fn connection(&self, connected: Connected) {
        let accepted = match (&self.tls, connected) {
            (Some(handshakes), Connected::Tcp(stream, address)) => {
                // Boxed, so that it takes no memory in plain connections.
                let handshake = Box::pin(handshakes.accept(stream, address));
                let secured = tokio::select! {
                    secured = handshake => secured,
                    () = self.lingered() => return,
                };
                let Some(accepted) = secured else { return };
                accepted
            }
            (_, connected) => connected.accept(),
        };
        let name = Arc::clone(&accepted.peer.name);
        if let Err(error) = self.serve(accepted).await {
            // Clients hang up as they please; a broken body has been logged where it broke.
            tracing::debug!(peer = %name, error = %on_one_line(&*error), "connection ended early");
        }
    }

    /// Waits until the server has been stopping for a while.
    async fn lingered(&self) {
        self.stop.cancelled().await;
        tokio::time::sleep(LINGER).await;
    }

    async fn serve(&self, accepted: Accepted) -> Result<(), ConnectionError> {
        let Accepted {
            stream,
            peer,
            files,
        } = accepted;
        let progress = Arc::new(Progress::default());
        let mut socket = ClientSocket::new(stream, Arc::clone(&progress));
        if let Some(http2) = &self.http2 {
            let is_http2 = tokio::select! {
                biased;
                is_http2 = detect_http2(&mut socket) => is_http2?,
                () = self.lingered() => return Ok(()),
            };
            if is_http2 {
                socket.leave_reads_alone();
                let handler = Arc::clone(&self.handler);
                let buffers = self.buffers.clone();
                // Boxed, so that it takes no memory in HTTP/1 connections.
                return Box::pin(http2.serve(socket, handler, peer, buffers, &self.stop)).await;
            }
        }
        let progress = &progress;
        let is_last = || progress.is_draining();
        let service = service_fn(|request: Request<Incoming>| {
            progress.head_complete();
            let (handler, peer, files) = (Arc::clone(&self.handler), peer.clone(), files.clone());
            async move {
                // Made here: a future that is made before has its memory twice in this one. Nothing is read of a
                // body before this is polled.
                let request = request.map(|body| RequestBody::http1(body, progress));
                let mut response = handler.handle(request, peer).await;
                if is_last() {
                    response.headers_mut().insert(CONNECTION, CLOSE);
                }
                response.body_mut().send_on_http1(&self.buffers, files);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = self.http1.serve_connection(TokioIo::new(socket), service);
        tokio::pin!(connection);
        // A token's future takes a lock of all connections each time that it is polled. In a set it
        // is polled when it has been woken, not with every request.
        let mut stopped: FuturesUnordered<_> = std::iter::once(self.stop.cancelled()).collect();
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            Some(()) = stopped.next() => progress.drain(),
        }
        loop {
            let moves = progress.moves();
            tokio::select! {
                biased;
                ended = connection.as_mut() => return Ok(ended?),
                () = tokio::time::sleep(LINGER) => {}
            }
            if moves == progress.moves() {
                break;
            }
        }
        progress.stop();
        connection.as_mut().graceful_shutdown();
        Ok(connection.await?)
    }
}

/// Reads the first bytes of a connection, tells whether they are HTTP/2's, and gives them back to the
/// socket.
async fn detect_http2(socket: &mut Socket) -> io::Result<bool> {
    let mut first = [0; FIRST_READ];
    let mut len = 0;
    let is_http2 = loop {
        let read = socket
            .read(first.get_mut(len..).unwrap_or_default())
            .await?;
        len += read;
        let bytes = first.get(..len).unwrap_or_default();
        if bytes.starts_with(PREFACE) {
            break true;
        }
        if read == 0 || !PREFACE.starts_with(bytes) {
            break false;
        }
    };
    let bytes = first.get(..len).unwrap_or_default();
    socket.unread(Bytes::copy_from_slice(bytes));
    Ok(is_http2)
}
