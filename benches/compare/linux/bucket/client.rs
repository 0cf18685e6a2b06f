//! What a client of the bucket does: a process of its own reads or uploads a blob and says what that cost it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::StatusCode;
use http::header::RANGE;
use millpond::bucket::{Bucket, Upload};
use millpond::cache::{Cache, CacheSettings, CachedBlob};
use millpond::clock::Clock;
use millpond::config::{self, BucketStore, RedirectMode, S3, S3Keys, SharedStorage};
use millpond::metrics::Metrics;
use millpond::oci::{Digest, RepoName};
use millpond::storage::{FsStore, Layout, Link, LinkKind, MAX_READ, Store};
use millpond::tasks::Tasks;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{HttpClient, HttpConnector};
use object_store::multipart::MultipartStore as _;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, PutPayload, RetryConfig};
use parking_lot::Mutex;
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::super::common::objects::BUCKET;
use super::super::common::proc::cpu_seconds;
use super::super::common::upstream::REPOSITORY;

/// Streams of a download, and parts of an upload at a time.
const STREAMS: u64 = 4;
/// Bytes of a part of an upload: the default of `chunksize`.
const PART: u64 = 16 << 20;
/// How often a blob is read: once takes too little time.
const READS: u64 = 4;
/// Whatever the server's signatures are worth.
const KEY: &str = "bench";

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Reads the blob with millpond's client.
    Read,
    /// Reads it by ranged GETs and nothing else.
    ReadPlainly,
    /// Uploads it with millpond's client.
    Upload,
    /// Uploads it as that does, and says whether payloads are signed.
    UploadSigning(bool),
}

/// What a client does, and with what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// `http` or `https`, and the address of the bucket's server.
    pub(crate) endpoint: String,
    /// A file of the blob on a file system that has the directory for temporary files, too.
    pub(crate) file: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) work: Work,
}

/// Does the work, and prints the CPU seconds that it takes once, its set-up not counted.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let cost = runtime.block_on(async {
        match plan.work {
            Work::Read => plan.read().await,
            Work::ReadPlainly => plan.read_plainly().await,
            Work::Upload => plan.upload().await,
            Work::UploadSigning(signed) => plan.upload_signing(signed).await,
        }
    })?;
    println!("{}", serde_json::to_string(&cost)?);
    Ok(())
}

/// CPU seconds of this process so far.
fn so_far() -> Result<f64> {
    cpu_seconds(std::process::id())
}

/// The range of each stream: first byte, and the one after the last.
fn ranges(size: u64) -> impl Iterator<Item = (u64, u64)> {
    let each = size.div_ceil(STREAMS);
    (0..STREAMS).map(move |at| (at * each, size.min((at + 1) * each)))
}

