//! The client of one endpoint: its URL, connections, credentials and tokens, and its health. Nothing of
//! these is shared with another endpoint.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::HeaderValue;
use url::Url;

use super::callers::CallerId;
use super::clients::TlsFiles;
use super::credentials::Auth;
use super::error::SetupError;
use super::health::Health;
use super::limiter::Limiter;
use super::limits::Limits;
use super::login::Login;
use super::multi_range::MultiRange;
use super::peer::Peer;
use super::transport::Transport;
use crate::clock::Clock;
use crate::config::{self, Reserve, Timeouts};
use crate::metrics::Metrics;
use crate::oci::RepoName;

/// The client of one endpoint.
#[derive(Clone)]
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
    pub auth: Arc<Auth>,
    /// Further accounts, which share the requests with `auth`.
    pub others: Arc<[Arc<Auth>]>,
    pub multi_range: Arc<MultiRange>,
    /// The account of a caller. None where all callers share the mirror's account.
    pub caller: Option<CallerId>,
    /// What a caller presents: to other replicas, which speak TLS then.
    pub login: Option<HeaderValue>,
    pub health: Arc<Health>,
    /// The replica that is asked instead of the endpoint.
    pub peer: Option<Arc<Peer>>,
}

/// What the endpoints of one upstream have in common.
pub(super) struct EndpointOptions<'a> {
    pub timeouts: Timeouts,
    pub clock: Clock,
    pub metrics: &'a Metrics,
    /// Whether requests are sent again to the same endpoint; otherwise another one is asked.
    pub retries: bool,
    pub limiter: Arc<Limiter>,
    pub reserve: Reserve,
}

impl Endpoint {
    pub(super) fn new(
        index: usize,
        endpoint: config::Endpoint,
        files: &TlsFiles,
        options: &EndpointOptions<'_>,
    ) -> Result<Self, SetupError> {
        let EndpointOptions {
            metrics, retries, ..
        } = *options;
        let label = endpoint.label();
        let config = Arc::new(endpoint.registry);
        let figures = (!retries).then(|| metrics.endpoint(&config.name, &label));
        let transport = Transport::new(
            Arc::clone(&config),
            files,
            (options.timeouts, options.clock),
            metrics.upstream(&config.name),
            Arc::clone(&options.limiter),
            retries,
        )?;
        let limits = |account: String| {
            let metrics = metrics.rate_limit(&config.name, &label, &account);
            Limits::new(&config.name, account, options.reserve, Some(metrics))
        };
        let others = config.accounts.iter().zip(2..);
        let others =
            others.map(|(account, number)| Auth::further(&config, account, number, &limits));
        let others = others.map(Arc::new).collect();
        // For callers without a login. The configured credentials are never used for a caller.
        let (auth, caller) = match config.caller.authorize {
            config::Authorize::Shared => (Auth::new(&config, &limits), None),
            config::Authorize::Caller => {
                let auth = Auth::of_caller(&config, None, options.reserve);
                (auth, Some(CallerId::ANONYMOUS))
            }
        };
        Ok(Self {
            index,
            prefix: endpoint.prefix,
            weight: endpoint.weight,
            falls_back_on_404: endpoint.fallback_on_404,
            transport: Arc::new(transport),
            auth: Arc::new(auth),
            others,
            multi_range: Arc::new(MultiRange::new(&config.name)),
            caller,
            health: Arc::new(Health::new(&config.name, label, figures)),
            login: None,
            peer: None,
            config,
        })
    }

    /// The same endpoint for a caller with a login.
    pub(super) fn with_login(&self, login: &Login, id: CallerId) -> Self {
        let auth = Auth::of_caller(&self.config, Some(login), self.config.rate_limit.reserve);
        Self {
            auth: Arc::new(auth),
            others: Arc::default(),
            caller: Some(id),
            login: Some(login.header().clone()),
            ..self.clone()
        }
    }

    /// Asks another replica, under the names that the upstream has for repositories.
    pub(super) fn at_peer(&self, peer: Arc<Peer>) -> Self {
        Self {
            prefix: None,
            peer: Some(peer),
            ..self.clone()
        }
    }

    /// The same endpoint with one of its accounts only.
    pub(super) fn with_account(&self, auth: &Arc<Auth>) -> Self {
        Self {
            auth: Arc::clone(auth),
            others: Arc::default(),
            ..self.clone()
        }
    }

    /// Its accounts.
    pub(super) fn accounts(&self) -> impl Iterator<Item = &Arc<Auth>> {
        std::iter::once(&self.auth).chain(self.others.iter())
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
        let peer = self.peer.as_ref().map(|peer| peer.base());
        let mut url = peer.unwrap_or(&self.config.url).clone();
        // Only a URL that can't be a base has no segments, and none of those is configured.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v2").extend(repo.components());
            segments.push(endpoint).push(item);
        }
        url
    }
}
