//! The HTTP/2 server: it reads a body no further than its stream's window, and ends connections and
//! streams that make no progress.
//!
//! hyper's own asks a body for its next piece before it knows whether the client has room for it, so
//! that each stream of a client with a tiny window holds two pieces in memory. Here a stream first
//! waits for the window, then for room among the connection's and the process's unsent bytes
//! ([`super::buffers`]), and only then reads, at most what the window takes. While a stream waits for
//! anything else than the window it holds none of it, so that it can't keep other streams waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{DATE, HeaderName, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::Body;
use super::buffers::{ConnectionBuffers, ResponseBuffers, Unsent};
use super::chunk::Chunk;
use super::request::{Handler, Peer, RequestBody};
use super::socket::{CLIENT_STALL, HEAD_TIMEOUT, IDLE_TIMEOUT, LINGER};
use super::tls_socket::RECORD;
use crate::clock::Clock;
use crate::error_chain::on_one_line;

/// Requests that a connection may have open.
const MAX_STREAMS: u32 = 64;
/// Bytes of a request's head, as HTTP/2 counts them.
const MAX_HEAD: u32 = 16 * 1024;
/// Most bytes that a stream reads from its body at once, and that it may have unsent. Whole frames: a rest
/// of the room would be a frame of a few bytes.
const PIECE: usize = 4 * SECURE_FRAME;
/// Bytes of a frame's header (RFC 9113, section 4.1).
const FRAME_HEADER: usize = 9;
/// Bytes of a data frame over TLS: with its header, it fills a record. One of the 16 KiB that HTTP/2
/// permits by default would leave 9 bytes to a record of their own.
const SECURE_FRAME: usize = RECORD - FRAME_HEADER;
/// Most bytes of a piece that is awaited, from an upstream or a disk: it may have to wait for the
/// window when it comes.
const AWAITED_PIECE: usize = 16 * 1024;
/// A stream must be able to send so many bytes, or its rest, while it waits for its window for
/// [`CLIENT_STALL`].
const MIN_PROGRESS: usize = 16 * 1024;
/// Requests that a client may take back before they are answered, beyond as many as it has let
/// finish. Lazy pullers take back some; nobody needs to take back only.
const MAX_RESETS: u32 = 100;
/// Streams that a client has reset before they were accepted: h2's own count, beyond which the
/// connection ends.
const MAX_PENDING_RESETS: usize = 20;
/// Streams that were reset because of a client's errors, beyond which the connection ends.
const MAX_ERROR_RESETS: usize = 100;
/// Headers that HTTP/2 has no place for (RFC 9113, section 8.2.2) and a configuration may add.
const HOP_BY_HOP: [HeaderName; 2] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Serves HTTP/2 connections.
#[derive(Debug)]
pub(super) struct Http2 {
    builder: h2::server::Builder,
    clock: Clock,
    /// Own the connections' streams, which end with their connection.
    tasks: TaskTracker,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The answer has been handed over, or broke off on our side.
    Answered,
    /// The client has taken the request back.
    Reset,
}

impl Http2 {
    pub(super) fn new(clock: Clock, tasks: TaskTracker) -> Self {
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD)
            .max_send_buffer_size(PIECE)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(Some(MAX_ERROR_RESETS));
        Self {
            builder,
            clock,
            tasks,
        }
    }

    /// Serves one connection to its end. After `stop` that is when its last request is answered.
    pub(super) async fn serve<T, H>(
        &self,
        socket: T,
        handler: Arc<H>,
        peer: Peer,
        buffers: ResponseBuffers,
        stop: &CancellationToken,
    ) -> Result<(), Error>
    where
        T: AsyncRead + AsyncWrite + Unpin,
        H: Handler,
    {
        let mut stopped: FuturesUnordered<_> = std::iter::once(stop.cancelled()).collect();
        let handshake = tokio::time::timeout(HEAD_TIMEOUT, self.builder.handshake(socket));
        let connection = handshake.await??;
        let streams = Streams {
            handler,
            peer,
            buffers: ConnectionBuffers::new(buffers),
            clock: self.clock,
        };
        let mut driver = Driver::new(connection);
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                Some(()) = stopped.next() => driver.stop(),
                accepted = driver.next() => {
                    let Some((request, respond)) = accepted? else { return Ok(()) };
                    let streams = streams.clone();
                    let stream = async move { streams.serve(request, respond).await };
                    running.spawn(self.tasks.track_future(stream));
                }
                Some(ended) = running.join_next() => {
                    // A stream that panicked was answered with a reset.
                    driver.ended(ended.unwrap_or(Ended::Answered));
                }
            }
        }
    }
}

