//! The scripted upstream: a registry that serves what a test put into it, except where a rule of
//! the test says otherwise. It remembers every request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use bytes::Bytes;
use http::HeaderMap;
use millpond::oci::range::Resolved;
use millpond::oci::{Algorithm, ByteRange, Digest, Requested};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::images::{Image, digest};
use super::reply::Reply;

pub(crate) const ALWAYS: usize = usize::MAX;
/// The token that the token service gives.
const TOKEN: &str = "scripted-token";

/// A request that came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// `GET /v2/a/b?c`
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn is_get(&self) -> bool {
        self.line.starts_with("GET ")
    }

    fn path(&self) -> &str {
        let (_, uri) = self.line.split_once(' ').unwrap();
        uri.split('?').next().unwrap()
    }
}

struct Content {
    bytes: Bytes,
    media_type: String,
    digest: Option<Digest>,
}

type Act = dyn Fn(&Seen, Reply) -> Reply + Send + Sync;

struct Rule {
    part: String,
    left: usize,
    act: Arc<Act>,
}

/// What `/v2/` wants.
#[derive(Default)]
enum Protection {
    #[default]
    Open,
    /// A token, which the token service gives to whoever sends this header, if any.
    Token(Option<String>),
}

#[derive(Default)]
struct State {
    content: HashMap<String, Content>,
    rules: Vec<Rule>,
    log: Vec<Seen>,
    protection: Protection,
}

/// A running registry; it ends when dropped.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    requests: watch::Receiver<usize>,
    open: Arc<Mutex<(usize, usize)>>,
    _tasks: JoinSet<()>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::at("127.0.0.1").await
    }

    /// Another address of the loopback network is another host.
    pub(crate) async fn at(host: &str) -> Self {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (counter, requests) = watch::channel(0);
        let (shared, counter) = (Arc::clone(&state), Arc::new(counter));
        let open = Arc::new(Mutex::new((0, 0)));
        let now_open = Arc::clone(&open);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (state, counter) = (Arc::clone(&shared), Arc::clone(&counter));
                let open = Open::new(&now_open);
                connections.spawn(async move {
                    // A client that goes away in mid-answer is no failure of the script.
                    drop(serve(stream, &state, &counter).await);
                    drop(open);
                });
            }
        });
        Self {
            address,
            state,
            requests,
            open,
            _tasks: tasks,
        }
    }

    /// Connections that are open, and the most that were at the same time.
    pub(crate) fn open(&self) -> (usize, usize) {
        *self.open.lock().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn put(&self, path: String, media_type: &str, bytes: &Bytes, digest: Option<Digest>) {
        let content = Content {
            bytes: bytes.clone(),
            media_type: media_type.to_owned(),
            digest,
        };
        self.state.lock().unwrap().content.insert(path, content);
    }

    pub(crate) fn put_blob(&self, repo: &str, bytes: &Bytes) -> Digest {
        self.put_blob_as(Algorithm::Sha256, repo, bytes)
    }

    pub(crate) fn put_blob_as(&self, algorithm: Algorithm, repo: &str, bytes: &Bytes) -> Digest {
        let digest = Digest::of(algorithm, bytes);
        let path = format!("/v2/{repo}/blobs/{digest}");
        self.put(path, "application/octet-stream", bytes, Some(digest));
        digest
    }

    /// A manifest under its digest.
    pub(crate) fn put_manifest(&self, repo: &str, media_type: &str, bytes: &Bytes) -> Digest {
        let digest = digest(bytes);
        self.put_at(repo, &digest.to_string(), media_type, bytes, digest);
        digest
    }

    /// A manifest under its digest and a tag.
    pub(crate) fn tag(&self, repo: &str, tag: &str, media_type: &str, bytes: &Bytes) -> Digest {
        let digest = self.put_manifest(repo, media_type, bytes);
        self.put_at(repo, tag, media_type, bytes, digest);
        digest
    }

    /// A manifest under one reference.
    pub(crate) fn put_at(
        &self,
        repo: &str,
        reference: &str,
        media_type: &str,
        bytes: &Bytes,
        digest: Digest,
    ) {
        let path = format!("/v2/{repo}/manifests/{reference}");
        self.put(path, media_type, bytes, Some(digest));
    }

    /// A whole image.
    pub(crate) fn push(&self, repo: &str, tag: &str, image: &Image) -> Digest {
        for blob in image.blobs() {
            self.put_blob(repo, blob);
        }
        self.tag(repo, tag, image.media_type, &image.manifest)
    }

    /// A document at a path.
    pub(crate) fn put_json(&self, path: &str, document: &serde_json::Value) {
        let bytes = document.to_string().into();
        self.put(path.to_owned(), "application/json", &bytes, None);
    }

    pub(crate) fn delete(&self, path: &str) {
        assert!(self.state.lock().unwrap().content.remove(path).is_some());
    }

    /// Everything below `/v2/` wants a token, and the token service wants these credentials.
    pub(crate) fn protect(&self, credentials: Option<(&str, &str)>) {
        let basic = credentials.map(|(user, password)| {
            let encoded = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"));
            format!("Basic {encoded}")
        });
        self.state.lock().unwrap().protection = Protection::Token(basic);
    }

    /// The next `times` requests whose line contains `part` get what `act` makes of the usual
    /// reply. Rules that were made earlier come first.
    pub(crate) fn on(
        &self,
        part: &str,
        times: usize,
        act: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static,
    ) {
        self.state.lock().unwrap().rules.push(Rule {
            part: part.to_owned(),
            left: times,
            act: Arc::new(act),
        });
    }

    /// The next `times` requests whose line contains `part` get this reply.
    pub(crate) fn reply(&self, part: &str, times: usize, reply: Reply) {
        self.on(part, times, move |_, _| reply.clone());
    }

    /// Every request fails, at once and for good, whatever the rules were.
    pub(crate) fn go_down(&self) {
        self.behave();
        self.reply("", ALWAYS, Reply::error(500));
    }

    /// Forgets all rules.
    pub(crate) fn behave(&self) {
        self.state.lock().unwrap().rules.clear();
    }

    /// The requests whose line contains `part`, in order.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        let log = &self.state.lock().unwrap().log;
        let matching = log.iter().filter(|seen| seen.line.contains(part));
        matching.cloned().collect()
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.seen(part).len()
    }

    /// The lines of all requests since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        let log = std::mem::take(&mut self.state.lock().unwrap().log);
        log.into_iter().map(|seen| seen.line).collect()
    }

    /// Waits until `n` requests have come whose line contains `part`.
    pub(crate) async fn wait(&self, n: usize, part: &str) {
        let mut requests = self.requests.clone();
        requests.wait_for(|_| self.count(part) >= n).await.unwrap();
    }
}

