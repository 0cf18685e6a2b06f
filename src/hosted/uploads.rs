//! Uploads: bytes are received, and become a blob of the repository.

use std::sync::Arc;

use super::content::Account;
use super::feed::Feed;
use super::session::{Session, Turn};
use super::{Hosted, HostedError, Part, PushBody, SpaceSettings, SyncMode};
use crate::cache::{PushedFile, Reservation, SpaceRequest};
use crate::error_chain::on_one_line;
use crate::oci::{Algorithm, Digest, RepoName, UploadId};

/// Bytes of an upload that are reserved at a time.
const STEP: u64 = 16 * 1024 * 1024;

impl Hosted {
    /// Starts an upload. `algorithm` is that of the digest which will be asked for, if that is known.
    pub async fn start_upload(
        &self,
        repo: &RepoName,
        algorithm: Option<Algorithm>,
    ) -> Result<UploadId, HostedError> {
        let space = self.writable(repo)?;
        let algorithm = algorithm.unwrap_or(Algorithm::Sha256);
        let (hosted, repo, index) = (self.clone(), repo.clone(), space.0);
        let open = async move {
            let settings = hosted.settings(index)?;
            hosted
                .open_session(&repo, (index, settings), algorithm)
                .await
        };
        Ok(self.detached(open).await?.id)
    }

    /// Bytes that an upload has received. Waits for a request that still writes what it received.
    pub async fn upload_status(&self, repo: &RepoName, id: &UploadId) -> Result<u64, HostedError> {
        self.session(repo, id).await?.status().await
    }

    /// Adds a part to an upload, and returns how many bytes it has received in total. What arrived
    /// before an error is kept.
    pub async fn append(
        &self,
        repo: &RepoName,
        id: &UploadId,
        part: Part,
        body: &mut dyn PushBody,
    ) -> Result<u64, HostedError> {
        self.writable(repo)?;
        let session = self.session(repo, id).await?;
        let turn = Arc::new(session.turn(part.start).await?);
        self.receive(&turn, part, body).await?;
        Ok(session.received())
    }

    /// Adds the last part to an upload, and makes it a blob of the repository. A repeated request for an
    /// upload that has become the blob succeeds, too.
    pub async fn finish(
        &self,
        repo: &RepoName,
        id: &UploadId,
        digest: &Digest,
        part: Part,
        body: &mut dyn PushBody,
    ) -> Result<(), HostedError> {
        self.writable(repo)?;
        let turn = match self.session(repo, id).await {
            Ok(session) => session.turn(part.start).await,
            Err(error) => Err(error),
        };
        let turn = match turn {
            Err(HostedError::UnknownUpload) if part.length == Some(0) => {
                return self.has_finished(repo, digest).await;
            }
            turn => Arc::new(turn?),
        };
        turn.session.content.lock().expect(digest.algorithm());
        self.receive(&turn, part, body).await?;
        let (hosted, digest) = (self.clone(), *digest);
        self.detached(async move { hosted.commit(turn, digest).await })
            .await
    }

    /// Whether an upload that has ended has become this blob.
    async fn has_finished(&self, repo: &RepoName, digest: &Digest) -> Result<(), HostedError> {
        let opened = self
            .0
            .cache
            .open_hosted(repo, digest, super::ReadMode::Head);
        match opened.await {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => Err(HostedError::UnknownUpload),
        }
    }

    /// Ends an upload, and removes what it has received.
    pub async fn cancel(&self, repo: &RepoName, id: &UploadId) -> Result<(), HostedError> {
        let session = self.session(repo, id).await?;
        let hosted = self.clone();
        self.detached(async move { hosted.remove_session(&session).await })
            .await
    }

