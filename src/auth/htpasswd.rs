//! Passwords in a file of bcrypt hashes, one `user:hash` a line, as `htpasswd -B` writes it.
//!
//! A hash is slow on purpose: verifying one takes a thread of the blocking pool, two at a time, and
//! a right password is remembered for a minute. The work goes on when the request is gone: so the
//! work itself holds its place in the queue, and counts a wrong password. The file is read again when it has changed, which is
//! checked once a second while passwords come.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use bcrypt::HashParts;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::authorization::Basic;
use super::error::{AuthError, AuthSetupError};
use super::files;
use super::throttle::Attempt;
use crate::error_chain::on_one_line;
use crate::renewal::Stamp;

/// Passwords that are verified at the same time, and that may wait besides.
const MAX_RUNNING: usize = 2;
const MAX_WAITING: usize = 64;
/// Of these, passwords from one network: one host must not keep all others out.
const MAX_OF_NETWORK: usize = 4;
/// How long a right password is remembered, and how many are.
const REMEMBERED: Duration = Duration::from_mins(1);
const MAX_REMEMBERED: usize = 4096;
/// How often the file is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A hash of a higher cost takes a thread for more than ten seconds.
const MAX_COST: u32 = 16;
const DEFAULT_COST: u32 = 10;
/// Lines that one report names.
const MAX_REPORTED: usize = 10;

/// What a password is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// No user has the name.
    Unknown,
}

/// The users of a file.
#[derive(Debug)]
pub(super) struct Htpasswd {
    path: PathBuf,
    state: Mutex<State>,
    queue: Arc<Semaphore>,
    running: Arc<Semaphore>,
    networks: Arc<Networks>,
    /// Until when a pair of user and password, by its keyed hash, counts as right.
    remembered: Cache<[u8; 32], Instant>,
    key: hmac::Key,
}

/// How many passwords of each network are verified or wait. It has no more networks than the queue has
/// places, and those of requests that are just being refused.
#[derive(Debug, Default)]
struct Networks(Mutex<HashMap<Option<IpAddr>, usize>>);

/// A place of a network's, until it is dropped.
struct NetworkPlace {
    networks: Arc<Networks>,
    network: Option<IpAddr>,
}