/// An open connection.
struct Open(Arc<Mutex<(usize, usize)>>);

impl Open {
    fn new(counts: &Arc<Mutex<(usize, usize)>>) -> Self {
        let (open, most) = &mut *counts.lock().unwrap();
        *open += 1;
        *most = (*most).max(*open);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().unwrap().0 -= 1;
    }
}

async fn serve(
    stream: TcpStream,
    state: &Mutex<State>,
    counter: &watch::Sender<usize>,
) -> std::io::Result<()> {
    let local = stream.local_addr()?;
    let (from, to) = stream.into_split();
    // One write a reply: a second small one would wait for the peer's delayed acknowledgement.
    let (mut from, mut to) = (BufReader::new(from), BufWriter::with_capacity(1 << 20, to));
    while let Some(seen) = read_request(&mut from).await? {
        let is_head = seen.line.starts_with("HEAD ");
        let reply = state.lock().unwrap().answer(&seen, local);
        counter.send_modify(|count| *count += 1);
        let go_on = if reply.is_silence() {
            // Until the client goes away.
            !from.fill_buf().await?.is_empty()
        } else {
            reply.send(&mut to, is_head).await?
        };
        if !go_on {
            break;
        }
    }
    Ok(())
}

async fn read_request(
    from: &mut BufReader<impl AsyncRead + Unpin>,
) -> std::io::Result<Option<Seen>> {
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
    let headers = lines[1..].iter().map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    Ok(Some(Seen {
        line: lines[0].trim_end_matches(" HTTP/1.1").to_owned(),
        headers: headers.collect(),
    }))
}

impl State {
    fn answer(&mut self, seen: &Seen, local: SocketAddr) -> Reply {
        self.log.push(seen.clone());
        let usual = self.usual(seen, local);
        let mut matching = self.rules.iter_mut();
        match matching.find(|rule| rule.left > 0 && seen.line.contains(&rule.part)) {
            Some(rule) => {
                rule.left -= 1;
                (rule.act)(seen, usual)
            }
            None => usual,
        }
    }

    fn usual(&self, seen: &Seen, local: SocketAddr) -> Reply {
        if let Protection::Token(basic) = &self.protection {
            let given = seen.header("authorization");
            if seen.path() == "/token" {
                let welcome = basic.is_none() || given == basic.as_deref();
                let token = json!({"token": TOKEN, "expires_in": 300});
                return if welcome {
                    Reply::json(&token)
                } else {
                    Reply::error(401)
                };
            }
            if given != Some(&format!("Bearer {TOKEN}")) {
                let challenge =
                    format!(r#"Bearer realm="http://{local}/token",service="scripted""#);
                return Reply::error(401).with("WWW-Authenticate", challenge);
            }
        }
        let Some(content) = self.content.get(seen.path()) else {
            return Reply::error(404);
        };
        let reply = part(seen, content);
        match content.digest {
            Some(digest) => reply.with("Docker-Content-Digest", digest),
            None => reply,
        }
    }
}

/// The content, or the ranges of it that were asked for.
fn part(seen: &Seen, content: &Content) -> Reply {
    let total = content.bytes.len() as u64;
    let range = seen.header("range").filter(|_| seen.is_get());
    let range = range.and_then(|range| Requested::parse(range).map(|range| range.resolve(total)));
    match range {
        Some(Resolved::One(ByteRange { start, end })) => {
            let bytes = content
                .bytes
                .slice(usize::try_from(start).unwrap()..usize::try_from(end).unwrap());
            let placed = ByteRange { start, end }.content_range(total);
            let reply = Reply::new(206, bytes).with("Content-Range", placed);
            reply.with("Content-Type", &content.media_type)
        }
        Some(Resolved::Unsatisfiable) => Reply::error(416),
        Some(Resolved::Many(ranges)) => Reply::ranges(&content.bytes, &ranges),
        Some(Resolved::Whole) | None => {
            Reply::new(200, content.bytes.clone()).with("Content-Type", &content.media_type)
        }
    }
}
