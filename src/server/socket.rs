//! A client's socket with deadlines: for the first byte and the head of a request, and for a client
//! that accepts no more bytes.
//!
//! The protocols ([`super::connection`], [`super::http2`]) enforce the idle time between requests.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a client may send nothing after it has connected.
pub(super) const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the head of a request may take: the first one from when the client connected, later ones
/// from their first byte.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may be idle between requests.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a connection may be idle once the server stops: a client that sends a request until then is
/// told with the response that the connection ends. Without that, a request that crosses the end of an
/// idle connection would be lost.
pub const LINGER: Duration = Duration::from_secs(1);
/// How long a client may accept no byte of an answer: longer than any pull pauses for, short enough
/// that dead peers don't pile up.
pub(super) const CLIENT_STALL: Duration = Duration::from_mins(10);

/// What the socket knows of the protocol. Clones of the `Arc` share it within one connection's task.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Requests whose head is complete; wraps around.
    heads: AtomicU32,
    /// Requests whose body may still be received. More than one only while an earlier body, which has ended, isn't
    /// dropped yet.
    bodies: AtomicU32,
    /// The server stops: the next response is the connection's last.
    draining: AtomicBool,
    /// A head that isn't complete is no longer waited for.
    stopping: AtomicBool,
    /// Reads and writes that moved bytes; wraps around.
    moves: AtomicU32,
}

impl Progress {
    /// The head of a request is complete.
    pub(super) fn head_complete(&self) {
        self.heads.fetch_add(1, Ordering::Relaxed);
    }

    /// A body follows the head. Until what is returned is dropped, the client sends no head.
    pub(super) fn body_begins(self: &Arc<Self>) -> ReceivingBody {
        self.bodies.fetch_add(1, Ordering::Relaxed);
        ReceivingBody(Arc::clone(self))
    }

    fn receives_body(&self) -> bool {
        self.bodies.load(Ordering::Relaxed) > 0
    }

    /// From now on each response is the connection's last.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A number that changes when bytes are read or written.
    pub(super) fn moves(&self) -> u32 {
        self.moves.load(Ordering::Relaxed)
    }

    /// Bytes were read or written; a flush is neither. Only the connection's own task calls it.
    fn moved(&self) {
        self.moves
            .store(self.moves().wrapping_add(1), Ordering::Relaxed);
    }

    fn moved_by(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.moved();
        }
    }

    /// From now on an incomplete head ends the connection.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// The body of a request is being received, until this is dropped.
#[derive(Debug)]
pub struct ReceivingBody(Arc<Progress>);

impl Drop for ReceivingBody {
    fn drop(&mut self) {
        self.0.bodies.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the client is expected to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    FirstByte,
    /// The rest of a head, unless more heads than this are complete meanwhile.
    Head(u32),
    /// Whatever it likes: deadlines are the protocol's.
    Anything,
}

/// A socket whose reads fail when a head takes too long, and whose writes fail when the client has
/// accepted nothing for [`CLIENT_STALL`].
#[derive(Debug)]
pub(super) struct ClientSocket<T> {
    stream: T,
    progress: Arc<Progress>,
    /// Bytes that are read first: what was read to detect the protocol.
    detected: Bytes,
    /// The client has closed its side.
    closed: bool,
    expected: Expected,
    /// What the read deadline was set for, if for anything.
    read_deadline_for: Option<Expected>,
    /// Made when first needed. Most heads arrive at once, and most writes never wait.
    read_deadline: Option<Pin<Box<Sleep>>>,
    write_waits: bool,
    write_deadline: Option<Pin<Box<Sleep>>>,
}

impl<T> ClientSocket<T> {
    pub(super) fn new(stream: T, progress: Arc<Progress>) -> Self {
        Self {
            stream,
            progress,
            detected: Bytes::new(),
            closed: false,
            expected: Expected::FirstByte,
            read_deadline_for: None,
            read_deadline: None,
            write_waits: false,
            write_deadline: None,
        }
    }

    /// Gives back bytes that were read to detect the protocol.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.detected = bytes;
    }

    /// From now on the protocol has its own deadlines for what the client sends.
    pub(super) fn leave_reads_alone(&mut self) {
        self.expected = Expected::Anything;
    }

    /// Bytes of a request have come.
    fn received(&mut self) {
        self.progress.moved();
        // How long a body may take is for its reader to say. Its bytes are no beginning of the next head: that would
        // also end the connection while the response is prepared.
        if self.expected != Expected::Anything && !self.progress.receives_body() {
            self.expected = Expected::Head(self.progress.heads.load(Ordering::Relaxed));
        }
    }

    /// Called when a read would wait: ready when it must not.
    fn poll_read_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let first = match self.expected {
            Expected::FirstByte => true,
            Expected::Head(complete) if complete == self.progress.heads.load(Ordering::Relaxed) => {
                // An unsent answer comes first.
                if self.progress.stopping.load(Ordering::Relaxed) && !self.write_waits {
                    return Poll::Ready(Ok(()));
                }
                false
            }
            Expected::Head(_) | Expected::Anything => return Poll::Pending,
        };
        if self.read_deadline_for != Some(self.expected) {
            let deadline = match (&self.read_deadline, self.read_deadline_for) {
                // The first head's time runs from the beginning, too.
                (Some(sleep), Some(Expected::FirstByte)) => {
                    sleep.deadline() + HEAD_TIMEOUT.saturating_sub(FIRST_BYTE_TIMEOUT)
                }
                _ if first => Instant::now() + FIRST_BYTE_TIMEOUT,
                _ => Instant::now() + HEAD_TIMEOUT,
            };
            set(&mut self.read_deadline, deadline);
            self.read_deadline_for = Some(self.expected);
        }
        let Some(deadline) = &mut self.read_deadline else {
            return Poll::Pending;
        };
        ready!(deadline.as_mut().poll(cx));
        let late = if first {
            "the client sent nothing in time"
        } else {
            "the client did not send the whole head of its request in time"
        };
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, late)))
    }

    /// Passes on the result of a write, unless it has been pending for too long.
    fn guard_write<R>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if result.is_ready() {
            self.write_waits = false;
            return result;
        }
        if !self.write_waits {
            self.write_waits = true;
            set(&mut self.write_deadline, Instant::now() + CLIENT_STALL);
        }
        let Some(deadline) = &mut self.write_deadline else {
            return Poll::Pending;
        };
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client takes no more bytes",
        )))
    }
}

fn set(sleep: &mut Option<Pin<Box<Sleep>>>, deadline: Instant) {
    match sleep {
        Some(sleep) => sleep.as_mut().reset(deadline),
        None => *sleep = Some(Box::pin(tokio::time::sleep_until(deadline))),
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ClientSocket<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.detected.is_empty() {
            let len = this.detected.len().min(buf.remaining());
            buf.put_slice(&this.detected.split_to(len));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        match read {
            Poll::Pending => this.poll_read_deadline(cx),
            Poll::Ready(result) => {
                if buf.filled().len() > before {
                    this.received();
                } else if buf.remaining() > 0 && result.is_ok() {
                    this.closed = true;
                }
                Poll::Ready(result)
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ClientSocket<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.progress.moved_by(&result);
        self.guard_write(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.progress.moved_by(&result);
        self.guard_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.guard_write(cx, result)
    }

    /// Does nothing when the client has closed its side: closing the socket, which follows, ends ours
    /// by the same packet, and the system call that is saved costs as much as a small response.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed {
            return self.poll_flush(cx);
        }
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.guard_write(cx, result)
    }
}

#[cfg(test)]
mod tests;
