//! The scripted registry: it serves the content that a test gave it, except where a rule of the test
//! says otherwise, and remembers every request. It speaks HTTP/1.1 by itself, so that it can also
//! send what no HTTP library would.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use bytes::Bytes;
use http::HeaderMap;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ALL_VERSIONS;
use tokio_rustls::rustls::version::TLS12;

use crate::bucket::Objects;
use crate::content::{digest, sha512};
use crate::images::Image;
use crate::line::{Line, SEND_BUFFER};
use crate::pushes::Pushes;
use crate::reply::{End, Gate, Reply, Wire};
use crate::tls::Identity;

/// For rules that never end.
pub const ALWAYS: usize = usize::MAX;
/// The token that the token service gives, unless its tokens expire.
const TOKEN: &str = "scripted-token";
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A request that came in.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET /v2/a/b?c`
    pub line: String,
    pub headers: HeaderMap,
    /// As text; what is no UTF-8 is replaced.
    pub body: String,
    /// The same as it came.
    pub bytes: Vec<u8>,
    /// When its head had come.
    arrived: Instant,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The server's own URL over plain HTTP, for challenges and redirects.
    pub fn base(&self) -> String {
        format!("http://{}", self.header("host").unwrap())
    }

    pub fn is_token(&self) -> bool {
        self.line.starts_with("GET /token")
    }

    /// The ranges that a GET asks for of `total` bytes, without those that begin behind the end;
    /// `None` where it asks for none (RFC 9110, section 14.2).
    pub fn ranges(&self, total: usize) -> Option<Vec<Range<u64>>> {
        let total = total as u64;
        let mut ranges = Vec::new();
        let header = self.header("range").filter(|_| !self.is_head())?;
        for text in header.strip_prefix("bytes=")?.split(',') {
            let range = match text.trim().split_once('-')? {
                ("", suffix) => total.saturating_sub(suffix.parse().ok()?)..total,
                (first, "") => first.parse().ok()?..total,
                (first, last) => {
                    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
                    first..last.checked_add(1).filter(|end| first < *end)?.min(total)
                }
            };
            if range.start < range.end {
                ranges.push(range);
            }
        }
        Some(ranges)
    }

    pub(crate) fn is_head(&self) -> bool {
        self.line.starts_with("HEAD ")
    }

    /// Without the query.
    pub fn path(&self) -> &str {
        let (_, uri) = self.line.split_once(' ').unwrap();
        uri.split('?').next().unwrap()
    }
}

pub(crate) struct Content {
    pub(crate) bytes: Bytes,
    media_type: String,
    digest: Option<String>,
}

/// By their paths.
pub(crate) type Contents = HashMap<String, Content>;

impl Content {
    pub(crate) fn blob(bytes: Bytes, digest: &str) -> Self {
        Self::manifest(bytes, "application/octet-stream", digest)
    }

    pub(crate) fn manifest(bytes: Bytes, media_type: &str, digest: &str) -> Self {
        Self {
            bytes,
            media_type: media_type.to_owned(),
            digest: Some(digest.to_owned()),
        }
    }
}

type Act = dyn Fn(&Seen, Reply) -> Reply + Send + Sync;

struct Rule {
    part: String,
    left: usize,
    act: Arc<Act>,
}

/// What requests below `/v2/` have to bring.
#[derive(Default)]
enum Protection {
    #[default]
    Open,
    /// A token. The token service gives it to requests with this Authorization, if any is set.
    Token(Tokens),
}

/// A token service.
struct Tokens {
    /// The credentials that it wants, if any.
    basic: Option<String>,
    /// How long tokens live; None is for ever.
    lifetime: Option<Duration>,
    /// When it gave each token that expires.
    given: Vec<Instant>,
}

impl Tokens {
    fn give(&mut self) -> Reply {
        let Some(lifetime) = self.lifetime else {
            return Reply::json(&json!({"token": TOKEN, "expires_in": 300}));
        };
        self.given.push(Instant::now());
        let token = format!("{TOKEN}-{}", self.given.len());
        Reply::json(&json!({"token": token, "expires_in": lifetime.as_secs()}))
    }

    /// Whether a token was valid when the request came.
    fn accepts(&self, seen: &Seen) -> bool {
        let token = seen
            .header("authorization")
            .and_then(|text| text.strip_prefix("Bearer "));
        let Some(lifetime) = self.lifetime else {
            return token == Some(TOKEN);
        };
        let number = token.and_then(|token| token.strip_prefix(TOKEN)?.strip_prefix('-'));
        let number: Option<usize> = number.and_then(|number| number.parse().ok());
        let given = number.and_then(|number| self.given.get(number.checked_sub(1)?));
        given.is_some_and(|given| seen.arrived.duration_since(*given) < lifetime)
    }
}

#[derive(Default)]
struct State {
    content: Contents,
    /// None: it is read only.
    pushes: Option<Pushes>,
    /// None: it is no bucket.
    bucket: Option<Objects>,
    rules: Vec<Rule>,
    log: Vec<Seen>,
    protection: Protection,
    /// Connections that are open, and the most that were at the same time.
    open: (usize, usize),
}

struct Shared {
    state: Mutex<State>,
    line: Line,
    receiver: Receiver,
    /// Requests so far.
    requests: watch::Sender<usize>,
}

/// How a registry listens.
#[derive(Default)]
pub struct Options {
    host: Option<IpAddr>,
    tls: Option<TlsAcceptor>,
    rate: Option<u64>,
}

impl Options {
    /// An address of the loopback network; each is another host.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.parse().unwrap());
        self
    }

    #[must_use]
    pub fn tls(mut self, identity: &Identity) -> Self {
        self.tls = Some(identity.acceptor(None, ALL_VERSIONS));
        self
    }

    /// TLS 1.2 only.
    #[must_use]
    pub fn tls12(mut self, identity: &Identity) -> Self {
        self.tls = Some(identity.acceptor(None, &[&TLS12]));
        self
    }

    /// TLS for a client that shows this certificate.
    #[must_use]
    pub fn tls_for(mut self, identity: &Identity, client: &Identity) -> Self {
        self.tls = Some(identity.acceptor(Some(client), ALL_VERSIONS));
        self
    }

    /// Bytes per second of all connections together, in real time.
    #[must_use]
    pub fn rate(mut self, rate: u64) -> Self {
        self.rate = Some(rate);
        self
    }

    fn listen(&self) -> io::Result<TcpListener> {
        let host = self.host.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let socket = TcpSocket::new_v4()?;
        if self.rate.is_some() {
            // Accepted sockets inherit it.
            socket.set_send_buffer_size(SEND_BUFFER)?;
        }
        socket.bind((host, 0).into())?;
        socket.listen(BACKLOG)
    }
}

/// A running registry; it ends when dropped. `D` is the caller's type of digests: the unit tests of a
/// library have another one than its integration tests.
pub struct Registry<D> {
    pub address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
    _digest: PhantomData<fn() -> D>,
}

impl<D: FromStr<Err: Debug>> Registry<D> {
    /// A registry without content.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// A registry at an address of the loopback network; each is another host.
    pub async fn at(host: &str) -> Self {
        Self::with(Options::default().host(host)).await
    }

    /// A server that answers each request as `script` says.
    pub async fn scripted(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let registry = Self::start().await;
        registry.on("", ALWAYS, move |seen, _| script(seen));
        registry
    }

    /// A server that answers with each reply in turn, and with the last one from then on.
    pub async fn in_turn(replies: impl IntoIterator<Item = Reply>) -> Self {
        let registry = Self::start().await;
        let mut replies = replies.into_iter().peekable();
        while let Some(reply) = replies.next() {
            let times = if replies.peek().is_some() { 1 } else { ALWAYS };
            registry.reply("", times, reply);
        }
        registry
    }

    #[expect(
        clippy::unused_async,
        reason = "a listener needs a runtime: this shows it"
    )]
    pub async fn with(options: Options) -> Self {
        let listener = options.listen().unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = options.tls.as_ref().map_or("http", |_| "https");
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            line: Line::new(options.rate),
            receiver: Receiver::default(),
            requests: watch::Sender::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, options.tls, Arc::clone(&shared)));
        Self {
            address,
            scheme,
            shared,
            _tasks: tasks,
            _digest: PhantomData,
        }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Connections that are open, and the most that were at the same time.
    pub fn open(&self) -> (usize, usize) {
        self.shared.state.lock().unwrap().open
    }

    /// Body bytes of blobs that were handed to the kernel.
    pub fn blob_bytes(&self) -> u64 {
        self.shared.line.blob_bytes()
    }

    /// Body bytes of requests that have come in.
    pub fn received_bytes(&self) -> u64 {
        self.shared.receiver.received.load(Ordering::Relaxed)
    }

    /// Takes at most so many body bytes of requests in a second from now on.
    pub fn receive_slowly(&self, rate: u64) {
        self.shared.receiver.rate.store(rate, Ordering::Relaxed);
    }

    /// Takes no body bytes of requests after the first `bytes` until the gate is opened.
    pub fn hold_receiving(&self, bytes: u64) -> Gate {
        let gate = Gate::default();
        *self.shared.receiver.held.lock().unwrap() = Some((bytes, gate.clone()));
        gate
    }

    fn put(&self, path: String, media_type: &str, bytes: &Bytes, digest: Option<&str>) {
        let content = Content {
            bytes: bytes.clone(),
            media_type: media_type.to_owned(),
            digest: digest.map(str::to_owned),
        };
        let mut state = self.shared.state.lock().unwrap();
        state.content.insert(path, content);
    }

    pub fn put_blob(&self, repo: &str, bytes: &Bytes) -> D {
        self.put_blob_as(&digest(bytes), repo, bytes)
    }

    /// A blob with a SHA-512 digest.
    pub fn put_blob_sha512(&self, repo: &str, bytes: &Bytes) -> D {
        self.put_blob_as(&sha512(bytes), repo, bytes)
    }

    fn put_blob_as(&self, digest: &str, repo: &str, bytes: &Bytes) -> D {
        let path = format!("/v2/{repo}/blobs/{digest}");
        self.put(path, "application/octet-stream", bytes, Some(digest));
        digest.parse().unwrap()
    }

    /// A manifest under its digest.
    pub fn put_manifest(&self, repo: &str, media_type: &str, bytes: &Bytes) -> D {
        let digest = digest(bytes);
        self.put_at(repo, &digest, media_type, bytes);
        digest.parse().unwrap()
    }

    /// A manifest under its digest and a tag.
    pub fn tag(&self, repo: &str, tag: &str, media_type: &str, bytes: &Bytes) -> D {
        self.put_at(repo, tag, media_type, bytes);
        self.put_manifest(repo, media_type, bytes)
    }

    /// A manifest under one reference.
    pub fn put_at(&self, repo: &str, reference: &str, media_type: &str, bytes: &Bytes) {
        let path = format!("/v2/{repo}/manifests/{reference}");
        let digest = if reference.contains(':') {
            reference.to_owned()
        } else {
            digest(bytes)
        };
        self.put(path, media_type, bytes, Some(&digest));
    }

    /// Is an empty bucket of this name, too, from now on.
    pub fn be_bucket(&self, name: &str) {
        self.shared.state.lock().unwrap().bucket = Some(Objects::new(name));
    }

    fn bucket<T>(&self, access: impl FnOnce(&mut Objects) -> T) -> T {
        access(self.shared.state.lock().unwrap().bucket.as_mut().unwrap())
    }

    /// An object of the bucket.
    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.bucket(|bucket| bucket.get(key))
    }

    /// The keys of all objects of the bucket, sorted.
    pub fn keys(&self) -> Vec<String> {
        self.bucket(|bucket| bucket.keys())
    }

    pub fn put_object(&self, key: &str, bytes: impl AsRef<[u8]>) {
        let bytes = Bytes::copy_from_slice(bytes.as_ref());
        self.bucket(|bucket| bucket.put(key, bytes));
    }

    pub fn remove_object(&self, key: &str) {
        self.bucket(|bucket| bucket.remove(key));
    }

    /// The time of the bucket's clock.
    pub fn bucket_time(&self) -> SystemTime {
        self.bucket(|bucket| bucket.now())
    }

    /// Sets the bucket's clock.
    pub fn set_bucket_time(&self, now: SystemTime) {
        self.bucket(|bucket| bucket.set_clock(now));
    }

    /// Accepts pushes from now on. `lists`: manifests with a subject are listed as referrers.
    pub fn accept_pushes(&self, lists: bool) {
        let mut state = self.shared.state.lock().unwrap();
        state.pushes.get_or_insert_default().lists = lists;
    }

    /// The next PATCH keeps so many bytes, and hangs up.
    pub fn cut_upload(&self, bytes: usize) {
        let mut state = self.shared.state.lock().unwrap();
        state.pushes.as_mut().unwrap().cut = Some(bytes);
    }

    /// What is at a path, if anything.
    pub fn content(&self, path: &str) -> Option<Bytes> {
        let state = self.shared.state.lock().unwrap();
        state.content.get(path).map(|content| content.bytes.clone())
    }

    /// A whole image.
    pub fn push(&self, repo: &str, tag: &str, image: &Image) -> D {
        for blob in image.blobs() {
            self.put_blob(repo, blob);
        }
        self.tag(repo, tag, image.media_type, &image.manifest)
    }

    /// A document at a path.
    pub fn put_json(&self, path: &str, document: &serde_json::Value) {
        let bytes = document.to_string().into();
        self.put(path.to_owned(), "application/json", &bytes, None);
    }

    pub fn delete(&self, path: &str) {
        let mut state = self.shared.state.lock().unwrap();
        assert!(state.content.remove(path).is_some());
    }

    /// Requests below `/v2/` need a token, and the token service needs these credentials, if any.
    pub fn protect(&self, credentials: Option<(&str, &str)>) {
        self.protect_with(credentials, None);
    }

    /// The same, with tokens that live so long.
    pub fn protect_for(&self, credentials: Option<(&str, &str)>, lifetime: Duration) {
        self.protect_with(credentials, Some(lifetime));
    }

    fn protect_with(&self, credentials: Option<(&str, &str)>, lifetime: Option<Duration>) {
        let basic = credentials.map(|(user, password)| {
            let encoded = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"));
            format!("Basic {encoded}")
        });
        let given = Vec::new();
        self.shared.state.lock().unwrap().protection = Protection::Token(Tokens {
            basic,
            lifetime,
            given,
        });
    }

    /// The next `times` requests whose line contains `part` get what `act` makes of the usual reply.
    /// Earlier rules come first.
    pub fn on(
        &self,
        part: &str,
        times: usize,
        act: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static,
    ) {
        self.shared.state.lock().unwrap().rules.push(Rule {
            part: part.to_owned(),
            left: times,
            act: Arc::new(act),
        });
    }

    /// The next `times` requests whose line contains `part` get this reply.
    pub fn reply(&self, part: &str, times: usize, reply: Reply) {
        self.on(part, times, move |_, _| reply.clone());
    }

    /// The next `times` such requests wait until the gate is opened.
    pub fn hold(&self, part: &str, times: usize) -> Gate {
        let gate = Gate::default();
        let closed = gate.clone();
        self.on(part, times, move |_, usual| usual.held(&closed));
        gate
    }

    /// The bodies of the next `times` such responses wait at byte `at` until the gate is opened.
    pub fn hold_body(&self, part: &str, times: usize, at: usize) -> Gate {
        let gate = Gate::default();
        let closed = gate.clone();
        self.on(part, times, move |_, usual| usual.gated(at, &closed));
        gate
    }

    /// Every request fails at once, whatever the rules were.
    pub fn go_down(&self) {
        self.behave();
        self.reply("", ALWAYS, Reply::error(500));
    }

    /// Forgets all rules.
    pub fn behave(&self) {
        self.shared.state.lock().unwrap().rules.clear();
    }

    /// The requests whose line contains `part`, in order.
    pub fn seen(&self, part: &str) -> Vec<Seen> {
        let log = &self.shared.state.lock().unwrap().log;
        let matching = log.iter().filter(|seen| seen.line.contains(part));
        matching.cloned().collect()
    }

    pub fn count(&self, part: &str) -> usize {
        self.seen(part).len()
    }

    /// The lines of all requests, in order.
    pub fn lines(&self) -> Vec<String> {
        self.seen("").into_iter().map(|seen| seen.line).collect()
    }

    /// The lines of all requests since the last call.
    pub fn take(&self) -> Vec<String> {
        let log = std::mem::take(&mut self.shared.state.lock().unwrap().log);
        log.into_iter().map(|seen| seen.line).collect()
    }

    /// Waits until `n` requests have come whose line contains `part`.
    pub async fn wait(&self, n: usize, part: &str) {
        let mut requests = self.shared.requests.subscribe();
        requests.wait_for(|_| self.count(part) >= n).await.unwrap();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let open = Open::new(&shared);
        let tls = tls.clone();
        connections.spawn(async move {
            // A client that closes the connection in the middle of a response is no failure.
            match tls {
                None => drop(serve(stream, &open.0).await),
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        drop(serve(stream, &open.0).await);
                    }
                }
            }
        });
    }
}

/// An open connection.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        let (open, most) = &mut shared.state.lock().unwrap().open;
        *open += 1;
        *most = (*most).max(*open);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().open.0 -= 1;
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite, shared: &Shared) -> io::Result<()> {
    let (from, to) = tokio::io::split(stream);
    let mut from = BufReader::new(from);
    // One write a response: a second small one would wait for the peer's delayed acknowledgement.
    let mut wire = Wire {
        to: BufWriter::with_capacity(1 << 20, to),
        line: &shared.line,
    };
    while let Some(seen) = read_request(&mut from, &shared.receiver).await? {
        let reply = shared.state.lock().unwrap().answer(&seen);
        shared.requests.send_modify(|count| *count += 1);
        let go_on = match reply.send(&mut wire, &seen).await? {
            End::KeepOpen => true,
            End::Close => false,
            End::Stall => !from.fill_buf().await?.is_empty(),
        };
        if !go_on {
            break;
        }
    }
    tokio::io::AsyncWriteExt::shutdown(&mut wire.to).await
}

/// The bodies of requests.
#[derive(Default)]
struct Receiver {
    /// Bytes that came.
    received: AtomicU64,
    /// Bytes a second; 0 is no limit.
    rate: AtomicU64,
    /// No more than so many bytes are taken before the gate is opened.
    held: Mutex<Option<(u64, Gate)>>,
}

impl Receiver {
    async fn take(&self, bytes: u64) {
        let received = self.received.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let rate = self.rate.load(Ordering::Relaxed);
        if let Some(nanos) = (bytes * 1_000_000_000).checked_div(rate) {
            tokio::time::sleep(Duration::from_nanos(nanos)).await;
        }
        let held = self.held.lock().unwrap().clone();
        if let Some((_, gate)) = held.filter(|(at, _)| received >= *at) {
            gate.opened().await;
        }
    }
}

/// A request; with what there is of its body, where the client ends the connection in the middle of it.
async fn read_request(
    from: &mut BufReader<impl AsyncRead + Unpin>,
    receiver: &Receiver,
) -> io::Result<Option<Seen>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let arrived = Instant::now();
    let headers = lines[1..].iter().map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    let headers: HeaderMap = headers.collect();
    let length = headers
        .get("content-length")
        .map(|value| value.to_str().unwrap());
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    let mut body = Vec::new();
    while body.len() < length {
        // A client that is killed resets the connection.
        let Ok(piece) = from.fill_buf().await else {
            break;
        };
        let taken = piece.len().min(length - body.len());
        if taken == 0 {
            break;
        }
        body.extend(&piece[..taken]);
        from.consume(taken);
        receiver.take(taken as u64).await;
    }
    Ok(Some(Seen {
        line: lines[0].trim_end_matches(" HTTP/1.1").to_owned(),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
        bytes: body,
        arrived,
    }))
}

impl State {
    fn answer(&mut self, seen: &Seen) -> Reply {
        self.log.push(seen.clone());
        let mut matching = self.rules.iter_mut();
        let rule = matching.find(|rule| rule.left > 0 && seen.line.contains(&rule.part));
        let act = rule.map(|rule| {
            rule.left -= 1;
            Arc::clone(&rule.act)
        });
        let usual = self.usual(seen);
        match act {
            Some(act) => act(seen, usual),
            None => usual,
        }
    }

    fn usual(&mut self, seen: &Seen) -> Reply {
        if let Protection::Token(tokens) = &mut self.protection {
            if seen.path() == "/token" {
                let given = seen.header("authorization");
                if tokens.basic.is_none() || given == tokens.basic.as_deref() {
                    return tokens.give();
                }
                return Reply::error(401);
            }
            if !tokens.accepts(seen) {
                let base = seen.base();
                let challenge = format!(r#"Bearer realm="{base}/token",service="scripted""#);
                return Reply::error(401).with("WWW-Authenticate", challenge);
            }
        }
        if let Some(bucket) = &mut self.bucket
            && let Some(reply) = bucket.answer(seen)
        {
            return reply;
        }
        if let Some(pushes) = &mut self.pushes
            && let Some(reply) = pushes.answer(&mut self.content, seen)
        {
            return reply;
        }
        let Some(content) = self.content.get(seen.path()) else {
            return Reply::error(404);
        };
        let reply = part(seen, content);
        match &content.digest {
            Some(digest) => reply.with("Docker-Content-Digest", digest),
            None => reply,
        }
    }
}

/// The content, or the ranges of it that the request asks for.
fn part(seen: &Seen, content: &Content) -> Reply {
    let kind = &content.media_type;
    match seen.ranges(content.bytes.len()).as_deref() {
        None => Reply::of(200, content.bytes.clone()).with("Content-Type", kind),
        Some([]) => Reply::error(416),
        Some([one]) => Reply::range(&content.bytes, one.clone()).with("Content-Type", kind),
        Some(several) => Reply::ranges(&content.bytes, several),
    }
}
