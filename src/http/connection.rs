//! Connections: accepting them, speaking HTTP on them, ending them.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::Body;
use super::listener::{Accepted, Listener};
use super::stall::StallGuard;
use crate::causes::on_one_line;
use crate::metrics::Metrics;

/// How long a client may take to send a request's head, and an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Most bytes of a request's head, and of an answer that hyper holds for one connection. With a
/// body chunk this is what a slow client costs.
const MAX_BUFFER: usize = 64 * 1024;
/// Requests that one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 256;
/// Pause after a failed accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Arc<str>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// How connections are spoken to.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// HTTP/2 with prior knowledge, beside HTTP/1.1.
    pub http2: bool,
    pub metrics: Arc<Metrics>,
}

/// Serves `listener` until `stop`; then connections end after the request that is under way.
/// `tasks` owns them.
pub async fn serve<H: Handler>(
    listener: Listener,
    handler: Arc<H>,
    settings: ConnectionSettings,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let builder = builder(settings.http2);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => {
                let (builder, handler, stop) =
                    (builder.clone(), Arc::clone(&handler), stop.clone());
                let counted = settings.metrics.connection();
                tasks.spawn(async move {
                    connection(&builder, accepted, handler, stop).await;
                    drop(counted);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn builder(http2: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if !http2 {
        builder = builder.http1_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_BUFFER)
        .keep_alive_interval(Some(HEAD_TIMEOUT));
    builder
}

async fn connection<H: Handler>(
    builder: &auto::Builder<TokioExecutor>,
    accepted: Accepted,
    handler: Arc<H>,
    stop: CancellationToken,
) {
    let Accepted {
        stream,
        peer,
        files,
    } = accepted;
    let peer: Arc<str> = peer.into();
    let service = service_fn(|request: Request<Incoming>| {
        // HTTP/2 puts frames into a body, so there it has to be in memory.
        let http1 = request.version() <= Version::HTTP_11;
        let files = files.clone().filter(|_| http1);
        let answer = Arc::clone(&handler).handle(request, Arc::clone(&peer));
        async move {
            let mut response = answer.await;
            if let Some(files) = files {
                response.body_mut().send_files(&files);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let stream = TokioIo::new(StallGuard::new(stream));
    let connection = builder.serve_connection(stream, service);
    tokio::pin!(connection);
    // A token's future takes a lock of all connections each time that it is polled. In a set it is
    // polled when it has been woken, not with every request.
    let mut stopped: FuturesUnordered<_> = std::iter::once(stop.cancelled()).collect();
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        Some(()) = stopped.next() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients hang up as they please; a broken body has been logged where it broke.
        tracing::debug!(%peer, error = %on_one_line(&*error), "connection ended early");
    }
}
