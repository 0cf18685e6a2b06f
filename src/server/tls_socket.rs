//! A secured socket that sends large writes as full TLS records, several in one system call.
//!
//! Ranges of files ([`super::chunk`]) are read here into a buffer that all connections of a thread
//! share, and encrypted from there: no chunk of a body is allocated. A slow client holds at most one
//! [`BATCH`] of records.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::buffers::{Held, ResponseBuffers};
use super::chunk::{Broken, FileQueue, is_stand_in};
use super::turn::Turn;

/// The most bytes of a TLS record (RFC 8446, section 5.1).
pub(super) const RECORD: usize = 16 * 1024;
/// Bytes that are encrypted before they are sent: few enough to stay in the processor's caches.
const BATCH: usize = 4 * RECORD;
/// Bytes that a connection sends in one turn: about 0.1 ms, with encryption.
const TURN: usize = 128 * 1024;
/// The most buffers of a write that one batch takes; hyper has at most 16.
const MAX_SLICES: usize = 16;

thread_local! {
    /// What a range of a file is read into. Never longer than a batch.
    static FROM_FILE: RefCell<Vec<u8>> = RefCell::new(vec![0; BATCH]);
}

/// A connection after its handshake.
#[derive(Debug)]
pub(super) struct TlsSocket<T> {
    stream: TlsStream<T>,
    files: FileQueue,
    turn: Turn,
    buffers: ResponseBuffers,
    /// Encrypted bytes that the socket hasn't taken.
    unsent: Option<Held>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> TlsSocket<T> {
    /// `files` is what bodies on this connection queue.
    pub(super) fn new(
        mut stream: TlsStream<T>,
        files: FileQueue,
        buffers: ResponseBuffers,
    ) -> Self {
        // This socket encrypts nothing before all records are sent, and then one batch.
        stream.get_mut().1.set_buffer_limit(None);
        Self {
            stream,
            files,
            turn: Turn::of(TURN),
            buffers,
            unsent: None,
        }
    }

    /// Sends the records that wait.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (io, connection) = self.stream.get_mut();
        while connection.wants_write() {
            match connection.write_tls(&mut Blocking { io, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.turn.end();
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.unsent = None;
        Poll::Ready(Ok(()))
    }

    /// Encrypts the first batch of the buffers. Returns how many of their bytes it took.
    fn encrypt(&mut self, bufs: &[IoSlice<'_>], from_file: &mut [u8]) -> io::Result<usize> {
        let mut room = self.buffers.piece(BATCH);
        let (mut memory, mut read) = (0, 0);
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, buf) in slices.iter_mut().zip(bufs) {
            if room == 0 {
                break;
            }
            count += 1;
            if is_stand_in(buf) {
                read = self.read_file(buf.len(), from_file, room)?;
                *slice = IoSlice::new(from_file.get(..read).unwrap_or_default());
                break;
            }
            let part = buf.get(..room).unwrap_or(buf);
            *slice = IoSlice::new(part);
            memory += part.len();
            room -= part.len();
        }
        let slices = slices.get(..count).unwrap_or_default();
        let taken = self.stream.get_mut().1.writer().write_vectored(slices)?;
        if read > 0 {
            self.files.sent(taken.saturating_sub(memory));
        }
        Ok(taken)
    }

    /// Reads at most `max` bytes of the range that a stand-in of length `len` stands for; at least one.
    fn read_file(&self, len: usize, buffer: &mut [u8], max: usize) -> io::Result<usize> {
        let range = self.files.next(len)?;
        let Some(file) = range.reader.file() else {
            return Err(self.files.broken(Broken::Unknown).into());
        };
        let max = max.min(range.len).min(buffer.len());
        let buffer = buffer.get_mut(..max).unwrap_or_default();
        loop {
            match file.read_at(buffer, range.start) {
                Ok(0) => {
                    range.reader.suspect();
                    return Err(self.files.broken(Broken::Shorter).into());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Read again, and set aside, when it is asked for next.
                    range.reader.suspect();
                    return Err(error);
                }
                read => return read,
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsSocket<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsSocket<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.files.check()?;
        ready!(this.turn.poll(cx));
        ready!(this.poll_send(cx))?;
        let taken = FROM_FILE.with_borrow_mut(|buffer| this.encrypt(bufs, buffer))?;
        this.turn.count(taken);
        // An error comes again with the next call.
        if this.poll_send(cx).is_pending() {
            this.unsent = Some(this.buffers.hold(taken));
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(self.stream.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A socket as rustls writes to it: what would wait is an error.
struct Blocking<'a, 'b, T> {
    io: &'a mut T,
    cx: &'a mut Context<'b>,
}

impl<T> Blocking<'_, '_, T> {
    fn now<R>(polled: Poll<io::Result<R>>) -> io::Result<R> {
        match polled {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<T: AsyncWrite + Unpin> Write for Blocking<'_, '_, T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Self::now(Pin::new(&mut *self.io).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::now(Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Self::now(Pin::new(&mut *self.io).poll_flush(self.cx))
    }
}

#[cfg(test)]
mod tests;
