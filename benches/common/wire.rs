//! As much of an HTTP/1.1 client as a measurement needs: one GET on a new connection, the first
//! byte of the body timed apart from the rest, the rest thrown away inside the kernel.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{RecvFlags, recv};
use serde::de::DeserializeOwned;

/// The longest response head read, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The longest body that [`Answer::read_all`] collects, in bytes.
const MAX_SMALL_BODY: u64 = 4 << 20;
/// How long a peer may stay silent before the run is called broken.
const SILENCE: Duration = Duration::from_mins(1);

/// A response whose head has been read.
#[derive(Debug)]
pub(crate) struct Answer {
    stream: TcpStream,
    status: u16,
    /// Where a part begins, of a 206.
    start: Option<u64>,
    length: u64,
    /// Body bytes that came in one read with the head.
    early: Vec<u8>,
}

/// Connects, sends `GET path` and reads the head of the answer.
pub(crate) fn get(addr: SocketAddr, path: &str) -> Result<Answer> {
    send(addr, path, "")
}

/// The same with `Range: bytes=N-`, as containerd asks; the answer has to be a 206 that begins
/// there.
pub(crate) fn get_from(addr: SocketAddr, path: &str, offset: u64) -> Result<Answer> {
    let answer = send(addr, path, &format!("Range: bytes={offset}-\r\n"))?;
    ensure!(
        answer.status == 206 && answer.start == Some(offset),
        "status {}, a body from {:?} on, and not from {offset}",
        answer.status,
        answer.start,
    );
    Ok(answer)
}

fn send(addr: SocketAddr, path: &str, headers: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&addr, SILENCE)
        .with_context(|| format!("connecting to {addr}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nAccept: */*\r\n{headers}\r\n");
    stream.write_all(request.as_bytes())?;
    let (head, early) = read_head(&mut stream).with_context(|| format!("GET {path} at {addr}"))?;
    let (status, length) = parse_head(&head)?;
    Ok(Answer {
        stream,
        status,
        start: header(&head, "content-range").and_then(first_byte_position),
        length,
        early,
    })
}

/// Fetches a small JSON document.
pub(crate) fn get_json<T: DeserializeOwned>(addr: SocketAddr, path: &str) -> Result<T> {
    let answer = get(addr, path)?.expect_ok()?;
    Ok(serde_json::from_slice(&answer.read_all()?)?)
}

impl Answer {
    /// The status code.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// The answer itself when it is a 200, an error with its first bytes otherwise.
    pub(crate) fn expect_ok(self) -> Result<Self> {
        if self.status != 200 {
            bail!(
                "status {}: {}",
                self.status,
                String::from_utf8_lossy(&self.early)
            );
        }
        Ok(self)
    }

    /// Waits for the first byte of the body.
    pub(crate) fn wait_first_byte(&mut self) -> Result<()> {
        if self.early.is_empty() && self.length > 0 {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            self.early.extend_from_slice(&byte);
        }
        Ok(())
    }

    /// Reads the whole of a small body.
    pub(crate) fn read_all(mut self) -> Result<Vec<u8>> {
        ensure!(
            self.length <= MAX_SMALL_BODY,
            "a body of {} bytes isn't small",
            self.length
        );
        let rest = self.length.saturating_sub(self.early.len() as u64);
        let read = Read::by_ref(&mut self.stream)
            .take(rest)
            .read_to_end(&mut self.early)?;
        ensure!(
            read as u64 == rest,
            "the body ended {} bytes early",
            rest - read as u64
        );
        Ok(self.early)
    }

    /// Fills `buffer` with the body's next bytes.
    pub(crate) fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        ensure!(
            buffer.len() as u64 <= self.length,
            "the body has only {} bytes left",
            self.length
        );
        let early = self.early.len().min(buffer.len());
        let (start, rest) = buffer.split_at_mut(early);
        start.copy_from_slice(self.early.drain(..early).as_slice());
        self.stream.read_exact(rest)?;
        self.length -= buffer.len() as u64;
        Ok(())
    }

    /// Discards up to `limit` body bytes that haven't been discarded yet and returns how many.
    ///
    /// `MSG_TRUNC` on a TCP socket frees the received bytes without copying them out (tcp(7)), so
    /// a client costs little more than its system calls.
    pub(crate) fn discard(&mut self, limit: u64, scratch: &mut [u8]) -> Result<u64> {
        let wanted = self.length.min(limit);
        let mut done = (self.early.len() as u64).min(wanted);
        self.early.clear();
        while done < wanted {
            let room = usize::try_from(wanted - done)?.min(scratch.len());
            let buffer = scratch
                .get_mut(..room)
                .context("scratch is shorter than its length")?;
            let (_, got) = recv(&self.stream, buffer, RecvFlags::TRUNC)?;
            ensure!(got > 0, "the body ended {} bytes early", self.length - done);
            done += got as u64;
        }
        self.length -= done;
        Ok(done)
    }

    /// Body bytes that haven't been read yet.
    pub(crate) fn left(&self) -> u64 {
        self.length
    }
}

/// N of `Content-Range: bytes N-M/L`.
fn first_byte_position(range: &str) -> Option<u64> {
    let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    first.parse().ok()
}

/// Splits what has arrived into the head (blank line included) and the bytes after it.
pub(crate) fn read_head(stream: &mut impl Read) -> Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return Ok((String::from_utf8(bytes)?, rest));
        }
        ensure!(
            bytes.len() < MAX_HEAD,
            "the head is longer than {MAX_HEAD} bytes"
        );
        let got = stream.read(&mut piece)?;
        if got == 0 && bytes.is_empty() {
            return Ok((String::new(), bytes));
        }
        ensure!(got > 0, "the connection closed in the middle of a head");
        bytes.extend(piece.iter().take(got));
    }
}

/// The value of header `name` (lower case) in a head.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

fn parse_head(head: &str) -> Result<(u16, u64)> {
    let status = head.split(' ').nth(1).context("no status line")?.parse()?;
    let length = header(head, "content-length")
        .context("no Content-Length")?
        .parse()?;
    Ok((status, length))
}
