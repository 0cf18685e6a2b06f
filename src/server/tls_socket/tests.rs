use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use testkit::Authority;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use http::{Request, Response};

use super::*;
use crate::server::body::Body;
use crate::server::chunk::{Chunk, MAX_PIECE};
use crate::server::http2::Http2;
use crate::server::request::{Handler, Peer, RequestBody};
use crate::storage::Reader;

/// What a record has besides its content in TLS 1.3: header, type and authentication tag.
const HEADER: usize = 5;
const OVERHEAD: usize = HEADER + 1 + 16;

/// A socket that remembers what was written to it, call by call.
#[derive(Debug)]
struct Tap {
    io: DuplexStream,
    writes: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tap {
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
        // Duplex streams take one buffer at a time.
        let mut all = bufs.iter().map(|buf| &**buf).collect::<Vec<_>>().concat();
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, &all))?;
        all.truncate(written);
        self.writes.lock().push(all);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

struct Pair {
    socket: TlsSocket<Tap>,
    files: FileQueue,
    client: client::TlsStream<DuplexStream>,
    writes: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A socket that holds `size` bytes, and its client.
async fn pair(size: usize) -> Pair {
    let (near, far) = tokio::io::duplex(size);
    let authority = Authority::new("tests");
    let signed = authority.server();
    let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![signed.der.into()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
        .unwrap();
    let client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let writes = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let tap = Tap {
        io: near,
        writes: Arc::clone(&writes),
    };
    let (stream, client) = tokio::join!(
        TlsAcceptor::from(Arc::new(server)).accept(tap),
        TlsConnector::from(Arc::new(client)).connect(name, far),
    );
    let files = FileQueue::default();
    let buffers = ResponseBuffers::default();
    let socket = TlsSocket::new(stream.unwrap(), files.clone(), buffers);
    writes.lock().clear();
    Pair {
        socket,
        files,
        client: client.unwrap(),
        writes,
    }
}

fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn memory(bytes: &[u8]) -> Chunk {
    Chunk::Memory(Bytes::copy_from_slice(bytes))
}

/// One write of what is queued, as hyper does it.
async fn write_some(socket: &mut TlsSocket<Tap>, queue: &mut VecDeque<Chunk>) -> io::Result<usize> {
    let written = poll_fn(|cx| {
        let mut slices = [IoSlice::new(&[]); 16];
        let mut count = 0;
        for chunk in queue.iter() {
            count += chunk.chunks_vectored(&mut slices[count..]);
        }
        Pin::new(&mut *socket).poll_write_vectored(cx, &slices[..count])
    });
    let written = written.await?;
    assert!(written > 0);
    let mut left = written;
    while left > 0 {
        let front = queue.front_mut().unwrap();
        let part = left.min(front.remaining());
        front.advance(part);
        left -= part;
        if !front.has_remaining() {
            queue.pop_front();
        }
    }
    Ok(written)
}

async fn write_all(socket: &mut TlsSocket<Tap>, queue: Vec<Chunk>) -> io::Result<()> {
    let mut queue = VecDeque::from(queue);
    while !queue.is_empty() {
        write_some(socket, &mut queue).await?;
    }
    socket.flush().await
}

/// The bytes of the records' contents.
fn records(bytes: &[u8]) -> Vec<usize> {
    let mut rest = bytes;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        records.push(HEADER + length - OVERHEAD);
        rest = &rest[HEADER + length..];
    }
    records
}

#[tokio::test]
async fn large_bodies_are_full_records_four_in_a_write() {
    let mut pair = pair(1024 * 1024).await;
    let content = noise(1, MAX_PIECE);
    let head = noise(2, 300);
    let chunk = pair
        .files
        .push(Reader::of_temporary(&content), 0, MAX_PIECE);
    let queue = vec![memory(&head), chunk.unwrap()];
    write_all(&mut pair.socket, queue).await.unwrap();
    let writes = std::mem::take(&mut *pair.writes.lock());
    let mut records = records(&writes.concat());
    assert_eq!(records.pop(), Some(300));
    assert_eq!(records, [RECORD; MAX_PIECE / RECORD]);
    let sizes: Vec<_> = writes.iter().map(Vec::len).collect();
    let batch = BATCH + 4 * OVERHEAD;
    assert_eq!(sizes, [batch, batch, batch, batch, 300 + OVERHEAD]);
    let mut read = vec![0; 300 + MAX_PIECE];
    pair.client.read_exact(&mut read).await.unwrap();
    assert!(read == [head, content].concat());
}

#[tokio::test]
async fn files_and_memory_come_in_order_and_whole_through_a_small_socket() {
    let mut pair = pair(1000).await;
    let (first, second) = (noise(1, 200_001), noise(2, MAX_PIECE));
    let readers = [&first, &second].map(|content| Reader::of_temporary(content));
    let files = &pair.files;
    let queue = vec![
        memory(b"head"),
        files.push(readers[0].clone(), 0, 1).unwrap(),
        files.push(readers[0].clone(), 1, 200_000).unwrap(),
        memory(b"between"),
        memory(&first),
        files.push(readers[1].clone(), 0, MAX_PIECE).unwrap(),
        files.push(readers[0].clone(), 5, 300).unwrap(),
        memory(b"tail"),
    ];
    let expected = [
        b"head",
        &first[..],
        b"between",
        &first,
        &second,
        &first[5..305],
        b"tail",
    ]
    .concat();
    let mut read = Vec::new();
    let write = async {
        write_all(&mut pair.socket, queue).await.unwrap();
        pair.socket.shutdown().await.unwrap();
    };
    tokio::join!(write, async {
        pair.client.read_to_end(&mut read).await.unwrap();
    });
    assert!(read == expected);
}

#[tokio::test]
async fn a_client_that_takes_nothing_costs_one_batch() {
    const SOCKET: usize = 1000;
    let mut pair = pair(SOCKET).await;
    let content = vec![0; MAX_PIECE];
    let mut queue = VecDeque::from([memory(&content), memory(&content)]);
    let mut taken = 0;
    loop {
        let polled = {
            let mut write = std::pin::pin!(write_some(&mut pair.socket, &mut queue));
            futures_util::poll!(&mut write)
        };
        match polled {
            Poll::Ready(written) => taken += written.unwrap(),
            Poll::Pending => break,
        }
    }
    assert_eq!(taken, BATCH);
    assert!(pair.socket.unsent.is_some(), "it is counted");
    let mut read = vec![0; BATCH];
    tokio::join!(async { pair.socket.flush().await.unwrap() }, async {
        pair.client.read_exact(&mut read).await.unwrap()
    },);
    assert!(pair.socket.unsent.is_none());
}

#[tokio::test]
async fn a_file_that_gets_shorter_breaks_the_connection() {
    let mut pair = pair(1024 * 1024).await;
    let content = noise(4, MAX_PIECE);
    let reader = Reader::of_temporary(&content);
    let chunk = pair.files.push(reader.clone(), 0, MAX_PIECE).unwrap();
    reader.file().unwrap().set_len(BATCH as u64).unwrap();
    let error = write_all(&mut pair.socket, vec![chunk]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(reader.is_suspect());
    assert!(pair.socket.write_all(b"more").await.is_err());
    let mut read = vec![0; BATCH];
    pair.client.read_exact(&mut read).await.unwrap();
    assert!(read == content[..BATCH]);
    drop(pair.socket);
    let end = pair.client.read_u8().await.unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_stand_in_of_another_connection_is_never_sent() {
    let (mut one, two) = (pair(10_000).await, pair(10_000).await);
    let reader = Reader::of_temporary(&noise(5, 100));
    let stray = two.files.push(reader.clone(), 0, 100).unwrap();
    let error = write_all(&mut one.socket, vec![stray]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(one.files.push(reader, 0, 100).is_none());
    assert!(one.writes.lock().is_empty());
}

#[tokio::test]
async fn others_have_a_turn_after_a_bound() {
    let mut pair = pair(1024 * 1024).await;
    let content = vec![0; TURN];
    let mut queue = VecDeque::from([memory(&content), memory(b"next")]);
    let mut sent = 0;
    while sent < TURN {
        let mut write = std::pin::pin!(write_some(&mut pair.socket, &mut queue));
        let Poll::Ready(written) = futures_util::poll!(&mut write) else {
            panic!("the turn ends after {sent} bytes");
        };
        sent += written.unwrap();
    }
    {
        let mut write = std::pin::pin!(write_some(&mut pair.socket, &mut queue));
        assert!(futures_util::poll!(&mut write).is_pending());
    }
    write_all(&mut pair.socket, queue.into()).await.unwrap();
}

/// Answers everything with a body of zeros.
struct Zeros(usize);

impl Handler for Zeros {
    async fn handle(self: Arc<Self>, _: Request<RequestBody>, _: Peer) -> Response<Body> {
        Response::new(Body::bytes(vec![0; self.0]))
    }
}

#[tokio::test]
async fn each_frame_of_http2_fills_a_record() {
    const FRAMES: usize = 16;
    let pair = pair(1024 * 1024).await;
    let clock = crate::clock::Clock::system();
    let tasks = tokio_util::task::TaskTracker::new();
    let http2 = Http2::new(clock, tasks.clone());
    let peer = Peer {
        address: None,
        name: "unix".into(),
        certificate: None,
        is_secure: true,
    };
    let handler = Arc::new(Zeros(FRAMES * (RECORD - 9)));
    let (socket, buffers) = (pair.socket, ResponseBuffers::default());
    tasks.spawn(async move {
        let stop = tokio_util::sync::CancellationToken::new();
        let served = http2.serve(socket, handler, peer, buffers, &stop).await;
        drop(served);
    });
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(1 << 24)
        .initial_connection_window_size(1 << 24);
    let (mut sender, connection) = builder.handshake::<_, Bytes>(pair.client).await.unwrap();
    tasks.spawn(async move { drop(connection.await) });
    let request = Request::get("https://mirror.example/").body(()).unwrap();
    let (response, _) = sender.send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut received = 0;
    while let Some(data) = body.data().await {
        received += data.unwrap().len();
    }
    assert_eq!(received, FRAMES * (RECORD - 9));
    let sizes = records(&pair.writes.lock().concat());
    let full = sizes.iter().filter(|size| **size == RECORD).count();
    assert_eq!(full, FRAMES, "{sizes:?}");
    // Settings, the end of the stream, and what the response's head, in one record with the first frame,
    // leaves of that.
    assert!(sizes.len() - full < FRAMES / 2, "{sizes:?}");
}
