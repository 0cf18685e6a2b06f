//! A scripted registry: each request is given to a closure, which says what is sent back, byte for
//! byte where it matters. Plain TCP, so that it can also do what no HTTP library would.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use url::Url;

/// A request that came in.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// `GET /v2/a/b?c`
    pub(super) line: String,
    pub(super) headers: HeaderMap,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The server's own address, for challenges and redirects.
    pub(super) fn base(&self) -> String {
        format!("http://{}", self.header("host").unwrap())
    }

    pub(super) fn is_token(&self) -> bool {
        self.line.starts_with("GET /token")
    }
}

/// What the script sends back.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    head: String,
    body: Vec<u8>,
    ending: Ending,
    gate: Option<Arc<Semaphore>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    KeepOpen,
    Close,
    /// Says nothing more, but doesn't close either.
    Stall,
}

impl Reply {
    fn raw(head: String, body: &[u8], ending: Ending) -> Self {
        Self {
            head,
            body: body.to_vec(),
            ending,
            gate: None,
        }
    }

    /// A status with a body and its Content-Length.
    pub(super) fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
        Self::raw(head, body, Ending::KeepOpen)
    }

    pub(super) fn ok(body: impl AsRef<[u8]>) -> Self {
        Self::new(200, body)
    }

    /// A body in two chunks, without Content-Length.
    pub(super) fn chunked(body: &[u8]) -> Self {
        let (one, two) = body.split_at(body.len() / 2);
        let mut framed = Vec::new();
        for piece in [one, two] {
            framed.extend(format!("{:x}\r\n", piece.len()).into_bytes());
            framed.extend(piece);
            framed.extend(b"\r\n");
        }
        framed.extend(b"0\r\n\r\n");
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n".into();
        Self::raw(head, &framed, Ending::KeepOpen)
    }

    /// The head only, with a Content-Length: the answer to a HEAD.
    pub(super) fn head(length: u64) -> Self {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n");
        Self::raw(head, b"", Ending::KeepOpen)
    }

    /// Promises `length` bytes and sends fewer.
    pub(super) fn promising(status: u16, length: usize, body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n");
        Self::raw(head, body, Ending::Close)
    }

    /// Closes the connection instead of answering.
    pub(super) fn hang_up() -> Self {
        Self::raw(String::new(), b"", Ending::Close)
    }

    /// Never answers.
    pub(super) fn silence() -> Self {
        Self::raw(String::new(), b"", Ending::Stall)
    }

    pub(super) fn redirect(status: u16, to: &str) -> Self {
        Self::new(status, "elsewhere").with("Location", to)
    }

    /// 401 with a Bearer challenge that names `/token` on the same server.
    pub(super) fn challenge(seen: &Seen, scope: &str) -> Self {
        let realm = format!("{}/token", seen.base());
        let challenge = format!(r#"Bearer realm="{realm}",service="registry",scope="{scope}""#);
        Self::new(
            401,
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}"#,
        )
        .with("WWW-Authenticate", &challenge)
    }

    #[must_use]
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.head.extend([name, ": ", value, "\r\n"]);
        self
    }

    /// The same answer with another status.
    #[must_use]
    pub(super) fn status(mut self, status: u16) -> Self {
        let (_, rest) = self.head.split_once("\r\n").unwrap();
        self.head = format!("HTTP/1.1 {status} X\r\n{rest}");
        self
    }

    /// After the body, silence instead of the end.
    #[must_use]
    pub(super) fn then_stall(mut self) -> Self {
        self.ending = Ending::Stall;
        self
    }

    /// Sent only once a permit can be had.
    #[must_use]
    pub(super) fn behind(mut self, gate: &Arc<Semaphore>) -> Self {
        self.gate = Some(Arc::clone(gate));
        self
    }
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A running server; it ends when dropped.
pub(super) struct Server {
    address: SocketAddr,
    scheme: &'static str,
    log: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(super) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, script).await
    }

    pub(super) async fn start_tls(
        acceptor: TlsAcceptor,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(acceptor), script).await
    }

    async fn listen(
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script: Arc<Script> = Arc::new(script);
        let log = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&log);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (script, seen, tls) = (Arc::clone(&script), Arc::clone(&seen), tls.clone());
                connections.spawn(async move {
                    // A client that goes away in mid-answer is no failure of the script.
                    match tls {
                        None => drop(serve(stream, &*script, &seen).await),
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                drop(serve(stream, &*script, &seen).await);
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            scheme,
            log,
            _tasks: tasks,
        }
    }

    pub(super) fn url(&self) -> Url {
        Url::parse(&format!("{}://{}", self.scheme, self.address)).unwrap()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    /// The request lines, in order.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }

    /// How many token requests came, and how many others.
    pub(super) fn counts(&self) -> (usize, usize) {
        let seen = self.seen();
        let tokens = seen.iter().filter(|seen| seen.is_token()).count();
        (tokens, seen.len() - tokens)
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: &Script,
    log: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    while let Some(seen) = read_request(&mut stream).await? {
        log.lock().unwrap().push(seen.clone());
        let reply = script(&seen);
        if let Some(gate) = &reply.gate {
            gate.acquire().await.unwrap().forget();
        }
        if !reply.head.is_empty() {
            // One write: a second small one would wait for the peer's delayed acknowledgement.
            let mut bytes = format!("{}\r\n", reply.head).into_bytes();
            if !seen.line.starts_with("HEAD") {
                bytes.extend_from_slice(&reply.body);
            }
            stream.write_all(&bytes).await?;
            stream.flush().await?;
        }
        match reply.ending {
            Ending::KeepOpen => {}
            Ending::Close => break,
            Ending::Stall => std::future::pending().await,
        }
    }
    stream.shutdown().await
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Seen>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_closed) => return Ok(None),
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let line = lines
        .next()
        .unwrap()
        .trim_end_matches(" HTTP/1.1")
        .to_owned();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    Ok(Some(Seen {
        line,
        headers: headers.collect(),
    }))
}
