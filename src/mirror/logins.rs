//! Logins to the mirror's own name with accounts that only an upstream knows (`proxy.authorize: caller`).
//!
//! `docker login` names no repository, so the upstream is asked whether it knows the account, once for
//! all clients that ask at the same time. Its answer is remembered as that about a repository is. A
//! question goes on to its end when its client has gone, so that its answer is always counted.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::Mirror;
use super::single_flight::SingleFlight;
use super::verdicts::REFUSED_FOR;
use crate::auth::{AuthError, Counted, UpstreamLogins};
use crate::upstream::{CallerId, Login, Upstream};

/// Answers that are remembered; the least used go first.
const MAX_REMEMBERED: usize = 10_000;
/// Questions in flight.
const MAX_ASKING: usize = 16;

/// An upstream, and the account at it.
type Key = (Arc<str>, CallerId);
/// Until when the answer is valid, and whether the upstream knows the account.
type Known = Cache<Key, (Instant, bool)>;

/// Asks the upstreams of a mirror.
#[derive(Debug)]
pub struct LoginChecks {
    mirror: Arc<Mirror>,
    known: Arc<Known>,
    questions: SingleFlight<Key, Result<bool, AuthError>>,
    asking: Arc<Semaphore>,
}

impl LoginChecks {
    pub fn new(mirror: Arc<Mirror>, tasks: TaskTracker) -> Self {
        Self {
            mirror,
            known: Arc::new(Cache::new(MAX_REMEMBERED)),
            questions: SingleFlight::new(tasks),
            asking: Arc::new(Semaphore::new(MAX_ASKING)),
        }
    }

    async fn ask(
        &self,
        upstream: &Arc<Upstream>,
        login: Login,
        counted: Counted,
    ) -> Result<bool, AuthError> {
        let login = Arc::new(login);
        let Some(account) = upstream.caller_of(Some(&login)) else {
            return Ok(false);
        };
        let key = (Arc::from(upstream.name()), account);
        if let Some((until, is_known)) = self.known.get(&key)
            && Instant::now() < until
        {
            return Ok(is_known);
        }
        let (known, remembered) = (Arc::clone(&self.known), key.clone());
        let upstream = Arc::clone(upstream);
        let question = self.questions.join(key, |_whoever_waits| {
            // Whoever joins a question needs no permit.
            let permit = Arc::clone(&self.asking).try_acquire_owned();
            async move {
                let _asking = permit.map_err(|_all_taken| AuthError::Busy)?;
                let is_known = upstream.accepts(&login).await.map_err(|error| {
                    upstream.report(&error, "the client was told of the failure");
                    AuthError::Upstream
                })?;
                counted(is_known);
                let valid = if is_known {
                    upstream.config.caller.ttl
                } else {
                    REFUSED_FOR
                };
                known.insert(remembered, (Instant::now() + valid, is_known));
                Ok(is_known)
            }
        });
        question.await.map_err(|_lost| AuthError::Upstream)?
    }
}

impl UpstreamLogins for LoginChecks {
    fn check(
        &self,
        upstream: Option<&str>,
        login: Login,
        counted: Counted,
    ) -> BoxFuture<'_, Result<Option<Arc<str>>, AuthError>> {
        let upstream = self.mirror.upstreams.addressed(upstream, None);
        async move {
            let is_known = self.ask(&upstream, login, counted).await?;
            Ok(is_known.then(|| upstream.name().into()))
        }
        .boxed()
    }
}
