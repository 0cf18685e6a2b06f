//! A connection of the upstream, with TLS or without.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustix::fs::sendfile;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Bytes that are read from a file, or received, at a time where the kernel can't do it alone.
const ROOM: usize = 256 * 1024;
/// The first byte of a client that begins with TLS: the type of a record of its handshake.
const HANDSHAKE: u8 = 22;

/// What bytes come from and go to.
pub(super) enum Line {
    Plain(TcpStream),
    Secure(Box<StreamOwned<ServerConnection, TcpStream>>),
}

/// The TLS of all connections that begin with it: a directory has the files `cert.pem` and `key.pem`.
pub(super) fn tls(files: &Path) -> Result<Arc<ServerConfig>> {
    let certificate = CertificateDer::from_pem_slice(&fs::read(files.join("cert.pem"))?)?;
    let key = PrivateKeyDer::from_pem_slice(&fs::read(files.join("key.pem"))?)?;
    let config = ServerConfig::builder().with_no_client_auth();
    Ok(Arc::new(config.with_single_cert(vec![certificate], key)?))
}

impl Line {
    /// A connection whose client decides about TLS, where there is any.
    pub(super) fn accept(stream: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Result<Self> {
        let mut first = [0];
        if let Some(config) = tls
            && stream.peek(&mut first)? == 1
            && first == [HANDSHAKE]
        {
            let connection = ServerConnection::new(Arc::clone(config))?;
            return Ok(Self::Secure(Box::new(StreamOwned::new(connection, stream))));
        }
        Ok(Self::Plain(stream))
    }

    /// Sends some bytes of a file from `offset` on, at most `count`; how many they were.
    pub(super) fn send_file(&mut self, file: &File, offset: u64, count: usize) -> Result<u64> {
        let sent = match self {
            Self::Plain(stream) => sendfile(stream, file, Some(&mut offset.clone()), count)?,
            Self::Secure(stream) => {
                let mut room = vec![0; count.min(ROOM)];
                let read = file.read_at(&mut room, offset)?;
                stream.write_all(room.get(..read).context("no more than ROOM")?)?;
                stream.flush()?;
                read
            }
        };
        ensure!(sent > 0, "the file has become shorter");
        Ok(sent as u64)
    }

    /// Receives so many bytes and forgets them.
    pub(super) fn discard(&mut self, mut count: u64) -> Result<()> {
        let mut room = vec![0; usize::try_from(count)?.min(ROOM)];
        while count > 0 {
            let most = usize::try_from(count)?.min(room.len());
            let read = self.read(room.get_mut(..most).context("no more than ROOM")?)?;
            ensure!(read > 0, "a body ended {count} bytes early");
            count -= read as u64;
        }
        Ok(())
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Secure(stream) => stream.read(buffer),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Secure(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Secure(stream) => stream.flush(),
        }
    }
}
