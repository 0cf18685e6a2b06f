//! Changes the configuration of a running mirror.
//!
//! Everything that a request uses and that depends on the configuration is built anew first, and
//! completely. What can fail has then succeeded, and the parts are swapped: requests load the
//! [service](crate::server::Current) once, when they begin, and end with the parts that they began with.
//! What has no such parts (the limits of connections and downloads, the cache's policy) is set in the same
//! step. The cache, running downloads, and what the mirror has learned stay. The client of an upstream
//! stays, too, unless its own settings have changed; otherwise it ends with its last download.
//!
//! What is cached under a name was proved by the registry of that name. So the URL of an upstream can't
//! change here, and the name of one that is removed isn't the default upstream's before the restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::merge::{Merged, origins};
use super::replicas::Replication;
use super::upstreams::Clients;
use super::usage_file;
use super::{Shared, StartError, StopTimes, cache, descriptors, hosted, pulling, server_settings};
use crate::access::Access;
use crate::admin::reload::ReloadReport;
use crate::auth::Authenticator;
use crate::cache::{CacheSettings, NotReady};
use crate::config::{Config, ConfigError, Difference, Loaded, Places};
use crate::download::Downloader;
use crate::error_chain::on_one_line;
use crate::hosted::Hosted;
use crate::mirror::Mirror;
use crate::server::{Admission, Current, Gate, Service};
use crate::storage::{FsStore, StoreError};

/// How long it may take until everything can be swapped.
const PATIENCE: Duration = Duration::from_mins(1);

/// The parts of a running mirror that depend on the configuration.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) config: Config,
    pub(super) current: Arc<Current>,
    pub(super) clients: Clients,
    pub(super) mirror: Arc<Mirror>,
    /// None where nothing is hosted.
    pub(super) hosted: Option<Hosted>,
    pub(super) downloader: Downloader,
    pub(super) authenticator: Arc<Authenticator>,
    /// The rules that later ones are made like.
    pub(super) access: Access,
    pub(super) admission: Arc<Admission>,
    /// The URLs of all upstreams that have had a name since the start. The default one's is empty.
    pub(super) origins: BTreeMap<String, String>,
    /// None for a store in memory.
    pub(super) files: Option<Arc<FsStore>>,
    /// Ends the background scrub.
    pub(super) scrub: CancellationToken,
    /// Ends the task that keeps tags fresh.
    pub(super) keep_fresh: CancellationToken,
}

/// Why a new configuration isn't applied.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error("the files of the configuration or the data directory take more than {PATIENCE:?}")]
    Late,
    #[error("a blocking step was lost: {0}")]
    Lost(#[from] tokio::task::JoinError),
    #[error(
        "until a restart, everyone who can reach the mirror could pull what the account of the \
         upstream {0} can read: its settings can't change now, and `access` and `auth` would permit it"
    )]
    Lends(String),
}

/// Parts that are ready to be used.
struct Prepared {
    config: Config,
    clients: Clients,
    mirror: Arc<Mirror>,
    hosted: Option<Hosted>,
    authenticator: Arc<Authenticator>,
    access: Access,
    policy: CacheSettings,
    service: Service,
    origins: BTreeMap<String, String>,
}

impl Shared {
    /// The parts of the first configuration.
    pub(super) async fn running(
        &self,
        config: &Config,
        clients: Clients,
        access: Access,
        files: Option<Arc<FsStore>>,
    ) -> Result<Running, StartError> {
        let scrub = self.stop_accepting.child_token();
        self.scrub(config, &scrub);
        let downloader = self.downloader(&config.proxy);
        let upstreams = clients.upstreams(access.is_open());
        let mirror = self.mirror(&config.proxy, upstreams, downloader.clone());
        let keep_fresh = self.stop_accepting.child_token();
        self.keep_fresh(&mirror, config, &keep_fresh);
        let authenticator = Arc::new(self.authenticator(config, &mirror).await?);
        *self.mirror.write() = Some(Arc::clone(&mirror));
        self.renew(&clients, &authenticator);
        let hosted = self.hosted(config);
        let parts = (&mirror, hosted.as_ref());
        let service = self.service(config, parts, &authenticator, &access);
        Ok(Running {
            current: Arc::new(Current::new(service)),
            admission: Admission::new(descriptors::connection_limits(config)),
            origins: origins(config),
            config: config.clone(),
            clients,
            mirror,
            hosted,
            downloader,
            authenticator,
            access,
            files,
            scrub,
            keep_fresh,
        })
    }