/// What the work of verifying a password holds.
type Place = (NetworkPlace, OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Networks {
    fn enter(self: &Arc<Self>, network: Option<IpAddr>) -> Result<NetworkPlace, AuthError> {
        let mut counts = self.0.lock();
        let count = counts.entry(network).or_default();
        if *count >= MAX_OF_NETWORK {
            return Err(AuthError::Busy);
        }
        *count += 1;
        drop(counts);
        let networks = Arc::clone(self);
        Ok(NetworkPlace { networks, network })
    }
}

impl Drop for NetworkPlace {
    fn drop(&mut self) {
        let mut counts = self.networks.0.lock();
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

#[derive(Debug)]
struct State {
    users: Arc<Users>,
    stamp: Option<Stamp>,
    checked: Instant,
    /// Counts the changes of the file.
    generation: u64,
}

#[derive(Debug, Default)]
struct Users {
    hashes: HashMap<String, String>,
    /// The most frequent cost, at which an unknown user's password is hashed, too.
    cost: u32,
    /// The numbers of the lines that never match.
    unusable: Vec<usize>,
}

impl Users {
    fn parse(text: &str) -> Self {
        let mut users = Self::default();
        let mut costs: HashMap<u32, usize> = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let pair = line.split_once(':').filter(|(user, _)| !user.is_empty());
            let cost = pair.and_then(|(_, hash)| cost(hash));
            let (Some((user, hash)), Some(cost)) = (pair, cost) else {
                users.unusable.push(index + 1);
                continue;
            };
            users.hashes.insert(user.to_owned(), hash.to_owned());
            *costs.entry(cost).or_default() += 1;
        }
        let usual = costs.into_iter().max_by_key(|(_, count)| *count);
        users.cost = usual.map_or(DEFAULT_COST, |(cost, _)| cost);
        users
    }

    /// The hash of a user's password; for an unknown user one that takes as long.
    fn hash(&self, user: &str) -> (String, bool) {
        match self.hashes.get(user) {
            Some(hash) => (hash.clone(), true),
            None => (self.unknown(), false),
        }
    }

    fn unknown(&self) -> String {
        format!("$2b${:02}${}", self.cost, ".".repeat(53))
    }

    fn report(&self, path: &Path) {
        if self.unusable.is_empty() {
            return;
        }
        let lines: Vec<_> = self.unusable.iter().take(MAX_REPORTED).collect();
        tracing::warn!(
            path = %path.display(),
            count = self.unusable.len(),
            ?lines,
            "lines of the htpasswd file never match: they have no bcrypt hash (htpasswd -B) of a \
             cost of at most 16"
        );
    }
}

/// The cost of a bcrypt hash; None for other hashes, and for one that takes too long.
fn cost(hash: &str) -> Option<u32> {
    let is_bcrypt = ["$2a$", "$2b$", "$2y$", "$2x$"]
        .iter()
        .any(|kind| hash.starts_with(kind));
    let parts = HashParts::from_str(hash)
        .ok()
        .filter(|_| is_bcrypt && hash.len() == 60)?;
    Some(parts.get_cost()).filter(|cost| *cost <= MAX_COST)
}

fn load(path: &Path) -> std::io::Result<(Users, Stamp)> {
    // First, so that a change in between is noticed the next time.
    let stamp = Stamp::of(path)?;
    let text = files::read(path)?;
    Ok((Users::parse(&String::from_utf8_lossy(&text)), stamp))
}

impl Htpasswd {
    /// Reads the file. Blocks.
    pub(super) fn open(path: &Path) -> Result<Self, AuthSetupError> {
        let failed = |source| AuthSetupError::Read {
            path: path.to_owned(),
            source,
        };
        let (users, stamp) = load(path).map_err(failed)?;
        users.report(path);
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_none| AuthSetupError::Random)?;
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(State {
                users: Arc::new(users),
                stamp: Some(stamp),
                checked: Instant::now(),
                generation: 0,
            }),
            queue: Arc::new(Semaphore::new(MAX_RUNNING + MAX_WAITING)),
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
            networks: Arc::default(),
            remembered: Cache::new(MAX_REMEMBERED),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        })
    }

    /// Verifies a password, and counts the attempt.
    pub(super) async fn verify(
        &self,
        basic: &Basic,
        attempt: &Attempt,
    ) -> Result<Verdict, AuthError> {
        attempt.check()?;
        self.refresh().await;
        let (users, pair) = self.pair(basic);
        if self.is_remembered(&pair) {
            attempt.right();
            return Ok(Verdict::Right);
        }
        let place = self.place(attempt).await?;
        // Others of the same user may have failed meanwhile.
        attempt.check()?;
        // Another request may have brought the same password meanwhile.
        if self.is_remembered(&pair) {
            attempt.right();
            return Ok(Verdict::Right);
        }
        let (hash, is_known) = users.hash(&basic.user);
        let (password, attempt) = (basic.password().to_owned(), attempt.clone());
        let verified = spawn_blocking(move || {
            // Given back when the work is done, also if nobody waits for it any more.
            let _held = place;
            let is_right = bcrypt::verify(password, &hash).unwrap_or(false);
            match (is_known, is_right) {
                (false, _) => attempt.unknown(),
                (true, false) => attempt.wrong(),
                (true, true) => attempt.right(),
            }
            is_right
        });
        let is_right = verified.await.map_err(|_panicked| AuthError::Busy)?;
        if !is_known {
            return Ok(Verdict::Unknown);
        }
        if !is_right {
            return Ok(Verdict::Wrong);
        }
        self.remembered.insert(pair, Instant::now() + REMEMBERED);
        Ok(Verdict::Right)
    }

    /// Takes as long as the verification of an unknown user's password.
    pub(super) async fn spend(&self, basic: &Basic, attempt: &Attempt) -> Result<(), AuthError> {
        let place = self.place(attempt).await?;
        let hash = self.state.lock().users.unknown();
        let password = basic.password().to_owned();
        let spent = spawn_blocking(move || {
            let _held = place;
            bcrypt::verify(password, &hash).is_ok()
        });
        spent.await.map_or(Err(AuthError::Busy), |_any| Ok(()))
    }

    /// Waits for a turn; fails where too many wait.
    async fn place(&self, attempt: &Attempt) -> Result<Place, AuthError> {
        let network = self.networks.enter(attempt.network())?;
        let queue = Arc::clone(&self.queue).try_acquire_owned();
        let queue = queue.map_err(|_full| AuthError::Busy)?;
        let running = Arc::clone(&self.running).acquire_owned().await;
        let running = running.map_err(|_closed| AuthError::Busy)?;
        Ok((network, queue, running))
    }

    /// The users, and what stands for a user with a password until the file changes.
    fn pair(&self, basic: &Basic) -> (Arc<Users>, [u8; 32]) {
        let (users, generation) = {
            let state = self.state.lock();
            (Arc::clone(&state.users), state.generation)
        };
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&generation.to_be_bytes());
        context.update(&(basic.user.len() as u64).to_be_bytes());
        context.update(basic.user.as_bytes());
        context.update(basic.password().as_bytes());
        let mut pair = [0; 32];
        pair.copy_from_slice(context.sign().as_ref());
        (users, pair)
    }

    fn is_remembered(&self, pair: &[u8; 32]) -> bool {
        let until = self.remembered.get(pair);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Reads the file again if it has changed.
    async fn refresh(&self) {
        let known = {
            let mut state = self.state.lock();
            if state.checked.elapsed() < CHECK_INTERVAL {
                return;
            }
            state.checked = Instant::now();
            state.stamp
        };
        let path = self.path.clone();
        let read = spawn_blocking(move || match Stamp::of(&path) {
            Ok(stamp) if Some(stamp) == known => Ok(None),
            Ok(_) => load(&path).map(Some),
            Err(error) => Err(error),
        });
        match read.await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some((users, stamp)))) => {
                users.report(&self.path);
                tracing::info!(path = %self.path.display(), users = users.hashes.len(), "read the changed htpasswd file");
                let mut state = self.state.lock();
                state.users = Arc::new(users);
                state.stamp = Some(stamp);
                state.generation += 1;
                drop(state);
                self.remembered.clear();
            }
            Ok(Err(error)) => {
                tracing::warn!(path = %self.path.display(), error = %on_one_line(&error), "the htpasswd file can't be read; its users stay as they were");
            }
            Err(error) => {
                tracing::error!(error = %on_one_line(&error), "the htpasswd file was not read");
            }
        }
    }
}

#[cfg(test)]
impl Htpasswd {
    /// Takes all places of the queue.
    pub(super) async fn hold_all(&self) -> tokio::sync::SemaphorePermit<'_> {
        let all = u32::try_from(MAX_RUNNING + MAX_WAITING).unwrap();
        self.queue.acquire_many(all).await.unwrap()
    }
}

#[cfg(test)]
mod tests;
