use std::collections::VecDeque;
use std::future::poll_fn;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::server::chunk::{Chunk, MAX_PIECE};
use crate::storage::Reader;

/// A socket that holds little, so that it is full often, and its peer.
async fn pair() -> (FileSocket, FileQueue, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(listener.accept(), TcpStream::connect(address));
    let (near, far) = (near.unwrap().0, far.unwrap());
    rustix::net::sockopt::set_socket_send_buffer_size(&near, 16 * 1024).unwrap();
    let files = FileQueue::default();
    (FileSocket::new(near, files.clone()), files, far)
}

fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// One write of what is queued, as hyper does it. Whether anything is left.
async fn write_some(socket: &mut FileSocket, queue: &mut VecDeque<Chunk>) -> io::Result<bool> {
    let written = poll_fn(|cx| {
        let mut slices = [IoSlice::new(&[]); 16];
        let mut count = 0;
        for chunk in queue.iter() {
            count += chunk.chunks_vectored(&mut slices[count..]);
        }
        Pin::new(&mut *socket).poll_write_vectored(cx, &slices[..count])
    });
    let mut written = written.await?;
    assert!(written > 0);
    while written > 0 {
        let front = queue.front_mut().unwrap();
        let part = written.min(front.remaining());
        front.advance(part);
        written -= part;
        if !front.has_remaining() {
            queue.pop_front();
        }
    }
    Ok(!queue.is_empty())
}

async fn write_all(socket: &mut FileSocket, queue: Vec<Chunk>) -> io::Result<()> {
    let mut queue = queue.into();
    while write_some(socket, &mut queue).await? {}
    socket.shutdown().await
}

async fn read_all(mut far: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    far.read_to_end(&mut all).await.unwrap();
    all
}

fn memory(bytes: &[u8]) -> Chunk {
    Chunk::Memory(Bytes::copy_from_slice(bytes))
}

#[tokio::test]
async fn files_and_memory_come_in_order_and_whole() {
    let (mut socket, files, far) = pair().await;
    let (first, second) = (noise(1, 200_001), noise(2, MAX_PIECE));
    let readers = [&first, &second].map(|content| Reader::of_temporary(content));
    let queue = vec![
        memory(b"head"),
        files.push(readers[0].clone(), 0, 1).unwrap(),
        files.push(readers[0].clone(), 1, 200_000).unwrap(),
        memory(b"between"),
        memory(b" and"),
        files.push(readers[1].clone(), 0, MAX_PIECE).unwrap(),
        files.push(readers[0].clone(), 5, 300).unwrap(),
        memory(b"tail"),
    ];
    let expected = [
        b"head",
        &first[..],
        b"between and",
        &second,
        &first[5..305],
        b"tail",
    ]
    .concat();
    let (written, read) = tokio::join!(write_all(&mut socket, queue), read_all(far));
    written.unwrap();
    assert!(read == expected);
}

#[tokio::test]
async fn a_full_socket_waits_and_goes_on_where_it_was() {
    let (mut socket, files, mut far) = pair().await;
    let content = noise(3, MAX_PIECE);
    let chunk = files.push(Reader::of_temporary(&content), 0, MAX_PIECE);
    let mut queue = VecDeque::from([memory(b"head"), chunk.unwrap()]);
    // Nobody reads: it must get full before the end.
    loop {
        let full = poll_fn(|cx| {
            let write = std::pin::pin!(write_some(&mut socket, &mut queue));
            Poll::Ready(write.poll(cx).map(Result::unwrap))
        });
        match full.await {
            Poll::Ready(left) => assert!(left, "a socket took more than it holds"),
            Poll::Pending => break,
        }
    }
    let mut head = [0; 4];
    far.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"head");
    let (written, read) = tokio::join!(write_all(&mut socket, queue.into()), read_all(far));
    written.unwrap();
    assert!(read == content);
}

