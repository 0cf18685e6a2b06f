//! One connection of a node, kept open between its requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::{RecvFlags, recv};

use super::super::common::wire::{header, read_head};

/// Bytes taken per recv(2).
const ROOM: usize = 256 * 1024;
/// How long a mirror may stay silent.
const SILENCE: Duration = Duration::from_mins(2);

/// A keep-alive connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    host: SocketAddr,
    room: Vec<u8>,
}

/// A whole answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// From the request to the first byte of the body, or to the head where there is no body.
    pub(crate) first_byte: Duration,
    pub(crate) bytes: u64,
}

impl Client {
    pub(crate) fn connect(host: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self {
            stream,
            host,
            room: vec![0; ROOM],
        })
    }

    /// Sends a request and takes the whole answer, which has to be a 200; its body is discarded.
    pub(crate) fn request(&mut self, method: &str, path: &str) -> Result<Answer> {
        let sent = Instant::now();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: bench/1\r\nAccept: {}, {}\r\n\r\n",
            self.host,
            super::super::common::content::INDEX,
            super::super::common::content::MANIFEST,
        );
        self.stream.write_all(request.as_bytes())?;
        let (head, early) = read_head(&mut self.stream)?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{method} {path}: {head}");
        let length: u64 = if method == "HEAD" {
            0
        } else {
            let length = header(&head, "content-length").context("no Content-Length")?;
            length.parse()?
        };
        let mut left = length.checked_sub(early.len() as u64).context("too long")?;
        if early.is_empty() && left > 0 {
            self.stream.read_exact(&mut [0])?;
            left -= 1;
        }
        let first_byte = sent.elapsed();
        while left > 0 {
            let count = usize::try_from(left)?.min(ROOM);
            let room = self.room.get_mut(..count).context("no more than ROOM")?;
            let (_, got) = recv(&self.stream, room, RecvFlags::TRUNC)?;
            ensure!(got > 0, "{path} ended {left} bytes early");
            left -= got as u64;
        }
        Ok(Answer {
            first_byte,
            bytes: length,
        })
    }
}
