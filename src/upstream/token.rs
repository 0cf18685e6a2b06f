//! Bearer tokens: kept until shortly before they expire, and requested once for all callers.
//!
//! Each scope has a slot: a mutex that is held across the token request on purpose. It is the
//! single flight itself, not a guard of shared memory: whoever holds it makes the request, the
//! others wait in line. If the holder's client goes away, its future is dropped, the mutex is free
//! and the next in line makes the request, so nothing has to be cleaned up (a shared future would
//! need a task of its own for that). Who waited while a request failed is given that failure, and
//! doesn't ask again one after the other.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use quick_cache::sync::Cache;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use super::account::AccountId;
use super::error::UpstreamError;

/// Scopes whose tokens are kept.
const MAX_SLOTS: usize = 1024;
/// The same for the account of one caller.
const MAX_CALLER_SLOTS: usize = 64;
/// Largest answer of a token service, in bytes; a token is smaller still.
pub(super) const MAX_ANSWER: u64 = 64 * 1024;
/// What the mirror calls itself where a token is obtained with a refresh token.
const CLIENT_ID: &str = "millpond";
/// Lifetime of a token that doesn't say (distribution, token authentication specification).
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);
const MIN_LIFETIME: Duration = Duration::from_secs(5);
const MAX_LIFETIME: Duration = Duration::from_hours(24);
/// A token is renewed this long before it expires, or a tenth of its lifetime if that is less.
const MARGIN: Duration = Duration::from_secs(30);

/// What is asked of a token service; equal ones share a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenRequest {
    /// Checked: http or https, without user information.
    pub realm: Url,
    pub service: Option<String>,
    /// One or more scopes, separated by blanks.
    pub scope: String,
}

/// What a token is kept under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub request: Arc<TokenRequest>,
    /// The account that it is obtained with; `None` is anonymous. Another secret is another account:
    /// tokens of the one before aren't used any more.
    pub account: Option<AccountId>,
}

impl TokenRequest {
    /// The form to POST for a refresh token (distribution, "Docker Registry v2 authentication using
    /// `OAuth2`").
    pub(super) fn refresh_form(&self, refresh_token: &str) -> String {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token");
        if let Some(service) = &self.service {
            form.append_pair("service", service);
        }
        form.append_pair("client_id", CLIENT_ID);
        form.append_pair("scope", &self.scope);
        form.append_pair("refresh_token", refresh_token);
        form.finish()
    }

    /// The URL to GET.
    pub(super) fn url(&self) -> Url {
        let mut url = self.realm.clone();
        let service = self.service.iter().map(|service| ("service", &**service));
        let scopes = self.scope.split_ascii_whitespace();
        let query = service.chain(scopes.map(|scope| ("scope", scope)));
        url.query_pairs_mut().extend_pairs(query);
        url
    }
}

/// A token, as the `Authorization` header it is sent in.
#[derive(Debug, Clone)]
pub(super) struct Token {
    /// Sensitive, so that its `Debug` prints nothing.
    pub header: HeaderValue,
    asked_at: Instant,
    renew_at: Instant,
}

impl Token {
    /// Reads a token service's answer. The lifetime counts from `asked_at`, before the request was
    /// sent: so it never ends later here than there. `issued_at` is ignored, since it is by the
    /// other side's clock. `None` when there is no token that fits a header.
    pub(super) fn parse(body: &[u8], asked_at: Instant) -> Option<Self> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<serde_json::Value>,
        }
        let answer: Answer = serde_json::from_slice(body).ok()?;
        let text = [answer.token, answer.access_token]
            .into_iter()
            .flatten()
            .find(|text| !text.is_empty())?;
        let mut header = HeaderValue::try_from(format!("Bearer {text}")).ok()?;
        header.set_sensitive(true);
        let lifetime = answer
            .expires_in
            .and_then(|seconds| seconds.as_u64())
            .map_or(DEFAULT_LIFETIME, Duration::from_secs)
            .clamp(MIN_LIFETIME, MAX_LIFETIME);
        let renew_at = asked_at + lifetime.saturating_sub(MARGIN.min(lifetime / 10));
        Some(Self {
            header,
            asked_at,
            renew_at,
        })
    }

    fn is_usable(&self, rejected: Option<&HeaderValue>) -> bool {
        self.renew_at > Instant::now() && Some(&self.header) != rejected
    }
}

/// A token, and whether it was asked for while the caller waited.
#[derive(Debug)]
pub(super) struct TokenGrant {
    pub token: Token,
    pub fresh: bool,
}

/// All tokens of one upstream.
#[derive(Debug)]
pub(super) struct Tokens {
    slots: Cache<TokenKey, Arc<Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Requests that have ended, well or badly.
    ended: AtomicU64,
    /// How the last one ended.
    last: Mutex<Option<Result<Token, UpstreamError>>>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self {
            slots: Cache::new(MAX_SLOTS),
        }
    }

    /// Those of one caller's account.
    pub(super) fn of_caller() -> Self {
        Self {
            slots: Cache::new(MAX_CALLER_SLOTS),
        }
    }

    /// The kept token for `key`, unless it is about to expire, is `rejected` or is being renewed.
    pub(super) fn kept(&self, key: &TokenKey, rejected: Option<&HeaderValue>) -> Option<Token> {
        let slot = self.slots.get(key)?;
        let last = slot.last.try_lock().ok()?;
        let kept = last.as_ref()?.as_ref().ok();
        kept.filter(|token| token.is_usable(rejected)).cloned()
    }

    /// The time since each token in use was obtained. One that is being renewed isn't counted.
    pub(super) fn ages(&self, now: Instant) -> Vec<Duration> {
        let slots = self.slots.iter();
        let ages = slots.filter_map(|(_, slot)| {
            let last = slot.last.try_lock().ok()?;
            let token = last.as_ref()?.as_ref().ok()?;
            let is_usable = token.is_usable(None);
            is_usable.then(|| now.saturating_duration_since(token.asked_at))
        });
        ages.collect()
    }

    /// A token for `key`: the kept one, unless it is about to expire or is `rejected`, else what
    /// `ask` gets, or what another caller's `ask` got while this one waited.
    pub(super) async fn get(
        &self,
        key: &TokenKey,
        rejected: Option<&HeaderValue>,
        ask: impl AsyncFnOnce() -> Result<Token, UpstreamError>,
    ) -> Result<TokenGrant, UpstreamError> {
        let Ok::<_, Infallible>(slot) = self.slots.get_or_insert_with(key, || Ok(Arc::default()));
        let ended_before = slot.ended.load(Ordering::Acquire);
        let mut last = slot.last.lock().await;
        let waited = slot.ended.load(Ordering::Acquire) != ended_before;
        match &*last {
            Some(Ok(token)) if token.is_usable(rejected) => {
                return Ok(TokenGrant {
                    token: token.clone(),
                    fresh: waited,
                });
            }
            Some(Err(error)) if waited => return Err(error.clone()),
            _ => {}
        }
        *last = None;
        let result = ask().await;
        *last = Some(result.clone());
        slot.ended.fetch_add(1, Ordering::Release);
        result.map(|token| TokenGrant { token, fresh: true })
    }
}

#[cfg(test)]
#[path = "tests/token.rs"]
mod tests;
