//! Hosted repositories: what clients push, beside what is mirrored.
//!
//! ```text
//! sessions, session   uploads: which there are, and who writes      blobs      read, mount, delete
//! uploads             requests that write or finish an upload       manifests  check, keep, tag, delete
//! feed, content       hash and write bytes as they arrive           leases     held for a manifest
//! sharing             what goes to the bucket                       parts      what a manifest refers to
//! knowledge, adoption what is in the bucket and not known here      lists      tags, referrers
//! settings, error, body
//! ```
//!
//! The bytes of an upload go to a file of the store while they are hashed. A finished upload becomes
//! a blob of the cache that the repository links. A manifest finds its parts in the repository, under the
//! index's lock, and holds them until it refers to them. Its success promises that it and
//! all that it refers to survive a power cut.
//!
//! What must never happen: a success is answered for content that isn't whole; a part of a manifest that
//! was accepted is removed; a repository's content is served to callers of another one; an upstream
//! is asked.

mod adoption;
mod blobs;
mod body;
mod content;
mod error;
mod feed;
mod knowledge;
mod leases;
mod lists;
mod manifests;
mod parts;
mod session;
mod sessions;
mod settings;
mod sharing;
#[cfg(test)]
mod tests;
mod uploads;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Charge, OverQuota, PushError, ReadMode};
use crate::clock::Clock;
use crate::oci::{Digest, RepoName};
use crate::tasks::Tasks;

pub use body::{BodyError, Part, PushBody};
pub use error::HostedError;
use knowledge::{Knowledge, Own};
use leases::Leases;
use sessions::Sessions;
pub use settings::{Incomplete, SpaceSettings, SyncMode};
pub use sharing::Sharing;

/// How often uploads and blobs are looked for whose time is over.
const EXPIRE_EVERY: Duration = Duration::from_mins(1);

/// Which repositories a caller may pull from, by their stored names.
pub type MayPull<'a> = dyn Fn(&RepoName) -> bool + Sync + 'a;

/// What a pushed manifest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    pub digest: Digest,
    pub subject: Option<Digest>,
}

/// All hosted repositories. Clones share them.
#[derive(Debug, Clone)]
pub struct Hosted(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: Cache,
    /// None where there is no bucket.
    sharing: Option<Sharing>,
    /// Whether the index has all that is in the bucket.
    knowledge: Arc<watch::Sender<Knowledge>>,
    /// What is kept of this server where its store doesn't outlive the process.
    own: Arc<Mutex<Own>>,
    clock: Clock,
    tasks: Tasks,
    spaces: Vec<SpaceSettings>,
    sessions: Arc<Sessions>,
    leases: Arc<Leases>,
    /// The settings in effect, for what no request does.
    latest: Arc<Mutex<Vec<SpaceSettings>>>,
}