    /// Stores a blob that one request has whole, of this length in bytes if it was announced.
    pub async fn put_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        length: Option<u64>,
        body: &mut dyn PushBody,
    ) -> Result<(), HostedError> {
        let (index, settings) = self.writable(repo)?;
        let part = Part {
            length,
            ..Part::NONE
        };
        check_length(settings, 0, part)?;
        let id = self.start_upload(repo, Some(digest.algorithm())).await?;
        let session = self.session(repo, &id).await?;
        debug_assert_eq!(session.space, index, "an upload of another space");
        // Nobody else knows the upload: it ends with the request.
        let mut abandoned = Abandoned(Some((self.clone(), Arc::clone(&session))));
        let turn = Arc::new(session.turn(None).await?);
        self.receive(&turn, part, body).await?;
        let (hosted, digest) = (self.clone(), *digest);
        let committed = self
            .detached(async move { hosted.commit(turn, digest).await })
            .await;
        if committed.is_ok() {
            abandoned.0 = None;
        }
        committed
    }

    /// Receives the body of a request that has the turn.
    async fn receive(
        &self,
        turn: &Arc<Turn>,
        part: Part,
        body: &mut dyn PushBody,
    ) -> Result<(), HostedError> {
        let session = &turn.session;
        let (space, before) = (session.space, session.received());
        if part.start.is_some_and(|start| start != before) {
            return Err(HostedError::WrongStart { received: before });
        }
        let settings = self.settings(space)?;
        let announced = check_length(settings, before, part)?;
        self.reopen(session).await?;
        if let Some(total) = announced {
            self.count(session, total)?;
        }
        let feed = Feed::new(turn);
        let (received, ended) = self.pump(turn, &feed, (before, announced), body).await;
        // What arrived is kept, however the body ended.
        let flushed = feed.flush().await;
        if let Some(reservation) = &mut session.account.lock().reservation {
            reservation.shrink(session.received());
        }
        ended?;
        flushed?;
        let missing = part.end.or(announced).filter(|end| *end != received);
        if let Some(end) = missing {
            return Err(HostedError::WrongLength {
                announced: end.saturating_sub(before),
                sent: received - before,
            });
        }
        Ok(())
    }

    /// Passes a body on until it ends. Returns how many bytes the upload has with it.
    async fn pump(
        &self,
        turn: &Arc<Turn>,
        feed: &Feed,
        (mut received, announced): (u64, Option<u64>),
        body: &mut dyn PushBody,
    ) -> (u64, Result<(), HostedError>) {
        let session = &turn.session;
        loop {
            let next = tokio::select! {
                biased;
                () = turn.cut.cancelled() => return (received, Err(HostedError::UploadBusy)),
                next = body.next() => next,
            };
            let chunk = match next {
                Ok(None) => return (received, Ok(())),
                Ok(Some(chunk)) if chunk.is_empty() => continue,
                Ok(Some(chunk)) => chunk,
                Err(error) => return (received, Err(HostedError::Body(error))),
            };
            session.note_arrival(self.0.clock.wall());
            let total = received + chunk.len() as u64;
            let added = match self.make_room(session, total, announced).await {
                Ok(()) => feed.push(chunk).await,
                Err(error) => Err(error),
            };
            if added.is_err() {
                return (received, added);
            }
            received = total;
        }
    }

    /// Opens the file of an upload for the request that has the turn.
    async fn reopen(&self, session: &Session) -> Result<(), HostedError> {
        let opened = self.0.cache.open_upload(&session.repo, &session.id).await?;
        let Some(file) = opened else {
            // An attempt to finish it has failed after it became a blob.
            session.end();
            self.0.sessions.remove(&session.id);
            return Err(HostedError::UnknownUpload);
        };
        session.content.lock().file = Some(file);
        let mut account = session.account.lock();
        if account.charge.is_none() {
            // An attempt to finish it has failed.
            let received = session.received();
            account.charge = Some(self.0.cache.charge_existing(session.space, received));
        }
        Ok(())
    }

    /// Counts the bytes of an upload towards the quota.
    fn count(&self, session: &Session, total: u64) -> Result<(), HostedError> {
        let mut account = session.account.lock();
        let grown = account.charge.as_mut().map(|charge| charge.grow(total));
        let grown = grown.unwrap_or(Ok(()));
        grown.map_err(|quota| self.over_quota(session.space, quota))
    }

    /// Makes room for bytes that have arrived, in the quota and on the disk.
    async fn make_room(
        &self,
        session: &Session,
        total: u64,
        announced: Option<u64>,
    ) -> Result<(), HostedError> {
        let max = self.settings(session.space)?.maxblob;
        if total > max {
            return Err(HostedError::TooLarge { bytes: total, max });
        }
        self.count(session, total)?;
        let reserved = {
            let account = session.account.lock();
            account.reservation.as_ref().map_or(0, Reservation::bytes)
        };
        if total <= reserved {
            return Ok(());
        }
        let (needed, whole) = (total - reserved, announced.unwrap_or(total).max(total));
        let ahead = STEP.min(announced.map_or(STEP, |_| whole - reserved));
        let request = |bytes| SpaceRequest {
            bytes,
            blob: whole,
            evict: true,
        };
        let mut step = self.0.cache.reserve_step(request(ahead.max(needed))).await;
        if step.is_err() && ahead > needed {
            step = self.0.cache.reserve_step(request(needed)).await;
        }
        let step = step?;
        let mut account = session.account.lock();
        match &mut account.reservation {
            Some(reservation) => reservation.merge(step),
            None => account.reservation = Some(step),
        }
        if let Some(reservation) = &mut account.reservation {
            reservation.fill(total);
        }
        Ok(())
    }

    /// Makes an upload that is complete a blob of its repository.
    async fn commit(&self, turn: Arc<Turn>, digest: Digest) -> Result<(), HostedError> {
        let session = Arc::clone(&turn.session);
        let actual = self.digest(&session, digest.algorithm()).await?;
        if actual != digest {
            self.discard(&session).await;
            return Err(HostedError::WrongDigest {
                expected: Box::new(digest),
                actual: Box::new(actual),
            });
        }
        let pushed = {
            let file = session.content.lock().file.take();
            let mut account = session.account.lock();
            PushedFile {
                digest,
                file: file.ok_or(HostedError::Lost)?,
                charge: account.charge.take().ok_or(HostedError::Lost)?,
                reservation: account.reservation.take(),
                sync: self.settings(session.space)?.sync == SyncMode::Blob,
            }
        };
        self.0.cache.commit_upload(&session.repo, pushed).await?;
        self.share_later(&session.repo, &digest);
        session.end();
        self.0.sessions.remove(&session.id);
        Ok(())
    }

    /// The digest of an upload that is complete.
    async fn digest(
        &self,
        session: &Arc<Session>,
        algorithm: Algorithm,
    ) -> Result<Digest, HostedError> {
        if let Some(digest) = session.content.lock().hashed(algorithm) {
            return Ok(digest);
        }
        let session = Arc::clone(session);
        let read = move || session.content.lock().digest(algorithm);
        let digest = tokio::task::spawn_blocking(read).await;
        let digest = digest.map_err(|_panicked| HostedError::Lost)?;
        digest.ok_or(HostedError::Lost)
    }

    /// Removes the upload of the request that has the turn.
    async fn discard(&self, session: &Session) {
        let removed = self.0.cache.cancel_upload(&session.repo, &session.id).await;
        if let Err(error) = removed {
            tracing::warn!(id = %session.id, error = %on_one_line(&error), "an upload can't be removed");
        }
        session.end();
        self.0.sessions.remove(&session.id);
        *session.account.lock() = Account::default();
    }
}

/// The bytes that an upload will have, where they are announced. The error is one of the length.
fn check_length(
    settings: &SpaceSettings,
    before: u64,
    part: Part,
) -> Result<Option<u64>, HostedError> {
    let announced = part.length.map(|length| before.saturating_add(length));
    let total = announced.into_iter().chain(part.end).max();
    let max = settings.maxblob;
    match total.filter(|total| *total > max) {
        Some(bytes) => Err(HostedError::TooLarge { bytes, max }),
        None => Ok(announced),
    }
}

/// An upload that ends with its request. Dropping this removes it.
struct Abandoned(Option<(Hosted, Arc<Session>)>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some((hosted, session)) = self.0.take() {
            let tasks = hosted.0.tasks.clone();
            tasks.spawn(async move {
                drop(hosted.remove_session(&session).await);
            });
        }
    }
}
