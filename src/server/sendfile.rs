//! A TCP socket that sends ranges of files by sendfile(2): from the page cache to the network card,
//! without a copy through this process. See [`super::chunk`] for how they get here through hyper.

use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::chunk::{Broken, FileQueue, Range, is_stand_in};
use super::turn::{TURN, Turn};

/// Bytes that are read at once from a file that can't be sent.
const COPY: usize = 64 * 1024;

/// A connection that can send files.
#[derive(Debug)]
pub(super) struct FileSocket {
    stream: TcpStream,
    files: FileQueue,
    turn: Turn,
}

impl FileSocket {
    /// `files` is what bodies on this connection queue.
    pub(super) fn new(stream: TcpStream, files: FileQueue) -> Self {
        Self {
            stream,
            files,
            turn: Turn::of(TURN),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.turn.poll(cx));
        loop {
            let ready = self.stream.poll_write_ready(cx);
            if ready.is_pending() {
                self.turn.end();
            }
            ready!(ready)?;
            let (stream, files) = (&self.stream, &self.files);
            let mut sent = 0;
            // Only "would block" makes the next round wait: a short count can have other reasons.
            let result = stream.try_io(Interest::WRITABLE, || send(stream, files, bufs, &mut sent));
            match result {
                // What has been sent is told first; an error comes again with the next call.
                _ if sent > 0 => {
                    self.turn.count(sent);
                    return Poll::Ready(Ok(sent));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(|()| sent)),
            }
        }
    }
}

/// Sends the buffers until the socket is full, and counts in `sent`.
fn send(
    stream: &TcpStream,
    files: &FileQueue,
    mut bufs: &[IoSlice<'_>],
    sent: &mut usize,
) -> io::Result<()> {
    while let Some((first, rest)) = bufs.split_first() {
        if is_stand_in(first) {
            send_range(stream, files, &files.next(first.len())?, sent)?;
            bufs = rest;
            continue;
        }
        let files_from = bufs.iter().position(|buf| is_stand_in(buf));
        let (memory, rest) = bufs.split_at(files_from.unwrap_or(bufs.len()));
        // A head leaves in the same packet as what follows it.
        let more = if rest.is_empty() {
            SendFlags::empty()
        } else {
            SendFlags::MORE
        };
        let written = send_memory(stream, memory, more)?;
        *sent += written;
        if written < memory.iter().map(|buf| buf.len()).sum() {
            return Ok(());
        }
        bufs = rest;
    }
    Ok(())
}

fn send_memory(stream: &TcpStream, bufs: &[IoSlice<'_>], flags: SendFlags) -> io::Result<usize> {
    let flags = flags | SendFlags::NOSIGNAL;
    loop {
        match sendmsg(stream, bufs, &mut SendAncillaryBuffer::default(), flags) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Sends the whole of a range, or fails: also when the socket is full.
fn send_range(
    stream: &TcpStream,
    files: &FileQueue,
    range: &Range,
    sent: &mut usize,
) -> io::Result<()> {
    let Some(file) = range.reader.file() else {
        return Err(files.broken(Broken::Unknown).into());
    };
    let (mut offset, mut left) = (range.start, range.len);
    while left > 0 {
        let bytes = match sendfile(stream, file, Some(&mut offset), left) {
            Ok(bytes) => bytes,
            Err(Errno::INTR) => continue,
            // Some file systems have no such call.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                files.unsupported();
                let mut copy = vec![0; left.min(COPY)];
                let read = file.read_at(&mut copy, offset)?;
                copy.truncate(read);
                let bytes = match read {
                    0 => 0,
                    _ => send_memory(stream, &[IoSlice::new(&copy)], SendFlags::empty())?,
                };
                offset += bytes as u64;
                bytes
            }
            Err(error) => {
                if matches!(error, Errno::IO) {
                    // Read again, and set aside, when it is asked for next.
                    range.reader.suspect();
                }
                return Err(error.into());
            }
        };
        if bytes == 0 {
            range.reader.suspect();
            return Err(files.broken(Broken::Shorter).into());
        }
        files.sent(bytes);
        *sent += bytes;
        left = left.saturating_sub(bytes);
    }
    Ok(())
}

impl AsyncRead for FileSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for FileSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.as_mut().poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.files.check()?;
        if bufs.iter().any(|buf| is_stand_in(buf)) {
            self.poll_send(cx, bufs)
        } else {
            Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
        }
    }

    /// hyper then queues bodies as they are; else it would copy them.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
