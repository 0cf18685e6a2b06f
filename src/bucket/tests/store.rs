//! A bucket in memory, whose clock a test sets, whose requests are counted, can fail, and can wait until the
//! test lets them go on.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::bucket::client::{Objects, Stores};
use crate::bucket::http::Date;
use crate::clock::Clock;

/// Objects in one page of a list.
pub(super) const PAGE: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Get,
    Head,
    Put,
    Delete,
    List,
}

/// A request, by what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) key: String,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.key)
    }
}

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// 403
    Refused,
    /// 503
    Unavailable,
    /// It is done, and its answer is lost.
    Lost,
}

type Watched = Box<dyn Fn(&Request) -> bool + Send + Sync>;
type Rule<T> = Box<dyn FnMut(&Request) -> T + Send>;

struct State {
    objects: BTreeMap<String, (Bytes, SystemTime)>,
    requests: Vec<Request>,
    /// The bucket's time when this was made.
    begun: (SystemTime, Instant),
    fails: Rule<Option<Failure>>,
}

/// The bucket.
pub(super) struct World(Mutex<State>);

/// A moment in the middle of a day.
pub(super) fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 20_000 + 12)
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            objects: BTreeMap::new(),
            requests: Vec::new(),
            begun: (epoch(), Instant::now()),
            fails: Box::new(|_| None),
        })))
    }

    /// The bucket's time: it passes as tokio's.
    pub(super) fn now(&self) -> SystemTime {
        let (at, since) = self.0.lock().begun;
        at + since.elapsed()
    }

    pub(super) fn put_at(&self, key: &str, content: impl Into<Bytes>, at: SystemTime) {
        let object = (content.into(), at);
        self.0.lock().objects.insert(key.to_owned(), object);
    }

    pub(super) fn put(&self, key: &str, content: impl Into<Bytes>) {
        self.put_at(key, content, self.now());
    }

    pub(super) fn get(&self, key: &str) -> Option<Bytes> {
        self.0
            .lock()
            .objects
            .get(key)
            .map(|(bytes, _)| bytes.clone())
    }

    pub(super) fn modified(&self, key: &str) -> Option<SystemTime> {
        self.0.lock().objects.get(key).map(|(_, at)| *at)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.lock().objects.contains_key(key)
    }

    pub(super) fn remove(&self, key: &str) {
        self.0.lock().objects.remove(key);
    }

    /// The keys that begin with this.
    pub(super) fn keys(&self, prefix: &str) -> Vec<String> {
        let state = self.0.lock();
        let keys = state.objects.keys().filter(|key| key.starts_with(prefix));
        keys.cloned().collect()
    }

    /// The requests since the last time.
    pub(super) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.0.lock().requests)
    }

    pub(super) fn fail(&self, rule: impl FnMut(&Request) -> Option<Failure> + Send + 'static) {
        self.0.lock().fails = Box::new(rule);
    }

    /// The bucket as one replica sees it, which believes that its wall clock says `wall`.
    pub(super) fn objects(self: &Arc<Self>, actor: &Arc<Actor>, wall: SystemTime) -> Objects {
        let date = Arc::new(Date::default());
        let store = Arc::new(Store {
            world: Arc::clone(self),
            actor: Arc::clone(actor),
            date: Arc::clone(&date),
        });
        let stores = Stores {
            objects: Arc::clone(&store) as _,
            parts: store,
            signer: None,
            attributes: object_store::Attributes::new(),
            http: None,
        };
        Objects::new(stores, "root", date, Clock::starting_at(wall)).unwrap()
    }
}

/// One who sends requests, and how far it may go.
#[derive(Default)]
pub(super) struct Actor {
    steps: Mutex<Steps>,
    /// Which of its requests wait until they are let go on; without this, none.
    watched: Option<Watched>,
    /// Whether it waits for another actor.
    pub(super) is_blocked: AtomicBool,
}

#[derive(Debug, Default)]
struct Steps {
    /// What waits, in order.
    waiting: Vec<(u64, Request)>,
    asked: u64,
    permitted: u64,
}

