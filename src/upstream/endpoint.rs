//! The client of one endpoint: its URL, connections, credentials and tokens, and its health. Nothing of
//! these is shared with another endpoint.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use url::Url;

use super::callers::CallerId;
use super::clients::TlsFiles;
use super::credentials::Auth;
use super::error::SetupError;
use super::health::Health;
use super::login::Login;
use super::multi_range::MultiRange;
use super::transport::Transport;
use crate::clock::Clock;
use crate::config::{self, Timeouts};
use crate::metrics::Metrics;
use crate::oci::RepoName;

/// The client of one endpoint.
pub(super) struct Endpoint {
    /// Its position among those of the upstream.
    pub index: usize,
    pub config: Arc<config::Upstream>,
    /// Comes before the repository's name.
    prefix: Option<RepoName>,
    /// Its share of the streams of blobs; 0: none while an endpoint before it answers.
    pub weight: usize,
    /// Whether the next endpoint is asked for what this one doesn't have.
    pub falls_back_on_404: bool,
    pub transport: Arc<Transport>,
    pub auth: Auth,
    pub multi_range: Arc<MultiRange>,
    /// The account of a caller. None where all callers share the mirror's account.
    pub caller: Option<CallerId>,
    pub health: Arc<Health>,
}

impl Endpoint {
    /// `retries`: whether requests are sent again to this endpoint; otherwise another one is asked.
    pub(super) fn new(
        index: usize,
        endpoint: config::Endpoint,
        files: &TlsFiles,
        timeouts: Timeouts,
        clock: Clock,
        metrics: &Metrics,
        retries: bool,
    ) -> Result<Self, SetupError> {
        let label = endpoint.label();
        let config = Arc::new(endpoint.registry);
        let figures = (!retries).then(|| metrics.endpoint(&config.name, &label));
        let metrics = metrics.upstream(&config.name);
        let transport = Transport::new(
            Arc::clone(&config),
            files,
            timeouts,
            clock,
            metrics,
            retries,
        )?;
        // For callers without a login. The configured credentials are never used for a caller.
        let (auth, caller) = match config.caller.authorize {
            config::Authorize::Shared => (Auth::new(&config), None),
            config::Authorize::Caller => {
                (Auth::of_caller(&config, None), Some(CallerId::ANONYMOUS))
            }
        };
        Ok(Self {
            index,
            prefix: endpoint.prefix,
            weight: endpoint.weight,
            falls_back_on_404: endpoint.fallback_on_404,
            transport: Arc::new(transport),
            auth,
            multi_range: Arc::new(MultiRange::new(&config.name)),
            caller,
            health: Arc::new(Health::new(&config.name, label, figures)),
            config,
        })
    }

    /// The same endpoint for a caller with a login.
    pub(super) fn with_login(&self, login: &Login, id: CallerId) -> Self {
        Self {
            index: self.index,
            config: Arc::clone(&self.config),
            prefix: self.prefix.clone(),
            weight: self.weight,
            falls_back_on_404: self.falls_back_on_404,
            transport: Arc::clone(&self.transport),
            auth: Auth::of_caller(&self.config, Some(login)),
            multi_range: Arc::clone(&self.multi_range),
            caller: Some(id),
            health: Arc::clone(&self.health),
        }
    }

    /// What the upstream is called in logs, metrics and errors.
    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    /// Streams of blobs in relation to its share of them.
    #[expect(clippy::cast_precision_loss, reason = "both are small")]
    pub(super) fn load(&self) -> f64 {
        match self.weight {
            0 => f64::INFINITY,
            weight => self.health.streams.load(Ordering::Relaxed) as f64 / weight as f64,
        }
    }

    /// What a repository is called there.
    pub(super) fn named<'a>(&self, repo: &'a RepoName) -> Cow<'a, RepoName> {
        match &self.prefix {
            Some(prefix) => Cow::Owned(repo.below(prefix)),
            None => Cow::Borrowed(repo),
        }
    }

    /// The address of `/v2/<repo>/<endpoint>/<item>`.
    pub(super) fn url(&self, repo: &RepoName, endpoint: &str, item: &str) -> Url {
        let mut url = self.config.url.clone();
        // Only a URL that can't be a base has no segments, and none of those is configured.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v2").extend(repo.components());
            segments.push(endpoint).push(item);
        }
        url
    }
}
