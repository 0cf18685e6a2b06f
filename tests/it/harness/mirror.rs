//! The whole server, in this process, and a client for it.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method};
use millpond::app::{App, StartError};
use millpond::clock::Clock;
use millpond::config;
use millpond::storage::{MemoryStore, Store};
use millpond::upstream::Lookup;
use reqwest::{Client, RequestBuilder, Response};
use testkit::time::{Frozen, freeze};

use super::{FaultyStore, Image, Registry, digest, eventually, noise};

/// A mirror to be started.
pub(crate) struct Setup {
    addr: String,
    /// Each `section.key: value`.
    lines: Vec<String>,
    upstreams: Vec<String>,
    /// The section `replicas`, which is checked apart from the rest.
    replicas: Option<String>,
    store: Arc<dyn Store>,
    bucket: Option<config::Bucket>,
    /// The data directory that the configuration names; the content is in `store`.
    root: Option<PathBuf>,
    lookup: Lookup,
}

impl Setup {
    pub(crate) fn new(upstream: &Registry) -> Self {
        Self::of(&upstream.url())
    }

    /// The mirror of the upstream at a URL.
    pub(crate) fn of(url: &str) -> Self {
        Self {
            addr: "127.0.0.1:0".to_owned(),
            lines: vec![format!("proxy.remoteurl: {url}")],
            upstreams: Vec::new(),
            replicas: None,
            store: Arc::new(MemoryStore::new()),
            bucket: None,
            root: None,
            lookup: Lookup::default(),
        }
    }

    /// `http.addr`
    pub(crate) fn addr(mut self, addr: impl Display) -> Self {
        self.addr = addr.to_string();
        self
    }

    /// More lines of the configuration, each `section.key: value`; `root.key: value` for a key of no
    /// section.
    pub(crate) fn with(mut self, lines: &[&str]) -> Self {
        self.lines.extend(lines.iter().map(ToString::to_string));
        self
    }

    /// With this section `replicas`, a line as in [`with`](Self::with). What it permits together with the other
    /// sections isn't checked.
    pub(crate) fn beside(mut self, replicas: &str) -> Self {
        self.replicas = replicas.strip_prefix("root.").map(str::to_owned);
        self
    }

    /// One more upstream; `more` is YAML that follows its name and URL.
    pub(crate) fn upstream(self, name: &str, registry: &Registry, more: &str) -> Self {
        self.upstream_at(name, &registry.url(), more)
    }

    /// The same at a URL.
    pub(crate) fn upstream_at(mut self, name: &str, url: &str, more: &str) -> Self {
        self.upstreams
            .push(format!("{{name: {name}, remoteurl: '{url}'{more}}}"));
        self
    }

