//! What the bucket has of hosted repositories and this server doesn't know: another replica was their writer,
//! the disk is a new one, or a reference registry has filled the bucket.
//!
//! ```text
//! writer? ─► read the bucket's links and tags ─► adopt manifests and tags ─► note the writer ─► rules
//!               fails: again, after a pause                                                  └► again each day
//! ```
//!
//! A writer removes what its rules tell, and accepts manifests of parts that it has. For both it has to know
//! all manifests: until it does, its rules remove nothing. Layers stay in the bucket until they are asked for.
//!
//! The bucket notes which server was the last to write, by a random name that is kept on that server's disk, too, and
//! is a new one each time: a disk that was restored from a backup has an old one. Where it was another server, and
//! what is here may be copies, the bucket is right: what it lacks is forgotten here, and manifests, deletions and
//! lists wait until that is done. Else this server is right.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::adoption::{AdoptionError, Before};
use super::sharing::Sharing;
use super::{Hosted, HostedError};
use crate::bucket::random_replica;
use crate::cache::HostedRole;
use crate::error_chain::on_one_line;
use crate::kept_file;
use crate::oci::{Digest, Pattern, RepoName};

/// How often the bucket is read by a server that stays the writer.
const AGAIN: Duration = Duration::from_hours(24);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How long reading may take.
const PATIENCE: Duration = Duration::from_hours(4);
/// How long a request waits for it.
const REQUEST_WAITS: Duration = Duration::from_secs(30);
/// How long deletions of copies are waited for.
const COPIES_GO: Duration = Duration::from_secs(30);
/// How long an unneeded layer stays in the bucket at least: a client may have found it, and be about to push its
/// manifest.
const LAYERS_STAY: Duration = Duration::from_hours(24);
/// Bytes of the file with this server's name, at most.
const MAX_NAME_FILE: u64 = 4096;

/// Whether the index has all that hosted repositories have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knowledge {
    Complete,
    Reading,
    /// The last attempt to read the bucket has failed.
    Failed,
}

/// What the file with this server's name has.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Own {
    /// The last one. Empty before this server has noted any.
    name: String,
    /// Whether hosted content that is here may be a copy of what the bucket had. Otherwise, nobody else has it.
    has_copies: bool,
}

impl Hosted {
    // --- For requests --------------------------------------------------------------------------

    /// Waits until all that there is is known, by which deletions go, and pushes of manifests where
    /// another replica may have been the writer.
    pub(super) async fn known(&self) -> Result<(), HostedError> {
        match self.knowledge().await {
            Knowledge::Complete => Ok(()),
            Knowledge::Reading | Knowledge::Failed => Err(HostedError::Unknown),
        }
    }

    /// The same for lists, which have what is known where the bucket can't be read.
    pub(super) async fn listed_as_known(&self) -> Result<(), HostedError> {
        match self.knowledge().await {
            Knowledge::Complete | Knowledge::Failed => Ok(()),
            Knowledge::Reading => Err(HostedError::Unknown),
        }
    }

    /// Whether the index has all that the bucket has.
    pub(super) fn knows_all(&self) -> bool {
        *self.0.knowledge.borrow() == Knowledge::Complete
    }

    /// Whether there may be more now than a moment ago, because what the bucket has has become known meanwhile.
    pub async fn has_learnt(&self) -> bool {
        let is_reading = *self.0.knowledge.borrow() == Knowledge::Reading;
        is_reading && self.knowledge().await == Knowledge::Complete
    }

    async fn knowledge(&self) -> Knowledge {
        let mut knowledge = self.0.knowledge.subscribe();
        let known = knowledge.wait_for(|known| *known != Knowledge::Reading);
        match timeout(REQUEST_WAITS, known).await {
            Ok(Ok(known)) => *known,
            Ok(Err(_)) | Err(_) => Knowledge::Reading,
        }
    }

    // --- The task ------------------------------------------------------------------------------

    /// Learns what the bucket has when this server becomes the writer, and each day. Doesn't end.
    pub(super) async fn follow_bucket(&self, sharing: &Sharing) {
        let mut is_writer = sharing.is_writer.clone();
        loop {
            let writes = *is_writer.borrow_and_update();
            self.0.knowledge.send_replace(Knowledge::Reading);
            let work = async {
                if writes {
                    self.0.cache.set_hosted_role(HostedRole::Learns).await;
                    self.learn_daily(sharing).await;
                } else {
                    self.keep_copies(sharing).await;
                }
            };
            tokio::select! {
                () = work => {}
                () = changed(&mut is_writer) => {}
            }
        }
    }

