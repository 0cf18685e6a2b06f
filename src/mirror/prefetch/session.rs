//! Who pulls an image whose layers are fetched ahead: prefetching ends when they have left.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::oci::{Digest, RepoName};

/// How long prefetching continues after the last client has left: clients pause between two layers.
const GRACE: Duration = Duration::from_secs(5);

/// The images that are being fetched ahead, by manifest. No more than prefetch tasks.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    active: Mutex<HashMap<Digest, Arc<Audience>>>,
    /// How many those are: nearly always none, and then the lock is left alone.
    count: AtomicUsize,
}

/// The clients that are being sent a layer of one image.
#[derive(Debug)]
struct Audience {
    repository: RepoName,
    clients: watch::Sender<usize>,
}

/// One image that is being fetched ahead, until dropped.
#[derive(Debug)]
pub(super) struct Session {
    sessions: Arc<Sessions>,
    pub(super) manifest: Digest,
    audience: Arc<Audience>,
}

/// A client that is being sent a layer of an image, until dropped.
#[derive(Debug)]
pub struct Visit(Arc<Audience>);

impl Sessions {
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Counts a client of an image, if the image is being fetched ahead.
    pub(super) fn visit(&self, repository: &RepoName, manifest: &Digest) -> Option<Visit> {
        let active = self.active.lock();
        let audience = active.get(manifest)?;
        (audience.repository == *repository).then(|| Visit::new(audience))
    }

    /// Begins to fetch an image ahead for its first client. None when this is being done already.
    pub(super) fn start(
        sessions: &Arc<Self>,
        repository: &RepoName,
        manifest: Digest,
    ) -> Option<(Session, Visit)> {
        let mut active = sessions.active.lock();
        if active.contains_key(&manifest) {
            return None;
        }
        let audience = Arc::new(Audience {
            repository: repository.clone(),
            clients: watch::Sender::new(0),
        });
        active.insert(manifest, Arc::clone(&audience));
        sessions.count.store(active.len(), Ordering::Relaxed);
        let visit = Visit::new(&audience);
        let session = Session {
            sessions: Arc::clone(sessions),
            manifest,
            audience,
        };
        Some((session, visit))
    }
}

impl Session {
    /// Waits until all clients have left, and none has come back for a while. Cancel safe.
    pub(super) async fn deserted(&self) {
        let mut clients = self.audience.clients.subscribe();
        loop {
            // The sender lives as long as this session.
            drop(clients.wait_for(|clients| *clients == 0).await);
            let come_back = clients.wait_for(|clients| *clients > 0);
            if tokio::time::timeout(GRACE, come_back).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut active = self.sessions.active.lock();
        active.remove(&self.manifest);
        self.sessions.count.store(active.len(), Ordering::Relaxed);
    }
}

impl Visit {
    fn new(audience: &Arc<Audience>) -> Self {
        audience.clients.send_modify(|clients| *clients += 1);
        Self(Arc::clone(audience))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let leave = |clients: &mut usize| *clients = clients.saturating_sub(1);
        self.0.clients.send_modify(leave);
    }
}
