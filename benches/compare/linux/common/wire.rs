//! As much of an HTTP/1.1 client as a measurement needs: GET and HEAD on one connection, the first byte
//! of a body timed apart from the rest, the rest thrown away inside the kernel.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::{RecvFlags, recv};

use super::content::{INDEX, MANIFEST};

/// The longest head of a message, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The longest body that [`Client::read_all`] collects, in bytes.
const MAX_SMALL_BODY: u64 = 4 << 20;
/// Bytes of a body taken per recv(2).
const ROOM: usize = 256 * 1024;
/// How long a peer may stay silent before the run is called broken.
const SILENCE: Duration = Duration::from_mins(2);

/// A connection, and what is left of the answer to its last request.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    head: String,
    /// Body bytes that came in one read with the head.
    early: Vec<u8>,
    /// Body bytes that haven't been read yet, the early ones included.
    left: u64,
    /// Where bytes that are discarded would go.
    room: Vec<u8>,
}

/// Connects, sends `GET path` and reads the head of the answer, which has to be a 200.
pub(crate) fn get(addr: SocketAddr, path: &str) -> Result<Client> {
    let mut client = Client::connect(addr)?;
    client.request("GET", path)?;
    Ok(client)
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, SILENCE)
            .with_context(|| format!("connecting to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Self {
            stream,
            head: String::new(),
            early: Vec::new(),
            left: 0,
            room: Vec::new(),
        })
    }

    /// Sends a request, whose answer has to be a 200, and reads the head of the answer.
    pub(crate) fn request(&mut self, method: &str, path: &str) -> Result<()> {
        let status = self.send(method, path, "")?;
        let early = String::from_utf8_lossy(&self.early);
        ensure!(status == 200, "{method} {path}: status {status}: {early}");
        Ok(())
    }

    /// `GET path` with `Range: bytes=N-`, as containerd asks; the answer has to be a 206 that begins
    /// there.
    pub(crate) fn get_from(&mut self, path: &str, offset: u64) -> Result<()> {
        let status = self.send("GET", path, &format!("Range: bytes={offset}-\r\n"))?;
        let range = header(&self.head, "content-range").unwrap_or_default();
        ensure!(
            status == 206 && range.starts_with(&format!("bytes {offset}-")),
            "status {status}, a body of {range:?}, and not from {offset}",
        );
        Ok(())
    }

    /// Sends a request with more headers, reads the head of the answer, and returns its status.
    pub(crate) fn send(&mut self, method: &str, path: &str, headers: &str) -> Result<u16> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: mirror.example\r\nUser-Agent: bench/1\r\n\
             Accept: {INDEX}, {MANIFEST}\r\n{headers}\r\n"
        );
        self.stream.write_all(request.as_bytes())?;
        (self.head, self.early) =
            read_head(&mut self.stream).with_context(|| format!("{method} {path}"))?;
        self.left = 0;
        if method != "HEAD" {
            let length = header(&self.head, "content-length").context("no Content-Length")?;
            self.left = length.parse()?;
        }
        let status = self.head.split(' ').nth(1).context("no status line")?;
        Ok(status.parse()?)
    }

    /// Body bytes that haven't been read yet.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Waits for the first byte of the body.
    pub(crate) fn wait_first_byte(&mut self) -> Result<()> {
        if self.early.is_empty() && self.left > 0 {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            self.early.extend(byte);
        }
        Ok(())
    }

    /// Reads the whole of a small body.
    pub(crate) fn read_all(&mut self) -> Result<Vec<u8>> {
        let left = self.left;
        ensure!(left <= MAX_SMALL_BODY, "a body of {left} bytes isn't small");
        let mut body = vec![0; usize::try_from(left)?];
        self.read_exact(&mut body)?;
        Ok(body)
    }

    /// Fills `buffer` with the body's next bytes.
    pub(crate) fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        let (size, left) = (buffer.len() as u64, self.left);
        ensure!(size <= left, "the body has only {left} bytes left");
        let early = self.early.len().min(buffer.len());
        let (start, rest) = buffer.split_at_mut(early);
        start.copy_from_slice(self.early.drain(..early).as_slice());
        self.stream.read_exact(rest)?;
        self.left -= size;
        Ok(())
    }

    /// Discards up to `limit` body bytes and returns how many.
    ///
    /// `MSG_TRUNC` on a TCP socket frees the received bytes without copying them out (tcp(7)), so
    /// a client costs little more than its system calls.
    pub(crate) fn discard(&mut self, limit: u64) -> Result<u64> {
        if self.room.is_empty() {
            self.room = vec![0; ROOM];
        }
        let wanted = self.left.min(limit);
        let mut done = (self.early.len() as u64).min(wanted);
        self.early.drain(..usize::try_from(done)?);
        while done < wanted {
            let room = usize::try_from(wanted - done)?.min(ROOM);
            let buffer = self.room.get_mut(..room).context("no more than ROOM")?;
            let (_, got) = recv(&self.stream, buffer, RecvFlags::TRUNC)?;
            ensure!(got > 0, "the body ended {} bytes early", self.left - done);
            done += got as u64;
        }
        self.left -= done;
        Ok(done)
    }
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