impl Actor {
    pub(super) fn watched(watched: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Self {
        Self {
            watched: Some(Box::new(watched)),
            ..Self::default()
        }
    }

    /// The request that waits first.
    pub(super) fn waits(&self) -> Option<Request> {
        let steps = self.steps.lock();
        steps.waiting.first().map(|(_, request)| request.clone())
    }

    /// Lets the request go on that waits first.
    pub(super) fn go_on(&self) {
        let mut steps = self.steps.lock();
        let (number, _) = steps.waiting.remove(0);
        steps.permitted = number + 1;
    }

    async fn turn(&self, request: &Request) {
        let number = {
            let mut steps = self.steps.lock();
            let number = steps.asked;
            steps.asked += 1;
            steps.waiting.push((number, request.clone()));
            number
        };
        poll_fn(|cx| {
            if self.steps.lock().permitted > number {
                return Poll::Ready(());
            }
            // Polled by the test, again and again.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

struct Store {
    world: Arc<World>,
    actor: Arc<Actor>,
    date: Arc<Date>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

fn unavailable() -> Error {
    Error::Generic {
        store: "test",
        source: "503".into(),
    }
}

impl Store {
    /// A request begins. The key below the root, and whether the answer is lost.
    async fn begin(&self, kind: Kind, path: &Path) -> Result<(String, bool)> {
        let key = path.as_ref().strip_prefix("root").unwrap();
        let key = key.trim_start_matches('/').to_owned();
        let request = Request { kind, key };
        if self
            .actor
            .watched
            .as_ref()
            .is_some_and(|watched| watched(&request))
        {
            self.actor.turn(&request).await;
        }
        let failure = {
            let mut state = self.world.0.lock();
            let failure = (state.fails)(&request);
            state.requests.push(request.clone());
            failure
        };
        self.date.tell(self.world.now());
        match failure {
            None => Ok((request.key, false)),
            Some(Failure::Lost) => Ok((request.key, true)),
            Some(Failure::Unavailable) => Err(unavailable()),
            Some(Failure::Refused) => Err(Error::PermissionDenied {
                path: request.key,
                source: "403".into(),
            }),
        }
    }

    fn meta(key: &str, (bytes, at): &(Bytes, SystemTime)) -> ObjectMeta {
        ObjectMeta {
            location: Path::parse(format!("root/{key}")).unwrap(),
            // Of whole seconds, as in an answer.
            last_modified: (SystemTime::UNIX_EPOCH
                + Duration::from_secs(
                    at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(),
                ))
            .into(),
            size: bytes.len() as u64,
            e_tag: None,
            version: None,
        }
    }

    fn missing(path: &Path) -> Error {
        Error::NotFound {
            path: path.to_string(),
            source: "404".into(),
        }
    }
}

fn ended<T>(is_lost: bool, result: T) -> Result<T> {
    if is_lost {
        return Err(unavailable());
    }
    Ok(result)
}

/// The answer to requests that the bucket doesn't send to this store.
fn unused() -> Error {
    let source = "the store of the tests doesn't know this request".into();
    Error::NotSupported { source }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        _options: PutOptions,
    ) -> Result<PutResult> {
        let (key, is_lost) = self.begin(Kind::Put, path).await?;
        self.world.put(&key, Bytes::from(payload));
        let result = PutResult {
            e_tag: None,
            version: None,
            extensions: http::Extensions::new(),
        };
        ended(is_lost, result)
    }

    async fn put_multipart_opts(
        &self,
        _path: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(unused())
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let kind = if options.head { Kind::Head } else { Kind::Get };
        let (key, is_lost) = self.begin(kind, path).await?;
        let object = self.world.0.lock().objects.get(&key).cloned();
        let object = object.ok_or_else(|| Self::missing(path))?;
        let meta = Self::meta(&key, &object);
        let bytes = object.0;
        let result = GetResult {
            range: 0..meta.size,
            meta,
            payload: GetResultPayload::Stream(stream::iter([Ok(bytes)]).boxed()),
            attributes: object_store::Attributes::new(),
            extensions: http::Extensions::new(),
        };
        ended(is_lost, result)
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = Self {
            world: Arc::clone(&self.world),
            actor: Arc::clone(&self.actor),
            date: Arc::clone(&self.date),
        };
        let delete = stream::try_unfold((paths, store), |(mut paths, store)| async move {
            let Some(path) = paths.try_next().await? else {
                return Ok(None);
            };
            let (key, is_lost) = store.begin(Kind::Delete, &path).await?;
            store.world.remove(&key);
            let path = ended(is_lost, path)?;
            Ok(Some((path, (paths, store))))
        });
        delete.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let store = Self {
            world: Arc::clone(&self.world),
            actor: Arc::clone(&self.actor),
            date: Arc::clone(&self.date),
        };
        // A page each; none after the last one.
        let pages = stream::try_unfold((store, Some(String::new())), move |(store, from)| {
            let prefix = prefix.clone();
            async move {
                let Some(from) = from else { return Ok(None) };
                let (directory, is_lost) = store.begin(Kind::List, &prefix).await?;
                let directory = format!("{directory}/");
                let (page, next) = {
                    let state = store.world.0.lock();
                    let below = state.objects.range(directory.clone()..);
                    let below = below.take_while(|(key, _)| key.starts_with(&directory));
                    let mut rest = below.skip_while(|(key, _)| **key <= from).peekable();
                    let page = rest.by_ref().take(PAGE);
                    let page: Vec<_> = page
                        .map(|(key, object)| Ok(Self::meta(key, object)))
                        .collect();
                    let next = rest
                        .peek()
                        .and(page.last().map(|last: &Result<ObjectMeta>| {
                            let location = last.as_ref().unwrap().location.as_ref();
                            location.strip_prefix("root/").unwrap().to_owned()
                        }));
                    (page, next)
                };
                ended(is_lost, Some((stream::iter(page), (store, next))))
            }
        });
        pages.try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Path>) -> Result<ListResult> {
        Err(unused())
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        Err(unused())
    }
}

#[async_trait]
impl MultipartStore for Store {
    async fn create_multipart(&self, _path: &Path) -> Result<String> {
        Err(unused())
    }

    async fn create_multipart_opts(
        &self,
        _path: &Path,
        _options: PutMultipartOptions,
    ) -> Result<String> {
        Err(unused())
    }

    async fn put_part(
        &self,
        _path: &Path,
        _id: &String,
        _index: usize,
        _content: PutPayload,
    ) -> Result<PartId> {
        Err(unused())
    }

    async fn complete_multipart(
        &self,
        _path: &Path,
        _id: &String,
        _parts: Vec<PartId>,
    ) -> Result<PutResult> {
        Err(unused())
    }

    async fn abort_multipart(&self, _path: &Path, _id: &String) -> Result<()> {
        Err(unused())
    }
}
