//! A client that keeps its connection for as long as the server does, and for which every request that
//! isn't answered whole is a failure: it never tries again.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One pause in so many is longer than idle connections are kept at a stop.
const LONG_PAUSES: u32 = 50;

/// A path, and what is there.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    path: String,
    body: Bytes,
}

impl Wanted {
    pub(crate) fn new(path: String, body: Bytes) -> Self {
        Self { path, body }
    }
}

pub(crate) struct Client {
    address: SocketAddr,
    connection: Option<TcpStream>,
    random: fastrand::Rng,
    pub(crate) served: usize,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, seed: u64) -> Self {
        Self {
            address,
            connection: None,
            random: fastrand::Rng::with_seed(seed),
            served: 0,
        }
    }

    /// Requests something, after a pause.
    pub(crate) async fn request(&mut self, wanted: &[Wanted]) {
        let pause = if self.random.u32(..LONG_PAUSES) == 0 {
            1500
        } else {
            self.random.u64(..20)
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let wanted = &wanted[self.random.usize(..wanted.len())];
        self.get(wanted).await;
    }

    pub(crate) async fn get(&mut self, wanted: &Wanted) {
        let mut connection = match self.connection.take().filter(is_open) {
            Some(connection) => connection,
            None => TcpStream::connect(self.address).await.unwrap(),
        };
        let Wanted { path, body } = wanted;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let head = head(&mut connection).await;
        let fail = || panic!("{path}: {head}");
        if !head.starts_with("http/1.1 200 ") {
            fail();
        }
        let length = format!("content-length: {}\r\n", body.len());
        assert!(head.contains(&length), "{path}: {head}");
        let mut received = vec![0; body.len()];
        connection.read_exact(&mut received).await.unwrap();
        assert!(received == *body, "{path}: wrong bytes");
        self.served += 1;
        if !head.contains("connection: close\r\n") {
            self.connection = Some(connection);
        }
    }
}

/// Whether the server has left a connection open.
fn is_open(connection: &TcpStream) -> bool {
    let error = connection.try_read(&mut [0]).err();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// The head of a response, in lower case.
async fn head(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = connection.read_u8().await;
        head.push(byte.unwrap_or_else(|error| panic!("no answer: {error}")));
    }
    String::from_utf8(head).unwrap().to_lowercase()
}