    /// The registry API over these parts.
    fn service(
        &self,
        config: &Config,
        (mirror, hosted): (&Arc<Mirror>, Option<&Hosted>),
        authenticator: &Arc<Authenticator>,
        access: &Access,
    ) -> Service {
        let gate = Gate {
            authenticator: Arc::clone(authenticator),
            access: access.clone(),
            availability: self.availability.clone(),
            replicas: self.peer_gate(),
        };
        let settings = server_settings(config, &self.traces);
        let replicas = self.replication.as_ref();
        let replicas = replicas.map(|replication| &replication.peers);
        let repositories =
            hosted.map(|hosted| hosted::repositories(hosted.clone(), config, replicas));
        Service::new(
            Arc::clone(mirror),
            repositories,
            gate,
            (Arc::clone(&self.metrics), self.connections.clone()),
            settings,
        )
    }

    /// Reads the files of these again when they change, and no others'.
    fn renew(&self, clients: &Clients, authenticator: &Authenticator) {
        let of_callers = authenticator.renewals().iter().cloned();
        let of_replicas = self.replication.as_ref().and_then(Replication::renewal);
        let all = clients.renewals().chain(of_callers).chain(of_replicas);
        self.renewals.set(all);
    }
}

impl super::App {
    /// Applies a configuration that was read anew, or tells why it isn't. `apply` gets the configuration
    /// in effect, for what this crate's user has of it. Nothing changes unless everything that can does.
    pub async fn reload(
        &self,
        loaded: Result<Loaded, ConfigError>,
        apply: impl FnOnce(&Config),
    ) -> ReloadReport {
        let mut running = self.running.lock().await;
        let report = match loaded {
            Ok(loaded) => Box::pin(running.reload(&self.shared, loaded, apply)).await,
            Err(error) => refused(problems(&error)),
        };
        *self.stop_times.lock() = StopTimes::of(&running.config);
        log(&report);
        report
    }
}

impl Running {
    async fn reload(
        &mut self,
        shared: &Shared,
        loaded: Loaded,
        apply: impl FnOnce(&Config),
    ) -> ReloadReport {
        let Loaded {
            config,
            mut warnings,
            places,
            ..
        } = loaded;
        let new = config.clone();
        let ready = async {
            let kept = self.keeps_upstreams(shared, &config).await?;
            let merged = Merged::new(&self.config, config, kept.is_some());
            let prepared = self.prepare(shared, merged.config.clone()).await?;
            Ok::<_, ReloadError>((kept, merged, prepared))
        };
        let ready = tokio::time::timeout(PATIENCE, ready).await;
        let (kept, merged, prepared) = match ready.unwrap_or(Err(ReloadError::Late)) {
            Ok(ready) => ready,
            Err(error) => return refused(vec![error.text(&new, &places)]),
        };
        warnings.extend(kept);
        self.swap(shared, prepared, apply).await;
        ReloadReport {
            problems: Vec::new(),
            applied: merged.applied,
            restart: merged.restart,
            warnings,
        }
    }

    /// Why the upstreams have to stay as they are, if they do: what is cached under the name of one came
    /// from somewhere else.
    async fn keeps_upstreams(
        &self,
        shared: &Shared,
        new: &Config,
    ) -> Result<Option<String>, ReloadError> {
        for (name, url) in origins(new) {
            let shown = if name.is_empty() {
                "the default upstream"
            } else {
                &name
            };
            match self.origins.get(&name) {
                Some(known) if *known != url => {
                    return Ok(Some(format!(
                        "the upstreams stay as they are until a restart: what is cached of {shown} \
                         came from {known}, and its URL is now {url}"
                    )));
                }
                None if shared.cache.has_repositories_under(&name).await? => {
                    return Ok(Some(format!(
                        "the upstreams stay as they are until a restart: what is cached under {name}/ \
                         came from the default upstream"
                    )));
                }
                Some(_) | None => {}
            }
        }
        Ok(None)
    }

