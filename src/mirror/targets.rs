//! Which upstream a request is for, what the repository is called there, and how it is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::MirrorError;
use crate::download::Party;
use crate::oci::RepoName;
use crate::upstream::{Login, OwnerKey, Upstream};

#[derive(Debug)]
pub struct Upstreams {
    default: Arc<Upstream>,
    /// A few hosts, of which several are looked for with each request.
    by_host: BTreeMap<String, Arc<Upstream>>,
    has_others: bool,
    /// Whether anonymous callers may read everything, as far as this mirror decides.
    everybody_reads: bool,
    /// Names of upstreams that were removed while the process runs. What is cached below them, and what
    /// their last downloads still bring, isn't the default upstream's.
    reserved: BTreeSet<String>,
}

#[derive(Debug, Clone)]
pub struct Target {
    /// With the account of the caller, where it is asked with those.
    pub upstream: Arc<Upstream>,
    /// The repository's name at the upstream.
    pub repo: RepoName,
    /// Its name in the store: with the upstream's name before it, unless that is the default one.
    pub stored: RepoName,
    /// Whether another replica asks, which must not wait for a third.
    pub from_peer: bool,
    /// Whether the client is redirected to the bucket for all that it can get there.
    pub is_redirected: bool,
}

impl Upstreams {
    /// The configuration has made sure that no two upstreams share a name or an alias.
    pub fn new(
        default: Arc<Upstream>,
        others: impl IntoIterator<Item = Arc<Upstream>>,
        everybody_reads: bool,
    ) -> Self {
        let others: Vec<_> = others.into_iter().collect();
        let has_others = !others.is_empty();
        let mut by_host = BTreeMap::new();
        let others = others.into_iter();
        for upstream in others.chain([Arc::clone(&default)]) {
            for host in &upstream.config.aliases {
                by_host.insert(host.clone(), Arc::clone(&upstream));
            }
        }
        Self {
            default,
            by_host,
            has_others,
            everybody_reads,
            reserved: BTreeSet::new(),
        }
    }

    /// The same, with names that are no upstreams' any more and not yet the default upstream's.
    #[must_use]
    pub fn reserving(self, reserved: BTreeSet<String>) -> Self {
        Self { reserved, ..self }
    }

