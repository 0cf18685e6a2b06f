//! Sends content of files to the admin socket of a running server.
//!
//! Writes the request by hand, because only then can the kernel take the bytes out of the files, which halves
//! what an import costs. Each request has a connection of its own. All calls block.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;

use super::client::{ClientError, told};
use super::content::{CONTENT, ContentQuery};
use crate::copy::bundle::Extent;

/// Bytes that are sent in one call, and read at once where they have to be read.
const PIECE: u64 = 1024 * 1024;
/// How long the server may take no bytes.
const SEND_TIME: Duration = Duration::from_mins(1);
/// How long the server may take to make a blob durable.
const ANSWER_TIME: Duration = Duration::from_mins(15);
/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// Writes content into a repository of the server at this socket, which verifies it. `sent` is called with
/// the bytes that have been sent since the last call.
pub fn put(
    socket: &Path,
    query: &ContentQuery,
    content: &[Extent],
    mut sent: impl FnMut(u64),
) -> Result<(), ClientError> {
    let connect = |source| ClientError::Connect {
        path: socket.to_owned(),
        source,
    };
    let broken = |source| ClientError::Upload {
        path: socket.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket).map_err(connect)?;
    let written = write(&mut stream, query, content, &mut sent);
    // The server's answer says why it has hung up.
    written.or_else(unless_closed).map_err(broken)?;
    let (status, body) = read_answer(&mut stream).map_err(broken)?;
    if status.is_success() {
        return Ok(());
    }
    Err(ClientError::Refused(told(&body)))
}

fn write(
    stream: &mut UnixStream,
    query: &ContentQuery,
    content: &[Extent],
    sent: &mut impl FnMut(u64),
) -> io::Result<()> {
    stream.set_write_timeout(Some(SEND_TIME))?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    let length: u64 = content.iter().map(|extent| extent.length).sum();
    write!(
        stream,
        "PUT {CONTENT}?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    )?;
    for extent in content {
        let (mut offset, end) = (extent.offset, extent.offset + extent.length);
        while offset < end {
            let most = usize::try_from((end - offset).min(PIECE)).unwrap_or(usize::MAX);
            match send(stream, extent, offset, most) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    offset += bytes as u64;
                    sent(bytes as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Sends some bytes from an offset of the file on. 0 is the file's end.
#[cfg(target_os = "linux")]
fn send(
    stream: &mut UnixStream,
    extent: &Extent,
    mut offset: u64,
    most: usize,
) -> io::Result<usize> {
    use rustix::io::Errno;
    match rustix::fs::sendfile(&*stream, &*extent.file, Some(&mut offset), most) {
        // Some file systems have no such call.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => copy(stream, extent, offset, most),
        sent => Ok(sent?),
    }
}

#[cfg(not(target_os = "linux"))]
fn send(stream: &mut UnixStream, extent: &Extent, offset: u64, most: usize) -> io::Result<usize> {
    copy(stream, extent, offset, most)
}

fn copy(stream: &mut UnixStream, extent: &Extent, offset: u64, most: usize) -> io::Result<usize> {
    let mut piece = vec![0; most];
    let length = extent.file.read_at(&mut piece, offset)?;
    stream.write_all(piece.get(..length).unwrap_or_default())?;
    Ok(length)
}

/// An error other than that the other side has closed the connection: what it sent before that can still be read.
fn unless_closed(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(()),
        _ => Err(error),
    }
}

/// The status and the body of an answer, after which the server closes the connection.
fn read_answer(stream: &mut UnixStream) -> io::Result<(StatusCode, Vec<u8>)> {
    let mut answer = Vec::new();
    let read = stream.take(MAX_ANSWER).read_to_end(&mut answer);
    read.map(drop).or_else(unless_closed)?;
    let ends = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let status = answer.get(9..12).map(StatusCode::from_bytes);
    match (status, ends) {
        (Some(Ok(status)), Some(at)) if answer.starts_with(b"HTTP/1.1 ") => {
            Ok((status, answer.split_off(at + 4)))
        }
        (_, None) => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::oci::{Algorithm, Digest, RepoName};

    /// What `put` says, and what was received, of a server that reads so many bytes and answers so.
    fn ask(read: usize, answer: &'static str) -> (Result<(), ClientError>, String, u64) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; read];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let file = Arc::new(file);
        let extent = |offset, length| Extent {
            file: Arc::clone(&file),
            offset,
            length,
        };
        let query = ContentQuery {
            repository: RepoName::from_stored("a").unwrap(),
            digest: Digest::of(Algorithm::Sha256, b""),
            is_manifest: false,
            size: 5,
        };
        let mut count = 0;
        let put = put(&socket, &query, &[extent(7, 3), extent(0, 2)], |bytes| {
            count += bytes;
        });
        (put, server.join().unwrap(), count)
    }

    #[test]
    fn the_extents_are_one_body() {
        let query = format!(
            "repository=a&digest={}&kind=blob&size=5",
            Digest::of(Algorithm::Sha256, b"")
        );
        let expected = format!(
            "PUT /content?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\
             Connection: close\r\n\r\n78901"
        );
        let (put, request, sent) = ask(expected.len(), "HTTP/1.1 200 OK\r\n\r\n{}");
        put.unwrap();
        assert_eq!((request, sent), (expected, 5));
    }

    #[test]
    fn a_refusal_is_told_and_so_is_a_server_that_ends() {
        let refusal = "HTTP/1.1 500 Oops\r\n\r\nno space";
        for (answer, complaint) in [
            (refusal, "refused: no space"),
            ("", "broke off"),
            ("HTTP/1.1 200", "broke off"),
            ("FTP/1.1 200 OK\r\n\r\n", "broke off"),
        ] {
            let (put, ..) = ask(10, answer);
            let error = put.unwrap_err().to_string();
            assert!(error.contains(complaint), "{answer}: {error}");
        }
    }
}
