//! What goes wrong with an upstream, kept apart as faithfully as the client needs it.
//!
//! Errors of the token service have the same variants, because they mean the same to the caller (a 429
//! is a 429); the URL says which of the two failed. Every caller that waited for the same response gets
//! the error, so it is cheap to clone.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::guard::InternalTarget;
use super::multipart::MultipartError;
use super::redirect::RedirectError;
use crate::oci::Digest;
use crate::oci::manifest::ManifestError;

/// Longest URL shown, in characters: a redirect target is chosen by the other side.
const MAX_SHOWN: usize = 512;
/// Longest message of an upstream that is passed on, in characters.
const MAX_MESSAGE: usize = 512;

/// A cause that can be shared.
pub type Source = Arc<dyn std::error::Error + Send + Sync>;

/// A URL as it may be shown: scheme, host, port and path. User names, passwords and queries (a
/// content network's signature) never get this far.
#[derive(Clone, PartialEq, Eq)]
pub struct ShownUrl(Arc<str>);

impl From<&Url> for ShownUrl {
    fn from(url: &Url) -> Self {
        let mut shown = format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default());
        if let Some(port) = url.port() {
            shown.push(':');
            shown.push_str(&port.to_string());
        }
        shown.push_str(url.path());
        if shown.chars().count() > MAX_SHOWN {
            shown = shown.chars().take(MAX_SHOWN).chain(['…']).collect();
        }
        Self(shown.into())
    }
}

impl fmt::Display for ShownUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ShownUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an upstream gave as its reason: one line, without control characters, bounded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(Option<Arc<str>>);

impl Message {
    pub(super) fn of(text: &str) -> Self {
        let clean: String = text
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_MESSAGE)
            .collect();
        let clean = clean.trim();
        Self((!clean.is_empty()).then(|| clean.into()))
    }

    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str()
            .map_or(Ok(()), |message| write!(f, " ({message})"))
    }
}

/// Why a request to an upstream failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    /// 404.
    #[error("{url}: not found{message}")]
    NotFound { url: ShownUrl, message: Message },
    /// 401, also after authenticating; or no credentials for a registry that requires them.
    #[error("{url}: authentication failed{message}")]
    Unauthorized { url: ShownUrl, message: Message },
    /// 401 or 403 in answer to the operator's user name and password.
    #[error("{url}: the configured credentials were refused with status {status}{message}")]
    CredentialsRefused {
        url: ShownUrl,
        status: u16,
        message: Message,
    },
    /// 403 of the registry or its token service. A content network's 403 is
    /// [`Unexpected`](Self::Unexpected): it says that a signature expired.
    #[error("{url}: access denied{message}")]
    Denied { url: ShownUrl, message: Message },
    /// 429.
    #[error("{url}: too many requests")]
    RateLimited {
        url: ShownUrl,
        retry_after: Option<Duration>,
    },
    /// 5xx.
    #[error("{url}: status {status}")]
    Unavailable {
        url: ShownUrl,
        status: u16,
        retry_after: Option<Duration>,
    },
    /// Any other status that has no meaning here.
    #[error("{url}: unexpected status {status}")]
    Unexpected { url: ShownUrl, status: u16 },
    /// No connection: the name doesn't resolve, the port is closed, the certificate isn't trusted.
    #[error("{url}: can't connect")]
    Unreachable { url: ShownUrl, source: Source },
    #[error("{url}: {phase} took longer than {after:?}")]
    Timeout {
        url: ShownUrl,
        phase: Phase,
        after: Duration,
    },
    /// The connection was lost before the answer was complete.
    #[error("{url}: the connection was lost after {received} bytes of the body")]
    Broken {
        url: ShownUrl,
        /// Body bytes that came, in bytes; 0 also when the header never did.
        received: u64,
        source: Option<Source>,
    },
    /// The other side broke the rules.
    #[error("{url}: {violation}")]
    Protocol { url: ShownUrl, violation: Violation },
    /// The manifest is of Docker's schema 1.
    #[error("{url}: a Docker schema 1 manifest, which is not served")]
    Schema1 { url: ShownUrl },
    /// The document isn't a manifest that can be served.
    #[error("{url}: not a manifest that can be served: {source}")]
    Manifest {
        url: ShownUrl,
        source: Arc<ManifestError>,
    },
    /// Nothing was sent: too many requests wait for this upstream.
    #[error("too many requests wait for the upstream {upstream}")]
    Busy {
        upstream: Arc<str>,
        /// When a client may ask again.
        retry_after: Duration,
    },
    /// The settings can't be used; nothing was sent.
    #[error("upstream {name} can't be set up")]
    Setup {
        name: Arc<str>,
        #[source]
        reason: SetupError,
    },
}