    /// What is here becomes copies, once that is noted on disk. Doesn't end.
    async fn keep_copies(&self, sharing: &Sharing) {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.note_copies(sharing).await {
            tracing::error!(error = %on_one_line(&error), again_in = ?pause, "hosted content isn't treated as copies of the writer's before that is noted");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.0.cache.set_hosted_role(HostedRole::Copies).await;
        std::future::pending::<()>().await;
    }

    async fn note_copies(&self, sharing: &Sharing) -> Result<(), AdoptionError> {
        let own = self.own(sharing).await?;
        if own.has_copies {
            return Ok(());
        }
        let has_copies = true;
        self.set_own(sharing, Own { has_copies, ..own }).await
    }

    async fn learn_daily(&self, sharing: &Sharing) {
        let mut pause = FIRST_PAUSE;
        loop {
            let learnt = timeout(PATIENCE, self.learn(sharing)).await;
            let Err(error) = learnt.unwrap_or(Err(AdoptionError::Late)) else {
                sleep(AGAIN).await;
                pause = FIRST_PAUSE;
                continue;
            };
            tracing::warn!(error = %on_one_line(&error), again_in = ?pause, "can't read what hosted repositories have in the bucket; rules remove nothing before that has succeeded once");
            let waits = self.0.knowledge.send_if_modified(|known| {
                let waits = *known != Knowledge::Complete;
                if waits {
                    *known = Knowledge::Failed;
                }
                waits
            });
            sleep(pause).await;
            pause = (pause * 2).min(if waits { LONGEST_PAUSE } else { AGAIN });
        }
    }

    async fn learn(&self, sharing: &Sharing) -> Result<(), AdoptionError> {
        let cache = &self.0.cache;
        cache.ready().await.map_err(HostedError::from)?;
        let (bucket, own) = (&sharing.bucket, self.own(sharing).await?);
        let before = match bucket.hosted_writer().await? {
            Some(noted) if noted == own.name => Before::This,
            Some(_) if sharing.is_promised && own.has_copies => Before::Another,
            Some(_) | None => Before::Nobody,
        };
        if before == Before::This {
            self.0.knowledge.send_replace(Knowledge::Complete);
        }
        let patterns = self.patterns();
        let there = bucket.inventory(&patterns).await?;
        let unreadable = self.learn_manifests(bucket, before, &there).await?;
        if before == Before::Another {
            self.forget(&there).await?;
            bucket.forget_shared();
        }
        self.0.knowledge.send_replace(Knowledge::Complete);
        if before == Before::Nobody {
            self.share_all(&there).await?;
        }
        let own = Own {
            name: random_replica(),
            has_copies: true,
        };
        let name = own.name.clone();
        self.set_own(sharing, own).await?;
        bucket.set_hosted_writer(&name).await?;
        if unreadable > 0 {
            return Err(AdoptionError::Unreadable(unreadable));
        }
        // What is removed from now on is removed from the bucket, too.
        let settled = timeout(COPIES_GO, cache.settled()).await;
        settled.map_err(|_elapsed| AdoptionError::Busy)?;
        cache.set_hosted_role(HostedRole::Decides).await;
        let spaces = self.0.latest.lock().clone();
        let age = |repo: &RepoName| {
            let space = spaces.iter().find(|space| space.has(repo));
            let grace = space.map_or(Duration::MAX, |space| space.policy.grace);
            grace.max(LAYERS_STAY)
        };
        let is_needed = |repo: &RepoName, digest: &Digest| cache.needs_layer(repo, digest);
        let removing = bucket.remove_unneeded_layers(&patterns, age, is_needed);
        let removed = removing.await?;
        tracing::info!(repositories = there.len(), unneeded_layers = removed, last_writer = ?before, "read what hosted repositories have in the bucket, and removed the links of unneeded layers");
        Ok(())
    }

    fn patterns(&self) -> Vec<&Pattern> {
        let spaces = self.0.spaces.iter();
        spaces
            .flat_map(|space| &space.policy.repositories)
            .collect()
    }

    /// What this server has kept of itself.
    async fn own(&self, sharing: &Sharing) -> Result<Own, AdoptionError> {
        let Some(path) = sharing.name_file.clone() else {
            return Ok(self.0.own.lock().clone());
        };
        let reading =
            tokio::task::spawn_blocking(move || kept_file::read_or_default(&path, MAX_NAME_FILE));
        let read = reading.await.map_err(|_lost| HostedError::Lost)?;
        read.map_err(AdoptionError::Name)
    }

    async fn set_own(&self, sharing: &Sharing, own: Own) -> Result<(), AdoptionError> {
        let Some(path) = sharing.name_file.clone() else {
            *self.0.own.lock() = own;
            return Ok(());
        };
        let writing = tokio::task::spawn_blocking(move || kept_file::replace(&path, &own));
        let written = writing.await.map_err(|_lost| HostedError::Lost)?;
        written.map_err(AdoptionError::Name)
    }
}

/// Returns when the value has changed.
async fn changed(of: &mut watch::Receiver<bool>) {
    if of.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