    pub(crate) fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = store;
        self
    }

    /// A registry that is a bucket of the name `shared`; chunks have 5 MiB.
    pub(crate) fn bucket(self, bucket: &Registry) -> Self {
        self.bucket_with(bucket, |_| ())
    }

    /// The same with other settings.
    pub(crate) fn bucket_with(
        mut self,
        bucket: &Registry,
        change: impl FnOnce(&mut config::SharedStorage),
    ) -> Self {
        let mut shared = config::SharedStorage {
            timeout: Duration::from_secs(2),
            redirect: config::RedirectMode::Never,
            redirect_above: 500,
            redirect_private: false,
            ttl: Some(Duration::from_hours(720)),
            max_size: None,
        };
        change(&mut shared);
        let store = config::S3 {
            bucket: "shared".to_owned(),
            region: "us-east-1".to_owned(),
            endpoint: Some(bucket.url().parse().unwrap()),
            force_path_style: true,
            keys: Some(config::S3Keys {
                access: "access".to_owned(),
                secret: "secret".to_owned().into(),
                token: None,
            }),
            skip_verify: false,
            encryption: None,
            storage_class: None,
            root: String::new(),
            chunk_size: 5 << 20,
        };
        let store = config::BucketStore::S3(store);
        self.bucket = Some(config::Bucket { store, shared });
        self
    }

    /// Where the mirror keeps what isn't content.
    pub(crate) fn root(mut self, root: &Path) -> Self {
        self.root = Some(root.to_owned());
        self
    }

    /// Finds the addresses of other replicas.
    pub(crate) fn lookup(mut self, lookup: Lookup) -> Self {
        self.lookup = lookup;
        self
    }

    fn yaml(&self) -> String {
        let addr = &self.addr;
        let section = |name: &str| {
            let lines = self.lines.iter();
            let lines = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix('.'));
            lines.collect::<Vec<_>>().join("\n  ")
        };
        let debug = "{addr: '127.0.0.1:0', prometheus: {enabled: true, path: /metrics}}";
        let delay = if section("http").contains("shutdowndelay") {
            ""
        } else {
            "shutdowndelay: 0s"
        };
        format!(
            "version: 0.1\nstorage:\n  inmemory: {{}}\n  {}\n\
             http:\n  addr: '{addr}'\n  debug: {debug}\n  {delay}\n  {}\n\
             auth:\n  {}\n\
             proxy:\n  upstreams: [{}]\n  {}\n{}\n",
            section("storage"),
            section("http"),
            section("auth"),
            self.upstreams.join(", "),
            section("proxy"),
            section("root").replace("\n  ", "\n"),
        )
    }

    /// The configuration.
    pub(crate) fn loaded(&self) -> config::Loaded {
        let parse = |yaml: &str| config::parse(yaml, "the test", std::iter::empty()).unwrap();
        let mut loaded = parse(&self.yaml());
        if let Some(replicas) = &self.replicas {
            let alone = format!("version: 0.1\nstorage: inmemory\n{replicas}\n");
            loaded.config.replicas = parse(&alone).config.replicas;
        }
        loaded
    }

    pub(crate) async fn try_start(self) -> Result<Mirror, StartError> {
        super::log::install();
        let still = freeze();
        let mut config = self.loaded().config;
        config.bucket = self.bucket.clone();
        if let Some(root) = self.root.clone() {
            config.storage = config::Storage::Filesystem { root, mode: None };
        }
        let clock = Clock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_hours(500_000));
        let store = Arc::clone(&self.store);
        let app = App::start_among(&config, store, clock, self.lookup).await?;
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
            _still: still,
        })
    }

    pub(crate) async fn start(self) -> Mirror {
        self.try_start().await.unwrap()
    }
}

/// A mirror with its defaults, behind which an upstream without content runs.
pub(crate) async fn mirrored() -> (Registry, Mirror) {
    mirrored_with(&[]).await
}

/// The same with lines of the configuration, each `section.key: value`.
pub(crate) async fn mirrored_with(lines: &[&str]) -> (Registry, Mirror) {
    let up = Registry::start().await;
    let m = Setup::new(&up).with(lines).start().await;
    (up, m)
}

/// The same over a store that can be made to fail.
pub(crate) async fn over_faulty_store(lines: &[&str]) -> (Registry, Arc<FaultyStore>, Mirror) {
    let up = Registry::start().await;
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let shared: Arc<dyn Store> = store.clone();
    let m = Setup::new(&up).with(lines).store(shared).start().await;
    (up, store, m)
}

/// Puts an OCI image into the upstream's repository `app`, with the tag 1. Returns it with the path of
/// its manifest by digest.
pub(crate) fn put_image(up: &Registry, seed: u64) -> (Image, String) {
    let image = Image::oci(seed);
    let digest = up.push("app", "1", &image);
    (image, format!("/v2/app/manifests/{digest}"))
}

/// Where a blob is.
pub(crate) fn blob_path(repo: &str, blob: &[u8]) -> String {
    format!("/v2/{repo}/blobs/{}", digest(blob))
}

/// Puts a blob of random bytes into the upstream's repository `app`. Returns it with its path.
pub(crate) fn put_blob(up: &Registry, seed: u64, size: usize) -> (Bytes, String) {
    let blob = noise(seed, size);
    let digest = up.put_blob("app", &blob);
    (blob, format!("/v2/app/blobs/{digest}"))
}