#[tokio::test]
async fn a_file_that_gets_shorter_breaks_the_connection() {
    let (mut socket, files, far) = pair().await;
    let content = noise(4, MAX_PIECE);
    let reader = Reader::of_temporary(&content);
    let chunk = files.push(reader.clone(), 0, MAX_PIECE).unwrap();
    let cut = 64 * 1024;
    // The page cache's pages are whole: what is in the socket already isn't touched by this.
    rustix::fs::ftruncate(reader.file().unwrap(), cut).unwrap();
    let write = async {
        let error = write_all(&mut socket, vec![memory(b"head"), chunk]).await;
        let again = socket.write_all(b"more").await;
        drop(socket);
        (error.unwrap_err().kind(), again.is_err())
    };
    let (written, read) = tokio::join!(write, read_all(far));
    assert_eq!(written, (io::ErrorKind::UnexpectedEof, true));
    let expected = [b"head", &content[..usize::try_from(cut).unwrap()]].concat();
    assert!(read == expected, "{} bytes came", read.len());
}

#[tokio::test]
async fn a_stand_in_that_stands_for_nothing_is_never_sent() {
    let (mut socket, files, far) = pair().await;
    let (mut other, others, _other_far) = pair().await;
    let reader = Reader::of_temporary(&noise(5, 100));
    let stray = others.push(reader.clone(), 0, 100).unwrap();
    let error = write_all(&mut socket, vec![memory(b"head"), stray]).await;
    // The head was told as sent; the stand-in behind it fails.
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert!(files.push(reader.clone(), 0, 100).is_none());
    drop(socket);
    assert_eq!(read_all(far).await, b"head");

    // As hyper would flatten it.
    let mut chunk = others.push(reader, 0, 100);
    let copy = chunk.as_mut().map(|chunk| chunk.copy_to_bytes(100));
    assert!(
        copy.is_none(),
        "its queue is broken: the stray stand-in was dropped"
    );
    assert!(other.write_all(b"x").await.is_err());
}

#[tokio::test]
async fn a_copied_stand_in_is_never_sent() {
    let (mut socket, files, far) = pair().await;
    let reader = Reader::of_temporary(&noise(6, 100));
    let copied = files.push(reader, 0, 100).unwrap().copy_to_bytes(100);
    assert!(socket.write_all(&copied).await.is_err());
    assert!(socket.write_all(b"anything").await.is_err());
    drop(socket);
    assert!(read_all(far).await.is_empty());
}

#[tokio::test]
async fn a_file_that_cant_be_sent_is_copied() {
    // procfs has no splicing for this one; where it has, it is sent.
    let path = std::path::Path::new("/proc/self/cmdline");
    let content = std::fs::read(path).unwrap();
    let (mut socket, files, far) = pair().await;
    let reader = Reader::at(path);
    let queue = vec![
        memory(b"head"),
        files.push(reader, 0, content.len()).unwrap(),
        memory(b"tail"),
    ];
    let (written, read) = tokio::join!(write_all(&mut socket, queue), read_all(far));
    written.unwrap();
    assert_eq!(read, [b"head", &content[..], b"tail"].concat());
}

#[tokio::test]
async fn others_have_a_turn_after_a_bound() {
    let (mut socket, files, far) = pair().await;
    let reader = Reader::of_temporary(b"content");
    let mut queue = VecDeque::from([files.push(reader, 0, 7).unwrap()]);
    socket.turn.count(usize::MAX);
    let mut woken = Context::from_waker(std::task::Waker::noop());
    {
        let mut write = std::pin::pin!(write_some(&mut socket, &mut queue));
        assert!(write.as_mut().poll(&mut woken).is_pending());
    }
    // It wakes itself: nothing else would, because the socket has room.
    let writing = tokio_util::task::TaskTracker::new()
        .spawn(async move { write_all(&mut socket, queue.into()).await });
    assert_eq!(read_all(far).await, b"content");
    writing.await.unwrap().unwrap();
}
