//! What a push can't do without: a loop that receives, hashes and writes.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};
use millpond::oci::{Algorithm, Hasher};

use super::super::common::content::PIECE;
use super::super::common::proc::thread_seconds;

/// Bytes that are received at a time.
const CHUNK: usize = 64 << 10;

/// CPU seconds of a thread that receives so many bytes over 127.0.0.1, hashes them, and writes them to
/// the disk that the servers use.
pub(super) fn seconds(bytes: u64) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let loop_of_one = thread::spawn(move || -> Result<f64> {
        let mut file = tempfile::tempfile()?;
        let (mut buffer, mut hasher) = (vec![0; CHUNK], Hasher::new(Algorithm::Sha256));
        let before = thread_seconds()?;
        loop {
            let count = receiver.read(&mut buffer)?;
            let bytes = buffer.get(..count).context("more than there is room for")?;
            if bytes.is_empty() {
                break;
            }
            hasher.update(bytes);
            file.write_all(bytes)?;
        }
        std::hint::black_box(hasher.finish());
        Ok(thread_seconds()? - before)
    });
    let (piece, mut left) = (vec![7; PIECE], bytes);
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        sender.write_all(piece.get(..count).unwrap_or(&piece))?;
        left -= count as u64;
    }
    drop(sender);
    let ended = loop_of_one.join();
    ended.map_err(|_panicked| anyhow::anyhow!("the loop panicked"))?
}