impl Hosted {
    /// Starts. `cache` was started with the policies of these spaces, in this order. `tasks` owns what
    /// outlives a request; `stop` ends the background work.
    pub fn start(
        (cache, sharing): (Cache, Option<Sharing>),
        clock: Clock,
        spaces: Vec<SpaceSettings>,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Self {
        let knowledge = match sharing {
            None => Knowledge::Complete,
            Some(_) => Knowledge::Reading,
        };
        let hosted = Self(Arc::new(Inner {
            cache,
            knowledge: Arc::new(watch::Sender::new(knowledge)),
            own: Arc::default(),
            sharing,
            clock,
            tasks: tasks.clone(),
            latest: Arc::new(Mutex::new(spaces.clone())),
            spaces,
            sessions: Arc::default(),
            leases: Arc::default(),
        }));
        if hosted.0.spaces.is_empty() {
            return hosted;
        }
        if let Some(sharing) = &hosted.0.sharing {
            let (learner, sharing) = (hosted.clone(), sharing.clone());
            let learn = move || {
                let (learner, sharing) = (learner.clone(), sharing.clone());
                async move { learner.follow_bucket(&sharing).await }
            };
            tasks.spawn_restarted("hosted content of the bucket", stop.clone(), learn);
        }
        let worker = hosted.clone();
        tasks.spawn_restarted("hosted", stop.clone(), move || {
            let worker = worker.clone();
            async move {
                worker.0.cache.settle_store().await;
                worker.adopt_all().await;
                loop {
                    tokio::time::sleep(EXPIRE_EVERY).await;
                    worker.0.leases.expire();
                    worker.expire_sessions().await;
                }
            }
        });
        hosted
    }

    /// The same with other settings of the same spaces: open uploads go on.
    #[must_use]
    pub fn renewed(&self, spaces: Vec<SpaceSettings>) -> Self {
        self.0.latest.lock().clone_from(&spaces);
        let Inner {
            cache,
            sharing,
            knowledge,
            own,
            clock,
            tasks,
            spaces: _,
            sessions,
            leases,
            latest,
        } = &*self.0;
        Self(Arc::new(Inner {
            cache: cache.clone(),
            sharing: sharing.clone(),
            knowledge: Arc::clone(knowledge),
            own: Arc::clone(own),
            clock: *clock,
            tasks: tasks.clone(),
            spaces,
            sessions: Arc::clone(sessions),
            leases: Arc::clone(leases),
            latest: Arc::clone(latest),
        }))
    }

    /// Whether a repository is hosted.
    pub fn is_hosted(&self, repo: &RepoName) -> bool {
        self.0.spaces.iter().any(|space| space.has(repo))
    }

    /// The space of a repository, with its position.
    fn space(&self, repo: &RepoName) -> Result<(usize, &SpaceSettings), HostedError> {
        let mut spaces = self.0.spaces.iter().enumerate();
        let found = spaces.find(|(_, space)| space.has(repo));
        found.ok_or(HostedError::NotHosted)
    }

    /// The space of a repository that clients may push to.
    fn writable(&self, repo: &RepoName) -> Result<(usize, &SpaceSettings), HostedError> {
        let (index, space) = self.space(repo)?;
        if space.readonly {
            return Err(HostedError::ReadOnly(space.name.clone()));
        }
        Ok((index, space))
    }

    /// Whether clients may delete from a repository. Waits for the index to be complete.
    async fn deletable(&self, repo: &RepoName) -> Result<(), HostedError> {
        let (_, space) = self.writable(repo)?;
        if !space.delete {
            return Err(HostedError::DeleteDisabled(space.name.clone()));
        }
        self.0.cache.ready().await?;
        self.known().await
    }

    fn settings(&self, index: usize) -> Result<&SpaceSettings, HostedError> {
        self.0.spaces.get(index).ok_or(HostedError::NotHosted)
    }

    fn charge(&self, index: usize, bytes: u64) -> Result<Charge, HostedError> {
        let charge = self.0.cache.charge(index, bytes);
        charge.map_err(|quota| self.over_quota(index, quota))
    }

    fn over_quota(&self, index: usize, quota: OverQuota) -> HostedError {
        let space = self.0.spaces.get(index);
        HostedError::OverQuota {
            space: space.map(|space| space.name.clone()).unwrap_or_default(),
            quota,
        }
    }

    fn push_failed(&self, index: usize, error: PushError) -> HostedError {
        match error {
            PushError::OverQuota(quota) => self.over_quota(index, quota),
            PushError::Full(full) => full.into(),
            PushError::Store(error) => error.into(),
            PushError::Immutable { tag, digest } => HostedError::Immutable { tag, digest },
        }
    }

    /// Does what must not end in the middle when the client goes away.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, HostedError>> + Send + 'static,
    ) -> Result<T, HostedError> {
        let (send, receive) = oneshot::channel();
        let work = Box::pin(work);
        self.0.tasks.spawn(async move {
            // Nobody waits for the result any more.
            drop(send.send(work.await));
        });
        receive.await.unwrap_or(Err(HostedError::Lost))
    }
}
