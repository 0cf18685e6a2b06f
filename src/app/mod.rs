//! Wires the modules together; owns every task and the way to stop.

mod access;
mod bucket;
mod cache;
mod check;
mod descriptors;
mod gate;
mod hosted;
mod listeners;
mod merge;
mod pulling;
mod reload;
mod replicas;
mod serving;
mod traces;
mod upstreams;
mod usage_file;
mod watchdog;

pub use cache::Space;
pub use cache::settings as cache_settings;
pub use check::warn_of_min_free;
pub use descriptors::Descriptors;
pub use upstreams::{client as upstream_client, tls_files};

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use listeners::ListenersTls;
use reload::Running;
use replicas::Replication;
use serving::{Addresses, Serving};
use traces::Traces;
use usage_file::UsageFile;

use crate::access::{Denials, DenyError};
use crate::admin::operate::{MirrorInUse, UpstreamList};
use crate::admin::reload::Reloads;
use crate::auth::AuthSetupError;
use crate::bucket::{Bucket, BucketSetupError};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{self, Config, HealthConfig};
use crate::health::{Availability, HealthSetupError, Probes};
use crate::log_levels::LogLevels;
use crate::metrics::Metrics;
use crate::renewal::Renewals;
use crate::server::listener::{Address, BindError};
use crate::server::{Current, LINGER, ServerSettings};
use crate::storage::{FsStore, MemoryStore, Store, StoreError, UpstreamChange};
use crate::systemd::{Handed, SocketsError};
use crate::tasks::{Panicked, Tasks};
use crate::tls::{ServerTls, TlsError};
use crate::upstream::{Lookup, PeersError, SetupError};