    /// Builds all parts. Changes nothing, but for the names of new upstreams in the data directory.
    async fn prepare(&self, shared: &Shared, config: Config) -> Result<Prepared, ReloadError> {
        if let Some(upstream) = config.lends_by_accident() {
            return Err(ReloadError::Lends(upstream.name.clone()));
        }
        let (known, wanted) = (self.clients.clone(), config.clone());
        let (clock, metrics) = (shared.clock, Arc::clone(&shared.metrics));
        let replication = shared.replication.clone();
        // Reading certificates takes its time, and the file system may.
        let open = move || {
            let peers = replication.as_ref().map(|replication| &replication.peers);
            let made_from = (Some(&known), peers);
            let clients = Clients::open(&wanted.proxy, made_from, clock, &metrics)?;
            Ok::<_, StartError>((clients, cache::settings(&wanted)))
        };
        let (clients, policy) = tokio::task::spawn_blocking(open).await??;
        let rules = config.access.rules.clone();
        let access = self
            .access
            .with_rules(rules, config.has_users(), &config.proxy);
        let mut origins = self.origins.clone();
        origins.extend(super::merge::origins(&config));
        let is_used = |name: &String| config.proxy.upstreams.iter().any(|used| used.name == *name);
        let names = origins.keys().filter(|name| !name.is_empty());
        let reserved: BTreeSet<String> = names.filter(|name| !is_used(name)).cloned().collect();
        let upstreams = clients.upstreams(access.is_open()).reserving(reserved);
        let mirror = self
            .mirror
            .renewed(upstreams, pulling::policy(&config.proxy));
        let authenticator = if Shared::is_same_authenticator(&self.config, &config) {
            Arc::clone(&self.authenticator)
        } else {
            Arc::new(shared.authenticator(&config, &mirror).await?)
        };
        let hosted = hosted::renewed(self.hosted.as_ref(), &config);
        let parts = (&mirror, hosted.as_ref());
        let service = shared.service(&config, parts, &authenticator, &access);
        if let Some(files) = self.files.as_ref().filter(|_| origins != self.origins) {
            // Removed ones stay in the list: their last downloads are still theirs.
            files.set_upstreams(origins.clone()).await?;
        }
        Ok(Prepared {
            config,
            clients,
            mirror,
            hosted,
            authenticator,
            access,
            policy,
            service,
            origins,
        })
    }

    /// Applies everything. Nothing of it can fail.
    async fn swap(&mut self, shared: &Shared, new: Prepared, apply: impl FnOnce(&Config)) {
        let Prepared {
            config,
            clients,
            mirror,
            hosted,
            authenticator,
            access,
            policy,
            service,
            origins,
        } = new;
        // What is denied is denied at once, whichever rules a request began with.
        shared.denials.configure(&config.access.deny);
        shared.renew(&clients, &authenticator);
        let upstreams = clients.list();
        usage_file::carry_over(&shared.upstreams.read(), &upstreams);
        *shared.upstreams.write() = upstreams;
        self.current.replace(service);
        *shared.mirror.write() = Some(Arc::clone(&mirror));
        self.admission
            .configure(descriptors::connection_limits(&config));
        self.downloader.configure(pulling::downloads(&config.proxy));
        apply(&config);
        if config.limits.scrub != self.config.limits.scrub {
            self.scrub.cancel();
            self.scrub = shared.stop_accepting.child_token();
            shared.scrub(&config, &self.scrub);
        }
        self.keep_fresh.cancel();
        self.keep_fresh = shared.stop_accepting.child_token();
        shared.keep_fresh(&mirror, &config, &self.keep_fresh);
        (self.config, self.clients, self.mirror) = (config, clients, mirror);
        (self.authenticator, self.access, self.origins) = (authenticator, access, origins);
        self.hosted = hosted;
        shared.cache.configure(policy).await;
    }
}

impl ReloadError {
    /// With the place in the file that it is about, where there is one.
    fn text(&self, config: &Config, places: &Places) -> String {
        let text = on_one_line(self);
        match self {
            Self::Start(error) => match error.key(config) {
                Some(key) => format!("{}: `{key}`: {text}", places.of(&key)),
                None => text,
            },
            _ => text,
        }
    }
}

fn problems(error: &ConfigError) -> Vec<String> {
    match error {
        ConfigError::Problems(problems) => problems.iter().map(ToString::to_string).collect(),
        other => vec![on_one_line(other)],
    }
}

fn refused(problems: Vec<String>) -> ReloadReport {
    ReloadReport {
        problems,
        ..ReloadReport::default()
    }
}

fn log(report: &ReloadReport) {
    for problem in &report.problems {
        tracing::error!(
            problem,
            "the configuration isn't applied: nothing has changed"
        );
    }
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    for Difference { key, .. } in &report.restart {
        tracing::warn!(key, "changed, but it keeps its old value until a restart");
    }
    if report.problems.is_empty() {
        let keys = report
            .applied
            .iter()
            .map(|difference| difference.key.as_str());
        let applied = keys.collect::<Vec<_>>().join(", ");
        tracing::info!(applied, "the configuration was read again");
    }
}
