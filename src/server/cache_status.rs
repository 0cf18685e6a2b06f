//! `Cache-Status` (RFC 9211): whether an answer came from the cache, and what the upstream was asked
//! for it. Every answer of the API has one.
//!
//! - `hit`: from the cache, without a question to the upstream; with `detail=stale`, because the
//!   upstream failed to answer shortly before; with `detail=stale-while-revalidate`, because it is being
//!   asked and the configuration permits not to wait.
//!   `detail=negative`: the upstream has lately said that there is nothing, or nothing for this account.
//! - `fwd=stale`: the cache had an answer, and the upstream was asked whether it still holds.
//!   `fwd-status` is what it said; `detail=stale`: nothing usable, so the cached answer was served;
//!   `detail=revalidated`: the cached content was served on its word.
//! - `fwd=uri-miss`: the cache had nothing for a name with a digest; `fwd=miss`: nothing for a tag or a
//!   list that this client can use. `stored`: it has now; `collapsed`: the client shares another's
//!   request.
//! - A member before millpond's own, such as `"10.0.0.2:5000"`: the replica that was asked instead of the
//!   upstream, or to which the request was relayed because it writes the hosted repository (`fwd=method` for
//!   what isn't a read).
//! - `detail` alone: neither the cache nor the upstream was asked. `detail=redirected`: the client gets the
//!   content from the bucket.

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue, WARNING};

use crate::metrics::Outcome;
use crate::mirror::Exchange;
use crate::oci::{Action, Reference};

pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const STALE: HeaderValue = HeaderValue::from_static("110 millpond \"Response is Stale\"");
pub(super) const HIT: HeaderValue = HeaderValue::from_static("millpond; hit");
const HIT_STALE: HeaderValue = HeaderValue::from_static("millpond; hit; detail=stale");
const HIT_UPDATING: HeaderValue =
    HeaderValue::from_static("millpond; hit; detail=stale-while-revalidate");
/// Errors of an upstream that are remembered.
pub(super) const HIT_NEGATIVE: HeaderValue =
    HeaderValue::from_static("millpond; hit; detail=negative");
/// The API's own answers, such as `GET /v2/`.
pub(super) const GENERATED: HeaderValue = HeaderValue::from_static("millpond; detail=generated");
/// A client is redirected to the bucket.
pub(super) const REDIRECTED: HeaderValue = HeaderValue::from_static("millpond; detail=redirected");
/// Answers to requests that aren't valid or not permitted.
pub(super) const REFUSED: HeaderValue = HeaderValue::from_static("millpond; detail=refused");
/// The mirror's own failures.
const FAILED: HeaderValue = HeaderValue::from_static("millpond; detail=failed");

/// What names the content that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    ByDigest,
    /// A tag or a list: what it stands for changes, and may depend on the client.
    Otherwise,
}

impl Named {
    /// What names the content of an action.
    pub(super) const fn by(action: &Action) -> Self {
        match action {
            Action::Blob { .. } => Self::ByDigest,
            Action::Manifest { reference, .. } => Self::by_reference(reference),
            Action::Root
            | Action::Options
            | Action::Base
            | Action::Catalog(_)
            | Action::Tags { .. }
            | Action::Token { .. }
            | Action::Push { .. }
            | Action::Referrers { .. } => Self::Otherwise,
        }
    }

    pub(super) const fn by_reference(reference: &Reference) -> Self {
        match reference {
            Reference::Digest(_) => Self::ByDigest,
            Reference::Tag(_) => Self::Otherwise,
        }
    }

    pub(super) const fn miss(self) -> &'static str {
        match self {
            Self::ByDigest => "uri-miss",
            Self::Otherwise => "miss",
        }
    }
}

/// Where an answer with content came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub outcome: Outcome,
    pub named: Named,
    pub exchange: Exchange,
}

impl Origin {
    /// Of a list.
    pub(super) fn list(outcome: Outcome, exchange: Exchange) -> Self {
        Self {
            outcome,
            named: Named::Otherwise,
            exchange,
        }
    }

    pub(super) fn insert(self, headers: &mut HeaderMap) {
        headers.insert(CACHE_STATUS, self.cache_status());
        if matches!(self.outcome, Outcome::Stale | Outcome::Updating) {
            headers.insert(WARNING, STALE);
        }
    }