/// A connection, and what decides when it ends.
struct Driver<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    connection: Connection<T, Unsent>,
    /// Runs while no stream is open.
    idle: std::pin::Pin<Box<tokio::time::Sleep>>,
    busy: bool,
    stopping: bool,
    /// It has been told to end.
    ending: bool,
    resets: u32,
}

type Accepted = (Request<RecvStream>, SendResponse<Unsent>);

impl<T> Driver<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    fn new(connection: Connection<T, Unsent>) -> Self {
        Self {
            connection,
            idle: Box::pin(tokio::time::sleep(IDLE_TIMEOUT)),
            busy: false,
            stopping: false,
            ending: false,
            resets: 0,
        }
    }

    /// Tells the client to send no more requests. The connection ends when it has heard that and no
    /// stream is open, or after [`LINGER`] without a stream.
    fn stop(&mut self) {
        self.stopping = true;
        self.idle.as_mut().reset(Instant::now() + LINGER);
        self.connection.graceful_shutdown();
    }

    fn ended(&mut self, how: Ended) {
        match how {
            Ended::Answered => self.resets = self.resets.saturating_sub(1),
            Ended::Reset => self.resets += 1,
        }
        if self.resets > MAX_RESETS && !self.ending {
            self.ending = true;
            self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
    }

    /// The next request; None at the end. Cancel safe.
    async fn next(&mut self) -> Result<Option<Accepted>, h2::Error> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Accepted>, h2::Error>> {
        loop {
            if let Poll::Ready(accepted) = self.connection.poll_accept(cx) {
                return Poll::Ready(accepted.transpose());
            }
            // A stream is open until all of it has been sent.
            if self.connection.has_streams() {
                self.busy = true;
                return Poll::Pending;
            }
            if std::mem::take(&mut self.busy) {
                let patience = if self.stopping { LINGER } else { IDLE_TIMEOUT };
                self.idle.as_mut().reset(Instant::now() + patience);
            }
            if self.ending || self.idle.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // A request that crosses this isn't processed, and the client can tell.
            self.ending = true;
            self.connection.abrupt_shutdown(Reason::NO_ERROR);
        }
    }
}

/// What the streams of a connection share.
struct Streams<H> {
    handler: Arc<H>,
    peer: Peer,
    buffers: ConnectionBuffers,
    clock: Clock,
}

impl<H> Clone for Streams<H> {
    fn clone(&self) -> Self {
        Self {
            handler: Arc::clone(&self.handler),
            peer: self.peer.clone(),
            buffers: self.buffers.clone(),
            clock: self.clock,
        }
    }
}

impl<H: Handler> Streams<H> {
    async fn serve(self, request: Request<RecvStream>, mut respond: SendResponse<Unsent>) -> Ended {
        let is_head = request.method() == Method::HEAD;
        let request = request.map(RequestBody::Http2);
        let response = tokio::select! {
            biased;
            response = self.handler.handle(request, self.peer.clone()) => response,
            _reason = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return Ended::Reset,
        };
        let (mut head, body) = response.into_parts();
        for name in HOP_BY_HOP {
            head.headers.remove(name);
        }
        let date = httpdate::fmt_http_date(self.clock.wall());
        if let Ok(date) = HeaderValue::try_from(date) {
            head.headers.insert(DATE, date);
        }
        let end = is_head || body.is_end_stream();
        match respond.send_response(Response::from_parts(head, ()), end) {
            Ok(_stream) if end => Ended::Answered,
            Ok(stream) => {
                let is_secure = self.peer.is_secure;
                Sending::new(stream, self.buffers, is_secure)
                    .send(body)
                    .await
            }
            Err(error) => {
                tracing::debug!(error = %on_one_line(&error), "a response's head can't be sent");
                respond.send_reset(Reason::INTERNAL_ERROR);
                Ended::Answered
            }
        }
    }
}

/// A response's body on its way into a stream.
struct Sending {
    stream: SendStream<Unsent>,
    buffers: ConnectionBuffers,
    /// How long the stream may still wait for its window until it makes progress.
    patience: Duration,
    /// Bytes sent since `patience` was whole.
    progress: usize,
    /// Whether frames are encrypted.
    is_secure: bool,
}

/// Why a body isn't sent to its end.
enum Stop {
    /// The client has reset the stream, or the connection is gone.
    Reset,
    /// The client gives the stream no window.
    Stalled,
    /// The body has broken off.
    Broken,
}

impl Sending {
    fn new(stream: SendStream<Unsent>, buffers: ConnectionBuffers, is_secure: bool) -> Self {
        Self {
            stream,
            buffers,
            patience: CLIENT_STALL,
            progress: 0,
            is_secure,
        }
    }

