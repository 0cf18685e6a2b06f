//! The uploads that are open, of this process and of the one before it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::content::{Account, Content};
use super::session::Session;
use super::{Hosted, HostedError, SpaceSettings};
use crate::error_chain::on_one_line;
use crate::oci::{Algorithm, RepoName, UploadId};

/// All open uploads that are known.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<UploadId, Arc<Session>>>);

impl Sessions {
    fn get(&self, repo: &RepoName, id: &UploadId) -> Option<Arc<Session>> {
        let sessions = self.0.lock();
        let session = sessions.get(id)?;
        (session.repo == *repo).then(|| Arc::clone(session))
    }

    /// Adds an upload, unless its space has `max` already.
    fn add(&self, session: &Arc<Session>, max: usize) -> bool {
        let mut sessions = self.0.lock();
        let others = sessions.values().filter(|one| one.space == session.space);
        if others.count() >= max {
            return false;
        }
        sessions.insert(session.id, Arc::clone(session));
        true
    }

    /// Adds an upload of an earlier process; one that is known already stays.
    fn adopt(&self, session: Arc<Session>) -> Arc<Session> {
        let mut sessions = self.0.lock();
        Arc::clone(sessions.entry(session.id).or_insert(session))
    }

    pub(super) fn remove(&self, id: &UploadId) {
        self.0.lock().remove(id);
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.0.lock().values().cloned().collect()
    }
}

impl Hosted {
    /// Starts an upload in a space.
    pub(super) async fn open_session(
        &self,
        repo: &RepoName,
        (space, settings): (usize, &SpaceSettings),
        algorithm: Algorithm,
    ) -> Result<Arc<Session>, HostedError> {
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).map_err(|_unspecified| HostedError::Lost)?;
        let id = UploadId::from_random(random);
        let charge = self.charge(space, 0)?;
        let content = (Content::new(algorithm), charge);
        let now = self.0.clock.wall();
        let session = Session::new((repo.clone(), id, space), content, (0, now));
        let max = settings.uploads_max;
        if !self.0.sessions.add(&session, max) {
            let space = settings.name.clone();
            return Err(HostedError::TooManyUploads { space, max });
        }
        let started = self.0.cache.start_upload(repo, &id).await;
        if started.is_err() {
            self.0.sessions.remove(&id);
        }
        started?;
        Ok(session)
    }

    /// Finds an upload of a repository, also one that an earlier process has left.
    pub(super) async fn session(
        &self,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<Arc<Session>, HostedError> {
        if let Some(session) = self.0.sessions.get(repo, id) {
            session.note_use(self.0.clock.wall());
            return Ok(session);
        }
        let now = self.0.clock.wall();
        let adopted = self.adopt(repo, id, now).await?;
        adopted.ok_or(HostedError::UnknownUpload)
    }

    async fn adopt(
        &self,
        repo: &RepoName,
        id: &UploadId,
        used: std::time::SystemTime,
    ) -> Result<Option<Arc<Session>>, HostedError> {
        let (space, _) = self.space(repo)?;
        let Some(file) = self.0.cache.open_upload(repo, id).await? else {
            return Ok(None);
        };
        let received = file.size();
        let charge = self.0.cache.charge_existing(space, received);
        let content = (Content::new(Algorithm::Sha256), charge);
        let session = Session::new((repo.clone(), *id, space), content, (received, used));
        Ok(Some(self.0.sessions.adopt(session)))
    }

    /// Counts the uploads that an earlier process has left.
    pub(super) async fn adopt_all(&self) {
        let uploads = match self.0.cache.uploads().await {
            Ok(uploads) => uploads,
            Err(error) => {
                tracing::warn!(error = %on_one_line(&error), "can't look for unfinished uploads");
                return;
            }
        };
        for (repo, id, written) in uploads {
            if !self.is_hosted(&repo) || self.0.sessions.get(&repo, &id).is_some() {
                continue;
            }
            // A clock that was wrong mustn't keep it for ever.
            let written = written.min(self.0.clock.wall());
            if let Err(error) = self.adopt(&repo, &id, written).await {
                tracing::warn!(%repo, %id, error = %on_one_line(&error), "an unfinished upload can't be opened");
            }
        }
    }

    /// Removes the uploads that were not used for too long.
    pub(super) async fn expire_sessions(&self) {
        let now = self.0.clock.wall();
        for session in self.0.sessions.all() {
            let ttl = self
                .0
                .latest
                .lock()
                .get(session.space)
                .map(|space| space.uploads_ttl);
            let expired = ttl.and_then(|ttl| now.checked_sub(ttl));
            if expired.is_some_and(|then| session.is_unused_since(then)) {
                tracing::info!(repo = %session.repo, id = %session.id, "removed an upload that wasn't continued");
                drop(self.remove_session(&session).await);
            }
        }
    }

    /// Ends an upload, whoever writes to it, and removes what it has received.
    pub(super) async fn remove_session(&self, session: &Arc<Session>) -> Result<(), HostedError> {
        let turn = session.last_turn().await?;
        let removed = self.0.cache.cancel_upload(&session.repo, &session.id).await;
        session.end();
        self.0.sessions.remove(&session.id);
        *session.account.lock() = Account::default();
        drop(turn);
        removed?;
        Ok(())
    }
}
