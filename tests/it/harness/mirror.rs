//! The whole server, in this process, and a client for it.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method};
use millpond::app::{App, StartError};
use millpond::clock::Clock;
use millpond::config;
use millpond::storage::{MemoryStore, Store};
use reqwest::{Client, RequestBuilder, Response};

use super::{Registry, eventually};

/// A mirror to be started.
pub(crate) struct Setup {
    addr: String,
    http: Vec<String>,
    storage: Vec<String>,
    proxy: Vec<String>,
    upstreams: Vec<String>,
    store: Arc<dyn Store>,
}

impl Setup {
    pub(crate) fn new(upstream: &Registry) -> Self {
        Self {
            addr: "127.0.0.1:0".to_owned(),
            http: Vec::new(),
            storage: Vec::new(),
            proxy: vec![format!("remoteurl: {}", upstream.url())],
            upstreams: Vec::new(),
            store: Arc::new(MemoryStore::new()),
        }
    }

    /// `http.addr`
    pub(crate) fn addr(mut self, addr: impl Display) -> Self {
        self.addr = addr.to_string();
        self
    }

    /// A line of the section `http`.
    pub(crate) fn http(mut self, line: &str) -> Self {
        self.http.push(line.to_owned());
        self
    }

    /// A line of the section `storage`.
    pub(crate) fn storage(mut self, line: &str) -> Self {
        self.storage.push(line.to_owned());
        self
    }

    /// A line of the section `proxy`.
    pub(crate) fn proxy(mut self, line: &str) -> Self {
        self.proxy.push(line.to_owned());
        self
    }

    /// One more upstream; `more` is YAML that follows its name and URL.
    pub(crate) fn upstream(mut self, name: &str, registry: &Registry, more: &str) -> Self {
        let url = registry.url();
        self.upstreams
            .push(format!("{{name: {name}, remoteurl: '{url}'{more}}}"));
        self
    }

    pub(crate) fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = store;
        self
    }

    fn yaml(&self) -> String {
        let addr = &self.addr;
        let debug = "{addr: '127.0.0.1:0', prometheus: {enabled: true, path: /metrics}}";
        format!(
            "version: 0.1\nstorage:\n  inmemory: {{}}\n  {}\n\
             http:\n  addr: '{addr}'\n  debug: {debug}\n  {}\n\
             proxy:\n  upstreams: [{}]\n  {}\n",
            self.storage.join("\n  "),
            self.http.join("\n  "),
            self.upstreams.join(", "),
            self.proxy.join("\n  "),
        )
    }

    pub(crate) async fn try_start(self) -> Result<Mirror, StartError> {
        super::log::install();
        let config = config::parse(&self.yaml(), "the test", std::iter::empty())
            .unwrap()
            .config;
        let clock = Clock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_hours(500_000));
        let app = App::start_with(&config, Arc::clone(&self.store), clock).await?;
        let client = Client::builder()
            .tls_certs_only([])
            .redirect(reqwest::redirect::Policy::none());
        let address = app.address().to_string();
        let client = match address.strip_prefix("unix:") {
            Some(path) => client.unix_socket(path.to_owned()),
            None => client,
        };
        let host = if address.starts_with("unix:") {
            "socket"
        } else {
            &address
        };
        Ok(Mirror {
            base: format!("http://{host}"),
            app,
            store: self.store,
            client: client.build().unwrap(),
        })
    }

    pub(crate) async fn start(self) -> Mirror {
        self.try_start().await.unwrap()
    }
}

/// A mirror with its defaults, behind which an upstream without content runs.
pub(crate) async fn mirrored() -> (Registry, Mirror) {
    let up = Registry::start().await;
    let m = Setup::new(&up).start().await;
    (up, m)
}

/// A running mirror.
pub(crate) struct Mirror {
    pub(crate) app: App,
    pub(crate) store: Arc<dyn Store>,
    base: String,
    client: Client,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The body ended before its end.
    pub(crate) broken: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and error code.
    pub(crate) fn error(&self) -> (u16, String) {
        let code = self.json()["errors"][0]["code"]
            .as_str()
            .unwrap()
            .to_owned();
        (self.status, code)
    }

    /// Asserts the status and the whole body.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16, body: &[u8]) {
        assert!(self.is(status, body), "{}", self.summary());
    }

    fn is(&self, status: u16, body: &[u8]) -> bool {
        self.status == status && !self.broken && self.body == body
    }

    /// Without a long body.
    fn summary(&self) -> String {
        let start = String::from_utf8_lossy(&self.body[..self.body.len().min(200)]);
        let (status, headers, broken) = (self.status, &self.headers, self.broken);
        let length = self.body.len();
        format!("{status}, {headers:?}, {length} bytes, broken: {broken}, {start}")
    }
}

impl Mirror {
    /// A request to be sent: `GET /v2/`.
    pub(crate) fn request(&self, line: &str, headers: &[(&str, &str)]) -> RequestBuilder {
        let (method, path) = line.split_once(' ').unwrap();
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.client.request(method, format!("{}{path}", self.base));
        headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        })
    }

    pub(crate) async fn ask(&self, line: &str, headers: &[(&str, &str)]) -> Answer {
        read(self.request(line, headers).send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), &[]).await
    }

    /// A GET is answered with 200 and this body.
    #[track_caller]
    pub(crate) fn serves(&self, path: &str, body: &[u8]) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.get(path).await;
            assert!(
                answer.is(200, body),
                "{caller}: {path}: {}",
                answer.summary()
            );
        }
    }

    /// The same, and then waits until nothing is being downloaded.
    #[track_caller]
    pub(crate) fn pull(&self, path: &str, body: &[u8]) -> impl Future<Output = ()> {
        let served = self.serves(path, body);
        async move {
            served.await;
            self.idle().await;
        }
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.ask(&format!("HEAD {path}"), &[]).await
    }

    /// The head of an answer, whose body is yet to be read.
    pub(crate) async fn open(&self, path: &str) -> Response {
        self.request(&format!("GET {path}"), &[])
            .send()
            .await
            .unwrap()
    }

    /// Where the registry API is served, on TCP.
    pub(crate) fn address(&self) -> String {
        self.app.address().to_string()
    }

    /// A metric's value; 0 where it has none yet. `name{labels}` as in the text form.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let text = self.app.metrics().render();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// Bytes of blobs that came from the upstreams.
    pub(crate) fn upstream_bytes(&self) -> u64 {
        let text = self.app.metrics().render();
        let of_blobs = text.lines().filter(|line| {
            line.starts_with("millpond_upstream_received_bytes_total{")
                && line.contains("kind=\"blob\"")
        });
        of_blobs
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// Waits until a metric has a value: requests are counted after their answer has been sent.
    pub(crate) async fn counted(&self, series: &str, value: u64) {
        let what = format!("{series} {value}");
        let mut last = 0;
        eventually(&what, || {
            last = self.metric(series);
            assert!(last <= value, "{what}, but it is {last}");
            last == value
        })
        .await;
    }

    /// Waits until no download runs, so that what was downloaded is in the store.
    pub(crate) async fn idle(&self) {
        eventually("no downloads", || {
            self.metric("millpond_downloads_in_flight") == 0
        })
        .await;
    }
}

/// Reads an answer to its end.
pub(crate) async fn read(mut response: Response) -> Answer {
    let (body, broken) = to_end(&mut response).await;
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body,
        broken,
    }
}

/// The rest of a body, and whether it broke off.
pub(crate) async fn to_end(response: &mut Response) -> (Bytes, bool) {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return (body.into(), false),
            Err(_broken) => return (body.into(), true),
        }
    }
}