impl Plan {
    fn size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.file)?.len())
    }

    async fn read(&self) -> Result<f64> {
        let local = Local::of(self).await?;
        let bucket = self.bucket(&local)?;
        let size = self.size()?;
        let before = so_far()?;
        for _ in 0..READS {
            let streams = ranges(size).map(|(start, end)| {
                let bucket = &bucket;
                async move {
                    let got = bucket.content_alone(&self.digest, (start, Some(end)));
                    let mut body = got.await?.context("the bucket lacks the blob")?.body;
                    let mut read = 0;
                    while let Some(piece) = body.try_next().await? {
                        read += piece.len() as u64;
                    }
                    Ok::<u64, anyhow::Error>(read)
                }
            });
            let read: u64 = try_join_all(streams).await?.into_iter().sum();
            ensure!(read == size, "{read} bytes of {size} came");
        }
        Ok((so_far()? - before) / READS as f64)
    }

    async fn read_plainly(&self) -> Result<f64> {
        let client = client()?;
        let blob = Layout::new("").blob(&self.digest);
        let url = format!("{}/{BUCKET}/{}", self.endpoint, blob.display());
        let size = self.size()?;
        let before = so_far()?;
        for _ in 0..READS {
            let streams = ranges(size).map(|(start, end)| {
                let range = format!("bytes={start}-{}", end - 1);
                let asked = client.get(&url).header(RANGE, range).send();
                async {
                    let mut answer = asked.await?;
                    ensure!(answer.status() == StatusCode::PARTIAL_CONTENT, "no range");
                    let mut read = 0;
                    while let Some(piece) = answer.chunk().await? {
                        read += piece.len() as u64;
                    }
                    Ok(read)
                }
            });
            let read: u64 = try_join_all(streams).await?.into_iter().sum();
            ensure!(read == size, "{read} bytes of {size} came");
        }
        Ok((so_far()? - before) / READS as f64)
    }

    async fn upload(&self) -> Result<f64> {
        let local = Local::of(self).await?;
        let bucket = self.bucket(&local)?;
        let repo: RepoName = REPOSITORY.parse()?;
        // Verifies it, as a pull has that is uploaded.
        local.blob(self).await?;
        let before = so_far()?;
        let upload = Upload::new(&repo, LinkKind::Layer, &self.digest, None);
        bucket.upload(upload, true);
        let drain = CancellationToken::new();
        drain.cancel();
        bucket.upload_all(drain).await;
        Ok(so_far()? - before)
    }

    async fn upload_signing(&self, signed: bool) -> Result<f64> {
        let local = Local::of(self).await?;
        let store = self.store(signed)?;
        let blob = local.blob(self).await?;
        let to = Path::parse(KEY)?;
        let size = blob.size();
        let used = Mutex::default();
        let before = so_far()?;
        let id = store.create_multipart(&to).await?;
        let parts = stream::iter(0..size.div_ceil(PART)).map(|index| {
            let (store, blob, to, id, used) = (&store, &blob, &to, &id, &used);
            async move {
                let start = index * PART;
                let content = read(blob, (start, size.min(start + PART)), used).await?;
                let payload: PutPayload = content.iter().cloned().collect();
                let part = store.put_part(to, id, usize::try_from(index)?, payload);
                let part = part.await?;
                let unused = content
                    .into_iter()
                    .filter_map(|piece| piece.try_into_mut().ok());
                used.lock().extend(unused);
                Ok::<_, anyhow::Error>(part)
            }
        });
        let parts = parts.buffered(usize::try_from(STREAMS)?);
        let parts = parts.try_collect().await?;
        store.complete_multipart(&to, &id, parts).await?;
        Ok(so_far()? - before)
    }

    /// The bucket, as millpond opens it.
    fn bucket(&self, local: &Local) -> Result<Arc<Bucket>> {
        let store = S3 {
            bucket: BUCKET.to_owned(),
            region: "us-east-1".to_owned(),
            endpoint: Some(self.endpoint.parse()?),
            force_path_style: true,
            keys: Some(S3Keys {
                access: KEY.to_owned(),
                secret: KEY.to_owned().into(),
                token: None,
            }),
            skip_verify: true,
            encryption: None,
            storage_class: None,
            root: String::new(),
            chunk_size: PART,
        };
        let config = config::Bucket {
            store: BucketStore::S3(store),
            shared: SharedStorage {
                timeout: Duration::from_secs(10),
                redirect: RedirectMode::Never,
                redirect_above: 1,
                redirect_private: false,
                ttl: None,
                max_size: None,
            },
        };
        let rest = (Clock::system(), &*local.metrics);
        Ok(Arc::new(Bucket::open(
            &config,
            None,
            local.cache.clone(),
            rest,
        )?))
    }

    /// The client of the bucket alone, set up as millpond does, except for the payloads.
    fn store(&self, signed: bool) -> Result<AmazonS3> {
        let once = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 0,
            retry_timeout: Duration::ZERO,
        };
        let builder = AmazonS3Builder::new()
            .with_access_key_id(KEY)
            .with_secret_access_key(KEY)
            .with_region("us-east-1")
            .with_bucket_name(BUCKET)
            .with_endpoint(format!("{}/{BUCKET}", self.endpoint))
            .with_virtual_hosted_style_request(true)
            .with_unsigned_payload(!signed)
            .with_allow_http(true)
            .with_retry(once)
            .with_http_connector(Connector(client()?));
        Ok(builder.build()?)
    }
}

/// A client that accepts the bench's certificate.
fn client() -> Result<Client> {
    let builder = Client::builder().http1_only();
    Ok(builder.tls_danger_accept_invalid_certs(true).build()?)
}

#[derive(Debug)]
struct Connector(Client);

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

/// A cache that has the blob.
struct Local {
    cache: Cache,
    metrics: Arc<Metrics>,
    _tasks: Tasks,
    _directory: TempDir,
}

impl Local {
    async fn of(plan: &Plan) -> Result<Self> {
        let directory = TempDir::with_prefix("millpond-compare-")?;
        let layout = Layout::new(directory.path());
        let repo: RepoName = REPOSITORY.parse()?;
        fs::create_dir_all(layout.blob_dir(&plan.digest))?;
        fs::hard_link(&plan.file, layout.blob(&plan.digest))?;
        let store = FsStore::open(directory.path()).await?;
        let link = Link::new(&repo, LinkKind::Layer, &plan.digest);
        store.link(&link).await?;
        let (metrics, tasks) = (Arc::new(Metrics::new()), Tasks::new());
        let cache = Cache::start(
            Arc::new(store),
            Arc::clone(&metrics),
            Clock::system(),
            CacheSettings::unlimited(),
            &tasks,
            &CancellationToken::new(),
        );
        cache.complete().await;
        Ok(Self {
            cache,
            metrics,
            _tasks: tasks,
            _directory: directory,
        })
    }

    async fn blob(&self, plan: &Plan) -> Result<CachedBlob> {
        let blob = self.cache.peek(&plan.digest).await;
        blob.context("the blob isn't in the cache")
    }
}

/// Reads a part as uploads do, into memory that was used before.
async fn read(
    blob: &CachedBlob,
    (start, end): (u64, u64),
    used: &Mutex<Vec<BytesMut>>,
) -> Result<Vec<Bytes>> {
    let (mut pieces, mut at) = (Vec::new(), start);
    while at < end {
        let most = usize::try_from(end - at)?.min(MAX_READ);
        let buffer = used.lock().pop().unwrap_or_default();
        let piece = blob.content().reader.read_into(buffer, at, most).await?;
        ensure!(!piece.is_empty(), "the file has become shorter");
        at += piece.len() as u64;
        pieces.push(piece);
    }
    Ok(pieces)
}
