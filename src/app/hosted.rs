//! Wires hosted repositories.

use std::sync::Arc;

use tokio::sync::watch;

use super::Shared;
use crate::cache::HostedPolicy;
use crate::config::{Config, HostedSpace, Http, PushSync, Storage, authority};
use crate::hosted::{Hosted, Incomplete, Sharing, SpaceSettings, SyncMode};
use crate::server::HostedRepositories;
use crate::storage::Layout;
use crate::upstream::Peers;

/// What is kept of the repositories of each space.
pub(super) fn policies(config: &Config) -> Vec<HostedPolicy> {
    config.hosted.iter().map(policy).collect()
}

fn policy(space: &HostedSpace) -> HostedPolicy {
    HostedPolicy {
        repositories: space.repositories.clone(),
        quota: space.quota,
        grace: space.grace,
        untagged: space.untagged,
        ttl: space.ttl,
        keep_newest: space.keep_newest,
        keep_tags: space.keep_tags.clone(),
        evictable: space.evictable,
    }
}

fn settings(config: &Config) -> Vec<SpaceSettings> {
    let spaces = config.hosted.iter();
    spaces
        .map(|space| SpaceSettings {
            name: space.name.clone(),
            policy: policy(space),
            reuse: space.reuse,
            delete: space.delete,
            readonly: space.readonly,
            incomplete: if space.incomplete {
                Incomplete::Allow
            } else {
                Incomplete::Refuse
            },
            immutable: space.immutable.clone(),
            mutable: space.mutable.clone(),
            maxblob: space.max_blob,
            uploads_ttl: space.uploads_ttl,
            uploads_max: space.uploads_max,
            sync: match space.sync {
                PushSync::Manifest => SyncMode::Manifest,
                PushSync::Blob => SyncMode::Blob,
            },
        })
        .collect()
}

impl Shared {
    /// The bucket of hosted repositories, if there is one.
    fn sharing(&self, config: &Config) -> Option<Sharing> {
        let bucket = self.bucket.as_ref()?;
        let peers = self.replication.as_ref();
        let is_writer = peers.and_then(|replication| replication.peers.follow_writer());
        let name_file = match &config.storage {
            Storage::Filesystem { root, .. } => Some(Layout::new(root).hosted_writer()),
            Storage::Memory => None,
        };
        Some(Sharing {
            bucket: Arc::clone(bucket),
            is_promised: config.replicas.is_some(),
            is_writer: is_writer.unwrap_or_else(|| watch::Sender::new(true).subscribe()),
            name_file,
        })
    }

    /// Starts the hosted repositories, where there are some.
    pub(super) fn hosted(&self, config: &Config) -> Option<Hosted> {
        let spaces = settings(config);
        (!spaces.is_empty()).then(|| {
            let sharing = self.sharing(config);
            Hosted::start(
                (self.cache.clone(), sharing),
                self.clock,
                spaces,
                &self.background.tracked_by(&self.tasks),
                &self.stop_accepting,
            )
        })
    }
}

/// The same with the settings of a changed configuration.
pub(super) fn renewed(hosted: Option<&Hosted>, config: &Config) -> Option<Hosted> {
    hosted.map(|hosted| hosted.renewed(settings(config)))
}

/// The hosted repositories, as the server presents them.
pub(super) fn repositories(
    hosted: Hosted,
    config: &Config,
    replicas: Option<&Arc<Peers>>,
) -> HostedRepositories {
    let spaces = config.hosted.iter();
    let patterns = spaces.flat_map(|space| space.repositories.iter());
    let patterns: Vec<_> = patterns.map(ToString::to_string).collect();
    HostedRepositories {
        hosted,
        patterns: patterns.join(", ").into(),
        own_names: own_names(&config.http),
        only: config.proxy.hosted_only,
        replicas: replicas.cloned(),
    }
}

/// The names by which clients may mean this server.
fn own_names(http: &Http) -> Vec<String> {
    let host = http.host.as_ref().map(authority);
    host.into_iter().chain(http.aliases.clone()).collect()
}