    async fn send(mut self, body: Body) -> Ended {
        match self.try_send(body).await {
            Ok(()) => Ended::Answered,
            Err(Stop::Reset) => Ended::Reset,
            Err(Stop::Stalled) => {
                self.stream.send_reset(Reason::CANCEL);
                Ended::Answered
            }
            Err(Stop::Broken) => {
                self.stream.send_reset(Reason::INTERNAL_ERROR);
                Ended::Answered
            }
        }
    }

    async fn try_send(&mut self, mut body: Body) -> Result<(), Stop> {
        let piece = body.send_in_pieces();
        loop {
            let window = self.window().await?;
            let room = self.in_frames(self.buffers.piece(window.min(PIECE)));
            if room == 0 {
                self.stream.reserve_capacity(0);
                tokio::select! {
                    () = self.buffers.available() => continue,
                    _reason = std::future::poll_fn(|cx| self.stream.poll_reset(cx)) => {
                        return Err(Stop::Reset);
                    }
                }
            }
            piece.store(room, Ordering::Relaxed);
            let Some(chunk) = self.next(&mut body, &piece).await? else {
                let end = self.buffers.unsent(Chunk::Memory(Bytes::new()));
                return self
                    .stream
                    .send_data(end, true)
                    .map_err(|_gone| Stop::Reset);
            };
            self.sent(chunk.remaining());
            self.hand_over(chunk)?;
        }
    }

    /// As many whole frames as there is room for, where frames have a size of their own.
    fn in_frames(&self, room: usize) -> usize {
        if self.is_secure && room > SECURE_FRAME {
            room - room % SECURE_FRAME
        } else {
            room
        }
    }

    /// Hands a chunk to the connection, which makes a frame of each part, or several of a large one.
    fn hand_over(&mut self, mut chunk: Chunk) -> Result<(), Stop> {
        // A rest of a few bytes is no frame of its own.
        while self.is_secure && chunk.remaining() > RECORD {
            let Some(frame) = chunk.split_to(SECURE_FRAME) else {
                break;
            };
            self.send_part(frame)?;
        }
        self.send_part(chunk)
    }

    fn send_part(&mut self, part: Chunk) -> Result<(), Stop> {
        let part = self.buffers.unsent(part);
        let sent = self.stream.send_data(part, false);
        sent.map_err(|_gone| Stop::Reset)
    }

    /// Waits until the client takes bytes, and returns how many.
    async fn window(&mut self) -> Result<usize, Stop> {
        self.stream.reserve_capacity(PIECE);
        if self.stream.capacity() > 0 {
            return Ok(self.stream.capacity());
        }
        let started = Instant::now();
        let stream = &mut self.stream;
        let window = std::future::poll_fn(|cx| {
            loop {
                match std::task::ready!(stream.poll_capacity(cx)) {
                    Some(Ok(0)) => {}
                    Some(Ok(window)) => return Poll::Ready(Ok(window)),
                    Some(Err(_)) | None => return Poll::Ready(Err(Stop::Reset)),
                }
            }
        });
        let window = tokio::time::timeout(self.patience, window)
            .await
            .map_err(|_elapsed| Stop::Stalled)??;
        self.patience = self.patience.saturating_sub(started.elapsed());
        Ok(window)
    }

    /// Counts what the client's window has taken.
    fn sent(&mut self, bytes: usize) {
        self.progress += bytes;
        if self.progress >= MIN_PROGRESS {
            (self.patience, self.progress) = (CLIENT_STALL, 0);
        }
    }

    /// The body's next chunk, of at most `piece` bytes; None at its end.
    async fn next(&mut self, body: &mut Body, piece: &AtomicUsize) -> Result<Option<Chunk>, Stop> {
        let awaited = self.in_frames(AWAITED_PIECE);
        let stream = &mut self.stream;
        let mut frame = body.frame();
        let frame = std::future::poll_fn(|cx| {
            if let Poll::Ready(frame) = std::pin::Pin::new(&mut frame).poll(cx) {
                return Poll::Ready(Ok(frame));
            }
            // The window is for streams that have something to send.
            stream.reserve_capacity(0);
            piece.fetch_min(awaited, Ordering::Relaxed);
            stream.poll_reset(cx).map(|_reason| Err(Stop::Reset))
        });
        match frame.await? {
            None => Ok(None),
            Some(Ok(frame)) => Ok(frame.into_data().ok()),
            Some(Err(_logged)) => Err(Stop::Broken),
        }
    }
}