    fn cache_status(self) -> HeaderValue {
        let Self {
            outcome,
            named,
            exchange,
        } = self;
        match outcome {
            Outcome::Hit => HIT,
            Outcome::Updating => HIT_UPDATING,
            Outcome::Stale if !exchange.forwarded => HIT_STALE,
            Outcome::Stale => forwarded("stale", exchange, "; detail=stale"),
            Outcome::Revalidated => {
                let reason = match named {
                    Named::ByDigest => "uri-miss",
                    Named::Otherwise => "stale",
                };
                forwarded(reason, exchange, "; detail=revalidated")
            }
            Outcome::Joined => forwarded(named.miss(), exchange, "; collapsed"),
            Outcome::Miss => forwarded(named.miss(), exchange, ""),
            Outcome::Redirected => REDIRECTED,
            Outcome::Error => failed(named, exchange),
        }
    }
}

/// The field of an error.
pub(super) fn failed(named: Named, exchange: Exchange) -> HeaderValue {
    if !exchange.forwarded {
        return FAILED;
    }
    let detail = if exchange.status.is_none() {
        "; detail=no-usable-response"
    } else {
        ""
    };
    forwarded(named.miss(), exchange, detail)
}

/// The reason of a request that is no read.
pub(super) const METHOD: &str = "method";

/// The field of an answer that another replica gave, which the operator calls `writer`.
pub(super) fn relayed(reason: &str, writer: &str, status: StatusCode) -> HeaderValue {
    let status = status.as_u16();
    let text = format!("\"{writer}\", millpond; fwd={reason}; fwd-status={status}");
    HeaderValue::try_from(text).unwrap_or(FAILED)
}

fn forwarded(reason: &str, exchange: Exchange, more: &str) -> HeaderValue {
    let status = exchange
        .status
        .map_or(String::new(), |status| format!("; fwd-status={status}"));
    let stored = if exchange.stored { "; stored" } else { "" };
    let text = format!("millpond; fwd={reason}{status}{stored}{more}");
    // The cache that is nearer to the origin comes first.
    let text = match exchange.peer {
        Some(peer) => format!("\"{peer}\", {text}"),
        None => text,
    };
    // Words and digits can be in a header.
    HeaderValue::try_from(text).unwrap_or(FAILED)
}

#[cfg(test)]
mod tests {
    use super::Named::{ByDigest, Otherwise};
    use super::Outcome::{Error, Hit, Joined, Miss, Revalidated, Stale, Updating};
    use super::*;

    fn answered(status: u16, stored: bool) -> Exchange {
        Exchange {
            status: Some(status),
            stored,
            ..Exchange::unanswered()
        }
    }

    #[test]
    fn hit_only_when_nothing_was_forwarded() {
        let no = Exchange::default();
        let lost = Exchange::unanswered();
        let (ok, failed) = (answered(200, false), answered(503, false));
        let stored = answered(200, true);
        for (outcome, named, exchange, expected) in [
            (Hit, ByDigest, no, "hit"),
            (Stale, Otherwise, no, "hit; detail=stale"),
            (
                Updating,
                Otherwise,
                no,
                "hit; detail=stale-while-revalidate",
            ),
            (Stale, Otherwise, lost, "fwd=stale; detail=stale"),
            (
                Stale,
                Otherwise,
                failed,
                "fwd=stale; fwd-status=503; detail=stale",
            ),
            (
                Revalidated,
                Otherwise,
                ok,
                "fwd=stale; fwd-status=200; detail=revalidated",
            ),
            (
                Revalidated,
                ByDigest,
                ok,
                "fwd=uri-miss; fwd-status=200; detail=revalidated",
            ),
            (
                Miss,
                ByDigest,
                stored,
                "fwd=uri-miss; fwd-status=200; stored",
            ),
            (Miss, Otherwise, ok, "fwd=miss; fwd-status=200"),
            (Joined, ByDigest, lost, "fwd=uri-miss; collapsed"),
            (Error, ByDigest, no, "detail=failed"),
            (Error, ByDigest, failed, "fwd=uri-miss; fwd-status=503"),
            (
                Error,
                Otherwise,
                lost,
                "fwd=miss; detail=no-usable-response",
            ),
        ] {
            let origin = Origin {
                outcome,
                named,
                exchange,
            };
            assert_eq!(origin.cache_status(), format!("millpond; {expected}"));
        }
    }
}