/// Why the mirror doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("TLS on {listener}: {source}")]
    Tls { listener: String, source: TlsError },
    #[error("the address of a socket can't be told: {0}")]
    Address(std::io::Error),
    #[error("the data directory can't be used: {0}")]
    Store(#[from] StoreError),
    #[error("callers can't be identified (auth)")]
    Auth(#[from] AuthSetupError),
    #[error("upstream {upstream} can't be set up")]
    Upstream {
        upstream: String,
        source: SetupError,
    },
    #[error("the file {path} of upstream {upstream} can't be read: {source}")]
    PemFile {
        upstream: String,
        path: PathBuf,
        key: &'static str,
        source: std::io::Error,
    },
    #[error(transparent)]
    Bucket(#[from] BucketSetupError),
    #[error(transparent)]
    Replicas(#[from] PeersError),
    #[error("the certificate {path}, which replicas are trusted by, can't be read: {source}")]
    ReplicaCertificate {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Deny(#[from] DenyError),
    #[error("the export of traces can't be set up")]
    Collector(#[source] SetupError),
    #[error(transparent)]
    Health(#[from] HealthSetupError),
    #[error("the audit log can't be started: {0}")]
    Audit(std::io::Error),
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    #[error("the admin socket of the data directory can't be opened")]
    NoCommands,
}

/// A running mirror.
#[derive(Debug)]
pub struct App {
    address: Address,
    /// Those of `http.listeners`.
    other_addresses: Vec<Address>,
    tls: Vec<Arc<ServerTls>>,
    debug_address: Option<Address>,
    /// What a stop may take.
    stop_times: Mutex<StopTimes>,
    /// Boxed, so that futures that own the mirror stay small.
    running: Box<tokio::sync::Mutex<Running>>,
    current: Arc<Current>,
    shared: Shared,
}

/// How long the steps of a stop may take.
#[derive(Debug, Clone, Copy)]
struct StopTimes {
    /// How long requests are accepted while the server says that it isn't ready.
    delay: Duration,
    /// How long requests in flight may take.
    drain: Duration,
}

impl StopTimes {
    fn of(config: &Config) -> Self {
        // Where nobody can ask whether the server is ready, nobody waits for the answer.
        let delay = Some(config.http.shutdown_delay).filter(|_| config.http.has_operators());
        Self {
            delay: delay.unwrap_or_default(),
            drain: config.http.drain_timeout,
        }
    }
}

/// What the parts of a mirror share.
#[derive(Debug)]
struct Shared {
    cache: Cache,
    /// None where there is no bucket.
    bucket: Option<Arc<Bucket>>,
    metrics: Arc<Metrics>,
    /// The checks that the operator configured, and whether the server stops.
    availability: Availability,
    clock: Clock,
    levels: Arc<LogLevels>,
    traces: Traces,
    /// The deny list and the audit log.
    denials: Denials,
    /// None where this server works alone.
    replication: Option<Replication>,
    /// For operators.
    upstreams: UpstreamList,
    usage: Arc<UsageFile>,
    /// The connections of clients, and what accepts them: a stop waits for these tasks, too.
    connections: TaskTracker,
    /// Downloads and other work of requests: a stop waits for these tasks.
    tasks: TaskTracker,
    /// What the server needs for as long as it runs.
    background: Tasks,
    /// Accept no more; end connections after the request under way.
    stop_accepting: CancellationToken,
    /// Fail what is still running.
    stop_now: CancellationToken,
    /// Requests to read the configuration again.
    reloads: Arc<Reloads>,
    /// For operators.
    mirror: MirrorInUse,
    /// What is read again when its files change.
    renewals: Renewals,
}

impl App {
    /// Starts with what the configuration says. When this returns, requests are answered.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        Self::start_on(config, Handed::default(), Arc::default()).await
    }

    /// Starts with listening sockets that the service manager has handed over. Operators may change the
    /// levels of the log.
    pub async fn start_on(
        config: &Config,
        sockets: Handed,
        levels: Arc<LogLevels>,
    ) -> Result<Self, StartError> {
        let (store, files): (Arc<dyn Store>, _) = match &config.storage {
            config::Storage::Filesystem { root, mode } => {
                let files = Arc::new(open_store(root, *mode, config).await?);
                (Arc::clone(&files) as _, Some(files))
            }
            config::Storage::Memory => (Arc::new(MemoryStore::new()), None),
        };
        let given = (Some(sockets), levels, Lookup::default());
        Self::start_over(config, (store, files), Clock::system(), given).await
    }

    /// Starts over the data directory for a command that works on it while no server runs: answers at its
    /// admin socket only.
    pub async fn start_for_command(config: &Config, root: &Path) -> Result<Self, StartError> {
        let mut config = config.clone();
        config.http.tls = None;
        config.http.listeners.clear();
        config.http.debug = None;
        (config.health, config.tracing) = (HealthConfig::default(), None);
        // The server uploads what is left, and reads what is missing.
        config.bucket = None;
        let files = Arc::new(open_store(root, None, &config).await?);
        let store = (Arc::clone(&files) as _, Some(files));
        let given = (None, Arc::default(), Lookup::default());
        Self::start_over(&config, store, Clock::system(), given).await
    }

    /// Starts over a given store and clock.
    pub async fn start_with(
        config: &Config,
        store: Arc<dyn Store>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        Self::start_among(config, store, clock, Lookup::default()).await
    }

    /// The same with replicas whose addresses `lookup` finds.
    pub async fn start_among(
        config: &Config,
        store: Arc<dyn Store>,
        clock: Clock,
        lookup: Lookup,
    ) -> Result<Self, StartError> {
        let given = (Some(Handed::default()), Arc::default(), lookup);
        Self::start_over(config, (store, None), clock, given).await
    }

    async fn start_over(
        config: &Config,
        (store, files): (Arc<dyn Store>, Option<Arc<FsStore>>),
        clock: Clock,
        (sockets, levels, lookup): (Option<Handed>, Arc<LogLevels>, Lookup),
    ) -> Result<Self, StartError> {
        let (metrics, background) = (Arc::new(Metrics::new()), Tasks::new());
        let stop_now = CancellationToken::new();
        let tls = ListenersTls::load(config, clock, &metrics)?;
        let access = access::access(config, clock, &metrics).await?;
        let traces = Traces::start(config, clock, &metrics, &background)?;
        let (replication, clients) = replicas::open(config, lookup, clock, &metrics).await?;
        let settings = cache_settings(config);
        let counted = Arc::clone(&metrics);
        let cache = Cache::start(store, counted, clock, settings, &background, &stop_now);
        let bucket = bucket::open(config, &cache, clock, &metrics)?;
        let (upstreams, usage) = usage_file::open(config, &clients).await;
        let shared = Shared {
            cache,
            bucket,
            metrics,
            availability: Availability::default(),
            clock,
            levels,
            traces,
            denials: access.denials(),
            replication,
            upstreams,
            usage,
            connections: TaskTracker::new(),
            tasks: TaskTracker::new(),
            background,
            stop_accepting: CancellationToken::new(),
            stop_now,
            reloads: Arc::default(),
            mirror: MirrorInUse::default(),
            renewals: Renewals::default(),
        };
        shared.start_background(config);
        let probes = Probes::new(&config.health, &shared.cache)?;
        let running = shared.running(config, clients, access, files).await?;
        let current = Arc::clone(&running.current);
        let serving = Serving::new(config, &shared, Arc::clone(&running.admission));
        let Addresses {
            main: address,
            others: other_addresses,
            debug: debug_address,
        } = serving.begin(config, &tls, &current, sockets).await?;
        shared
            .availability
            .start(probes, &shared.background, &shared.stop_accepting);
        Ok(Self {
            address,
            other_addresses,
            tls: tls.iter().cloned().collect(),
            debug_address,
            stop_times: Mutex::new(StopTimes::of(config)),
            running: Box::new(tokio::sync::Mutex::new(running)),
            current,
            shared,
        })
    }

    /// Where the registry API is served.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Where else requests are answered: the addresses of `http.listeners`.
    pub fn other_addresses(&self) -> &[Address] {
        &self.other_addresses
    }

    /// The TLS of the listeners that have one, in the order of the configuration.
    pub fn tls(&self) -> &[Arc<ServerTls>] {
        &self.tls
    }

    /// Where metrics and health are served, if they are.
    pub fn debug_address(&self) -> Option<&Address> {
        self.debug_address.as_ref()
    }

    /// Everything that is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// The deny list, and the audit log of its changes.
    pub fn denials(&self) -> &Denials {
        &self.shared.denials
    }

    /// How long a stop waits for requests in flight.
    pub fn drain_timeout(&self) -> Duration {
        self.stop_times.lock().drain
    }

    /// Where an operator asks for the configuration to be read again.
    pub fn reloads(&self) -> &Reloads {
        &self.shared.reloads
    }

    /// Waits until a task that the server needs has panicked. The process should stop then: what
    /// the task worked on may be inconsistent.
    pub async fn failed(&self) -> Panicked {
        self.shared.background.failed().await
    }

    /// Stops gracefully: says that it isn't ready, accepts nothing new, lets what is under way finish within the configured
    /// time, then ends the rest. Returns whether everything finished by itself.
    pub async fn stop(self) -> bool {
        self.stop_unless(std::future::pending()).await
    }

    /// Stops like [`stop`](Self::stop), and ends the rest at once when `hurry` is done.
    pub async fn stop_unless(self, hurry: impl Future<Output = ()>) -> bool {
        let mut hurry = std::pin::pin!(hurry);
        self.shared.reloads.close();
        let hurried = self.wait_unready(&mut hurry).await;
        let clean = self
            .drain(async {
                if !hurried {
                    hurry.await;
                }
            })
            .await;
        // After the last request.
        let traces = self.shared.traces.flush();
        // After the last use, so that the snapshot has it.
        let saved = tokio::time::timeout(SAVE_TIME, self.shared.cache.stop());
        if saved.await.is_err() {
            tracing::warn!("the expiry state could not be saved in time; its journal has it");
        }
        let usage = self.shared.usage.save();
        let uploads = self.shared.save_uploads();
        tokio::join!(self.shared.denials.audit().flush(), traces, usage, uploads);
        clean
    }

    /// Says that the server isn't ready, and goes on for a while, so that whoever sends requests can
    /// notice before connections are refused. Returns whether `hurry` has ended that.
    async fn wait_unready(&self, hurry: impl Future<Output = ()>) -> bool {
        self.shared.availability.stop();
        let delay = self.stop_times.lock().delay;
        if delay.is_zero() {
            return false;
        }
        tokio::select! {
            biased;
            () = hurry => true,
            // The sooner it ends, the better.
            _ = self.failed() => false,
            () = tokio::time::sleep(delay) => false,
        }
    }

    async fn drain(&self, hurry: impl Future<Output = ()>) -> bool {
        let Shared {
            connections,
            tasks,
            stop_accepting,
            stop_now,
            ..
        } = &self.shared;
        stop_accepting.cancel();
        connections.close();
        tasks.close();
        let finished = async {
            // Connections start tasks.
            connections.wait().await;
            tasks.wait().await;
        };
        let mut finished = std::pin::pin!(finished);
        let reason = tokio::select! {
            biased;
            () = finished.as_mut() => return true,
            () = hurry => "another signal",
            () = tokio::time::sleep(self.drain_timeout()) => "the drain timeout",
        };
        let unfinished = tasks.len();
        if unfinished > 0 {
            tracing::warn!(tasks = unfinished, reason, "ending what has not finished");
        }
        stop_now.cancel();
        // Bodies of failed downloads end now, and so do idle connections.
        let left = tokio::time::timeout(LAST_MOMENT, finished).await.is_err();
        if left {
            // Clients that read a stored blob slowly.
            let connections = connections.len();
            tracing::warn!(
                connections,
                reason,
                "cutting off connections with unfinished requests"
            );
        }
        unfinished == 0 && !left
    }
}

impl Shared {
    /// Starts what goes on for as long as the process runs.
    fn start_background(&self, config: &Config) {
        self.watch_levels();
        self.keep_usage();
        self.follow_replicas();
        self.run_bucket(config);
        self.renewals.watch(&self.background, self.stop_now.clone());
    }

    /// Ends changes of log levels when their time is over.
    fn watch_levels(&self) {
        let levels = Arc::clone(&self.levels);
        let stop = self.stop_now.clone();
        self.background
            .spawn_restarted("log levels", stop, move || {
                let levels = Arc::clone(&levels);
                async move { levels.expire().await }
            });
    }
}

/// Opens the data directory, and says which upstreams it is for.
async fn open_store(
    root: &Path,
    mode: Option<u32>,
    config: &Config,
) -> Result<FsStore, StartError> {
    let store = FsStore::open_with(root, mode).await?;
    let upstreams = merge::origins(config);
    for UpstreamChange { name, before, now } in store.set_upstreams(upstreams).await? {
        tracing::warn!(
            upstream = name,
            before,
            now,
            "this data directory was filled from another upstream: nothing that it has is served \
             for this one before the upstream has said that it has it, too"
        );
    }
    Ok(store)
}

/// How long the expiry state may take to be saved at the end.
const SAVE_TIME: Duration = Duration::from_secs(30);

/// How long failed requests have to say so, and idle connections to end, after the drain time.
const LAST_MOMENT: Duration = LINGER.saturating_add(Duration::from_millis(500));

fn server_settings(config: &Config, traces: &Traces) -> ServerSettings {
    let host = config
        .http
        .host
        .as_ref()
        .filter(|_| !config.http.relative_urls);
    ServerSettings {
        prefix: config.http.prefix.clone(),
        origin: host.map(|host| host.as_str().trim_end_matches('/').to_owned()),
        headers: config.http.headers.clone(),
        access_log: config.log.access,
        tracer: traces.tracer(),
    }
}