    /// The names of all, some of them more than once.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_host.values().map(|upstream| upstream.name())
    }

    /// The name of the default upstream.
    pub fn default_name(&self) -> &str {
        self.default.name()
    }

    /// The upstream of a stored repository. None for one of an upstream that was removed.
    pub fn of_stored(&self, stored: &RepoName) -> Option<&Arc<Upstream>> {
        let first = stored.first_component();
        if first.is_some_and(|first| self.reserved.contains(first)) {
            return None;
        }
        let named = first.and_then(|first| {
            let upstream = self.by_host(first)?;
            (upstream.name() == first).then_some(upstream)
        });
        Some(named.unwrap_or(&self.default))
    }

    /// The upstream of a stored repository, and what the repository is called there.
    pub(super) fn stored_target(&self, stored: &RepoName) -> Option<Target> {
        let upstream = Arc::clone(self.of_stored(stored)?);
        let repo = if Arc::ptr_eq(&upstream, &self.default) {
            stored.clone()
        } else {
            stored.split_first()?.1
        };
        Some(Target {
            upstream,
            repo,
            stored: stored.clone(),
            from_peer: false,
            is_redirected: false,
        })
    }

    /// Whether everybody may read what is cached from an upstream.
    pub(super) fn is_public(&self, upstream: &Upstream) -> bool {
        self.everybody_reads && upstream.config.is_public()
    }

    /// Whether content of one of the upstreams may have to be kept from another one.
    pub(super) fn are_separate(&self) -> bool {
        let public = |upstream: &Arc<Upstream>| self.is_public(upstream);
        !self.reserved.is_empty() || (self.has_others && !self.by_host.values().all(public))
    }

    /// Whether an upstream is asked with the accounts of callers.
    pub fn any_of_callers(&self) -> bool {
        let mut all = self.by_host.values();
        all.any(|upstream| upstream.caller().is_some())
    }

    fn by_host(&self, host: &str) -> Option<&Arc<Upstream>> {
        // Hosts are written in lower case, nearly always.
        if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.by_host.get(&host.to_ascii_lowercase())
        } else {
            self.by_host.get(host)
        }
    }

    /// The upstream that a request without a repository is for.
    pub fn addressed(&self, ns: Option<&str>, host: Option<&str>) -> Arc<Upstream> {
        let named = ns.or(host).and_then(|host| self.by_host(host));
        Arc::clone(named.unwrap_or(&self.default))
    }

    /// Chooses by containerd's `ns`, else by the first component of the name, else by the Host
    /// header, else the default.
    pub fn target(
        &self,
        ns: Option<&str>,
        host: Option<&str>,
        name: &RepoName,
    ) -> Result<Target, MirrorError> {
        let named = name.first_component().and_then(|first| {
            let upstream = self.by_host(first)?;
            Some((Arc::clone(upstream), name.split_first()?.1))
        });
        let (upstream, repo) = match ns {
            Some(ns) => {
                let upstream = self
                    .by_host(ns)
                    .ok_or_else(|| MirrorError::UnknownUpstream(ns.to_owned()))?;
                match named {
                    // containerd's `override_path` hosts send both.
                    Some((named, rest)) if Arc::ptr_eq(&named, upstream) => (named, rest),
                    _ => (Arc::clone(upstream), name.clone()),
                }
            }
            None => named.unwrap_or_else(|| {
                let claimed = host.and_then(|host| self.by_host(host));
                (Arc::clone(claimed.unwrap_or(&self.default)), name.clone())
            }),
        };
        self.place(upstream, repo)
    }

    /// The repository that another replica asks for, by the upstream's name and the repository's there. An
    /// error where this replica knows no such upstream, because its configuration is another one.
    pub fn of_peer(
        &self,
        upstream: &str,
        repo: &RepoName,
        login: Option<&Arc<Login>>,
    ) -> Result<Target, MirrorError> {
        let mut all = self.by_host.values().chain([&self.default]);
        let known = all.find(|known| known.name() == upstream);
        let known = known.ok_or(MirrorError::Misdirected)?;
        let target = self.place(Arc::clone(known), repo.clone());
        let target = target.map_err(|_shadowed| MirrorError::Misdirected)?;
        Ok(Target {
            from_peer: true,
            ..target.with_login(login).direct()
        })
    }

    fn place(&self, upstream: Arc<Upstream>, repo: RepoName) -> Result<Target, MirrorError> {
        let repo = match repo.first_component() {
            None if upstream.config.is_docker_hub => match "library".parse::<RepoName>() {
                Ok(library) => repo.below(&library),
                Err(_never) => repo,
            },
            _ => repo,
        };
        let stored = if Arc::ptr_eq(&upstream, &self.default) {
            // Such a repository would share its place in the store with the other upstream's.
            let is_named = |first: &str| {
                let other = self.by_host(first);
                other.is_some_and(|other| other.name() == first && !Arc::ptr_eq(other, &upstream))
            };
            if (self.has_others || !self.reserved.is_empty())
                && let Some(first) = repo.first_component()
                && (is_named(first) || self.reserved.contains(first))
            {
                return Err(MirrorError::Shadowed {
                    upstream: upstream.name().to_owned(),
                    prefix: first.to_string(),
                });
            }
            repo.clone()
        } else {
            let prefix = RepoName::from_stored(upstream.name()).map_err(|_not_a_component| {
                MirrorError::UnknownUpstream(upstream.name().to_owned())
            })?;
            repo.below(&prefix)
        };
        Ok(Target {
            upstream,
            repo,
            stored,
            from_peer: false,
            is_redirected: false,
        })
    }
}

impl Target {
    /// The same for a caller with this account at the upstream; without one, the caller is anonymous
    /// there.
    #[must_use]
    pub fn with_login(self, login: Option<&Arc<Login>>) -> Self {
        Self {
            upstream: self.upstream.with_login(login),
            ..self
        }
    }

    /// The same without the other replicas.
    #[must_use]
    pub(super) fn direct(&self) -> Self {
        Self {
            upstream: self.upstream.direct(),
            ..self.clone()
        }
    }

    /// The same for a question about this: without the other replicas where this one is its owner.
    #[must_use]
    pub(super) fn routed(&self, key: OwnerKey<'_>) -> Self {
        Self {
            upstream: self.upstream.routed(key),
            ..self.clone()
        }
    }

    /// The repository's name for a token service of others: as the client wrote it, unless it means a
    /// named upstream, whose name comes first then, however the client selected it.
    pub fn qualified<'a>(&'a self, written: &'a RepoName) -> &'a RepoName {
        if self.stored == self.repo {
            written
        } else {
            &self.stored
        }
    }

    /// Whom a download is for.
    pub(super) fn party(&self) -> Party {
        Party {
            repository: self.stored.clone(),
            account: self.upstream.caller(),
        }
    }
}