/// What was being waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A connection, TLS included.
    Connect,
    /// The header of the answer.
    Header,
    /// All of a small body (manifest, token, list).
    Body,
    /// The next piece of a blob.
    Stall,
    /// The bytes of a blob that have to arrive in a minute.
    Speed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Header => "the answer's header",
            Self::Body => "the answer's body",
            Self::Stall => "the next piece of the body",
            Self::Speed => "the minimum of bytes (`proxy.minspeed`)",
        })
    }
}

/// How an answer broke the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("malformed header {0}")]
    Header(&'static str),
    #[error("the body is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the body is {actual}, which is not the announced {expected}")]
    Digest {
        expected: Box<Digest>,
        actual: Box<Digest>,
    },
    #[error("the body is compressed in transit, although identity was asked for")]
    Encoding,
    #[error("the body is not the JSON of a {0}")]
    Json(&'static str),
    #[error("the range is not the one that was asked for")]
    Range,
    #[error("malformed multipart/byteranges body: {0}")]
    Multipart(#[from] MultipartError),
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    #[error("the challenge names a token service that can't be used: {0}")]
    Realm(RedirectError),
    #[error(transparent)]
    Internal(Box<InternalTarget>),
    #[error("the list has too many pages")]
    TooManyPages,
    #[error("the list has more than {limit} entries")]
    TooManyEntries { limit: usize },
    #[error("the token service gave no usable token")]
    Token,
}

impl From<InternalTarget> for Violation {
    fn from(target: InternalTarget) -> Self {
        Self::Internal(Box::new(target))
    }
}

/// Why an upstream can't be set up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SetupError {
    #[error("the URL must be http:// or https:// with a host")]
    Url,
    #[error("user name and password belong in settings of their own, not in the URL")]
    UserInfo,
    #[error("the user name or password can't be sent as Basic credentials")]
    Credentials,
    #[error("the user name and password would be sent over plain HTTP, which isn't permitted")]
    PlainHttp,
    #[error("the CA file is not a PEM bundle of certificates")]
    Authority(#[source] Source),
    #[error("the CA file holds no certificate")]
    NoCertificate,
    #[error(
        "TLS can't be set up; install the system's CA certificates (ca-certificates) or name a CA file"
    )]
    Tls(#[source] Source),
}

impl UpstreamError {
    /// Whether the upstream may well answer the same question later: the last known answer may be
    /// served meanwhile. False where the upstream did answer (404, 401, 403) or where its answer
    /// is wrong.
    pub const fn permits_stale(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Broken { .. }
            | Self::Busy { .. } => true,
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::CredentialsRefused { .. }
            | Self::Denied { .. }
            | Self::Unexpected { .. }
            | Self::Protocol { .. }
            | Self::Schema1 { .. }
            | Self::Manifest { .. }
            | Self::Setup { .. } => false,
        }
    }

    /// The same judgement under the name that a download asks by: is resuming worth a try?
    pub const fn is_transient(&self) -> bool {
        self.permits_stale()
    }

    /// Whether the upstream asks for fewer requests (429, 503): a download should use fewer streams.
    pub const fn pushes_back(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. } | Self::Unavailable { status: 503, .. }
        )
    }

    /// Whether the answer was larger than what is read of such an answer.
    pub const fn is_too_long(&self) -> bool {
        matches!(
            self,
            Self::Protocol {
                violation: Violation::TooLarge { .. }
                    | Violation::TooManyPages
                    | Violation::TooManyEntries { .. },
                ..
            }
        )
    }

    /// 416: what was asked for begins behind the end of the blob.
    pub const fn is_out_of_range(&self) -> bool {
        matches!(self, Self::Unexpected { status: 416, .. })
    }

    /// The `Retry-After` of the upstream, if it sent one; at most
    /// [`MAX_RETRY_AFTER`](super::retry::MAX_RETRY_AFTER).
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Unavailable { retry_after, .. } => {
                *retry_after
            }
            Self::Busy { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// The status that the registry or its token service answered with, where that is what failed.
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::NotFound { .. } => Some(404),
            Self::Unauthorized { .. } | Self::CredentialsRefused { .. } => Some(401),
            Self::Denied { .. } => Some(403),
            Self::RateLimited { .. } => Some(429),
            Self::Unavailable { status, .. } | Self::Unexpected { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// A short constant name for metrics.
    pub const fn class(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Unauthorized { .. } => "unauthorized",
            Self::CredentialsRefused { .. } => "credentials_refused",
            Self::Denied { .. } => "denied",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unavailable { .. } => "unavailable",
            Self::Unexpected { .. } => "unexpected",
            Self::Unreachable { .. } => "unreachable",
            Self::Timeout { .. } => "timeout",
            Self::Broken { .. } => "broken",
            Self::Protocol { .. } => "protocol",
            Self::Schema1 { .. } => "schema1",
            Self::Manifest { .. } => "manifest",
            Self::Busy { .. } => "busy",
            Self::Setup { .. } => "setup",
        }
    }

    pub(super) fn protocol(url: &Url, violation: impl Into<Violation>) -> Self {
        Self::Protocol {
            url: url.into(),
            violation: violation.into(),
        }
    }

    pub(super) fn schema1(url: &Url) -> Self {
        Self::Schema1 { url: url.into() }
    }

    /// The status, when it is one that this module gives no meaning of its own.
    pub(super) const fn unexpected_status(&self) -> Option<u16> {
        match self {
            Self::Unexpected { status, .. } => Some(*status),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_has_no_secrets_and_a_bound() {
        let url =
            Url::parse("https://user:pass@cdn.example:8443/a/b?X-Signature=s3cret#f").unwrap();
        let shown = ShownUrl::from(&url);
        assert_eq!(shown.to_string(), "https://cdn.example:8443/a/b");
        assert_eq!(format!("{shown:?}"), "https://cdn.example:8443/a/b");
        let long = Url::parse(&format!("https://cdn.example/{}", "x".repeat(100_000))).unwrap();
        assert_eq!(
            ShownUrl::from(&long).to_string().chars().count(),
            MAX_SHOWN + 1
        );
    }

    #[test]
    fn a_message_is_one_bounded_line() {
        assert_eq!(
            Message::of(" no\r\nX: y\u{1b}[31m ").as_str(),
            Some("noX: y[31m")
        );
        assert_eq!(Message::of("\n\t ").as_str(), None);
        let long = Message::of(&"ä".repeat(100_000));
        assert_eq!(
            long.as_str().map(|text| text.chars().count()),
            Some(MAX_MESSAGE)
        );
    }

    #[test]
    fn only_429_and_503_push_back() {
        let url = ShownUrl::from(&Url::parse("https://registry.example/").unwrap());
        let unavailable = |status| UpstreamError::Unavailable {
            url: url.clone(),
            status,
            retry_after: None,
        };
        let limited = UpstreamError::RateLimited {
            url: url.clone(),
            retry_after: None,
        };
        assert!(limited.pushes_back() && unavailable(503).pushes_back());
        for status in [500, 502, 504] {
            assert!(!unavailable(status).pushes_back(), "{status}");
        }
        let refused = UpstreamError::Unexpected { url, status: 416 };
        assert!(!refused.pushes_back());
    }
}