/// A running mirror. While there is one, paused time doesn't advance by itself.
pub(crate) struct Mirror {
    pub(crate) app: App,
    pub(crate) store: Arc<dyn Store>,
    base: String,
    client: Client,
    _still: Frozen,
}

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    url: String,
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

    /// Asserts an error document's status and code.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) {
        let what = self.summary();
        assert_eq!(self.error(), (status, code.to_owned()), "{what}");
    }

    /// Asserts a header's value.
    #[track_caller]
    pub(crate) fn has(&self, name: &str, value: impl Display) {
        assert_eq!(self.header(name), value.to_string(), "{}", self.summary());
    }

    /// What `Cache-Status` says of this mirror.
    #[track_caller]
    pub(crate) fn source(&self) -> &str {
        let status = self.header("cache-status").strip_prefix("millpond; ");
        status.unwrap_or_else(|| panic!("no Cache-Status: {}", self.summary()))
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
        let (url, status, headers, broken) = (&self.url, self.status, &self.headers, self.broken);
        let length = self.body.len();
        format!("{url}: {status}, {headers:?}, {length} bytes, broken: {broken}, {start}")
    }
}

impl Mirror {
    /// A mirror with its defaults over the same store, without what this one has in memory.
    pub(crate) async fn restarted(&self, up: &Registry) -> Self {
        let store = Arc::clone(&self.store);
        Setup::new(up).store(store).start().await
    }

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
    pub(crate) fn serves(&self, path: &str, body: &[u8]) -> impl Future<Output = Answer> {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.get(path).await;
            assert!(answer.is(200, body), "{caller}: {}", answer.summary());
            answer
        }
    }

    /// The same, and then waits until nothing is being downloaded.
    #[track_caller]
    pub(crate) fn pull(&self, path: &str, body: &[u8]) -> impl Future<Output = Answer> {
        let served = self.serves(path, body);
        async move {
            let answer = served.await;
            self.idle().await;
            answer
        }
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.ask(&format!("HEAD {path}"), &[]).await
    }

    /// A GET with this `Range`.
    pub(crate) async fn range(&self, path: &str, range: &str) -> Answer {
        self.ask(&format!("GET {path}"), &[("range", range)]).await
    }

    /// A GET of the operators' listener.
    pub(crate) async fn debug(&self, path: &str) -> Answer {
        self.debug_as(path, "*/*").await
    }

    /// The same with this `Accept`.
    pub(crate) async fn debug_as(&self, path: &str, accept: &str) -> Answer {
        let client = Client::builder().tls_certs_only([]).build().unwrap();
        let address = self.app.debug_address().unwrap();
        let request = client.get(format!("http://{address}{path}"));
        read(request.header("accept", accept).send().await.unwrap()).await
    }

    /// Whether the store has a blob.
    pub(crate) async fn is_stored(&self, blob: &[u8]) -> bool {
        let size = self.store.size(&digest(blob)).await.unwrap();
        assert!(
            size.is_none_or(|size| size == blob.len() as u64),
            "{size:?}"
        );
        size.is_some()
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

    /// The sum of a metric's series that have these labels, and perhaps more; 0 where there is none yet.
    /// `name{labels}` as in the text form.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let (name, labels) = parts(series);
        let text = self.app.metrics().render();
        let found = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, others) = parts(series);
            let is_found = found == name && labels.iter().all(|label| others.contains(label));
            is_found.then(|| value.parse::<u64>().unwrap())
        });
        found.sum()
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

/// The name and the labels of a series in the text form. No value of a label here has a comma.
fn parts(series: &str) -> (&str, Vec<&str>) {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split(',');
    (name, labels.filter(|label| !label.is_empty()).collect())
}

/// Reads an answer to its end.
pub(crate) async fn read(mut response: Response) -> Answer {
    let (body, broken) = to_end(&mut response).await;
    Answer {
        url: response.url().to_string(),
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
