//! What goes wrong with an upstream, kept apart as faithfully as the client needs it.
//!
//! Errors of the token service have the same kinds, because they mean the same to the caller (a 429
//! is a 429); the URL says which of the two failed. Every caller that waited for the same response gets
//! the error, so it is cheap to clone.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use super::credential_error::CredentialError;
use super::guard::InternalTarget;
use super::multipart::MultipartError;
use super::redirect::RedirectError;
use crate::oci::manifest::ManifestError;
use crate::oci::{Classified, Digest, ErrorKind};

/// Longest URL shown, in characters: a redirect target is chosen by the other side.
const MAX_SHOWN: usize = 512;
/// Longest message of an upstream that is passed on, in characters.
const MAX_MESSAGE: usize = 512;

/// A cause that can be shared.
pub type Source = Arc<dyn std::error::Error + Send + Sync>;

/// A URL as it may be shown: scheme, host, port and path. User names, passwords and queries (a
/// content network's signature) never get this far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownUrl(Arc<String>);

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
        Self(Arc::new(shown))
    }
}

impl fmt::Display for ShownUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an upstream gave as its reason, by [`message`]. None when it gave none.
pub type Message = Option<Arc<str>>;

/// One line, without control characters, bounded.
pub(super) fn message(text: &str) -> Message {
    let printable = text.chars().filter(|c| !c.is_control());
    let line: String = printable.take(MAX_MESSAGE).collect();
    let line = line.trim();
    (!line.is_empty()).then(|| line.into())
}

fn in_parentheses(message: &Message) -> String {
    let message = message.as_ref();
    message.map_or_else(String::new, |message| format!(" ({message})"))
}

/// Why a request to an upstream failed, and where it was sent.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{url}: {failure}")]
pub struct UpstreamError {
    pub url: ShownUrl,
    #[source]
    pub failure: Failure,
    /// When the upstream began to be asked.
    pub(super) asked_at: Instant,
    /// The replica whose final answer it is.
    pub(super) peer: Option<Box<SocketAddr>>,
}

/// Why a request to an upstream failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// 404.
    #[error("not found{}", in_parentheses(.0))]
    NotFound(Message),
    /// 401, also after authenticating; or no credentials for a registry that requires them.
    #[error("authentication failed{}", in_parentheses(.0))]
    Unauthorized(Message),
    /// 401 or 403 in answer to the operator's user name and password, or 400 to a refresh token.
    #[error("the configured credentials were refused with status {status}{}", in_parentheses(.message))]
    CredentialsRefused { status: u16, message: Message },
    /// Nothing was sent, or the upstream wants credentials: there are none, although some are
    /// configured.
    #[error("no credentials: {0}")]
    NoCredentials(#[source] CredentialError),
    /// 403 of the registry or its token service. A content network's 403 is
    /// [`Unexpected`](Self::Unexpected): it says that a signature expired.
    #[error("access denied{}", in_parentheses(.0))]
    Denied(Message),
    /// 429.
    #[error("too many requests")]
    RateLimited { retry_after: Option<Duration> },
    /// Nothing was sent: the operator's limit of bytes in a month is reached.
    #[error("`ratelimit.monthly` is reached")]
    MonthUsedUp,
    /// Nothing was sent: the operator has configured that no upstream is asked.
    #[error("`proxy.offline` is set")]
    Offline,
    /// 400 or 406 of the registry itself, or 451: it answers, and not this request. In answer to a request
    /// that writes, any other 4xx.
    #[error("rejected with status {status}{}", in_parentheses(.message))]
    Rejected { status: u16, message: Message },
    /// 5xx.
    #[error("status {status}")]
    Unavailable {
        status: u16,
        retry_after: Option<Duration>,
    },
    /// Any other status that has no meaning here.
    #[error("unexpected status {0}")]
    Unexpected(u16),
    /// No connection: the name doesn't resolve, the port is closed, the certificate isn't trusted.
    #[error("can't connect")]
    Unreachable(#[source] Source),
    #[error("{phase} took longer than {after:?}")]
    Timeout { phase: Phase, after: Duration },
    /// The connection was lost before the answer was complete.
    #[error("the connection was lost after {received} bytes of the body")]
    Broken {
        /// Body bytes that came, in bytes; 0 also when the header never did.
        received: u64,
        source: Option<Source>,
    },
    /// The other side broke the rules.
    #[error(transparent)]
    Protocol(#[from] Violation),
    /// The manifest is of Docker's schema 1.
    #[error("a Docker schema 1 manifest, which is not served")]
    Schema1,
    /// The document isn't a manifest that can be served.
    #[error("not a manifest that can be served: {0}")]
    Manifest(#[source] Arc<ManifestError>),
    /// Nothing was sent: too many requests wait for this upstream.
    #[error("too many requests wait for this upstream")]
    Busy,
}

/// What was being waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Phase {
    /// A connection, TLS included.
    #[error("connecting")]
    Connect,
    #[error("the answer's header")]
    Header,
    /// All of a small body (manifest, token, list).
    #[error("the answer's body")]
    Body,
    /// Of a blob.
    #[error("the next piece of the body")]
    Stall,
    /// The registry to take the next piece of an upload.
    #[error("sending the next piece of the upload")]
    Send,
    /// The bytes of a blob that have to arrive in a minute.
    #[error("the minimum of bytes (`proxy.minspeed`)")]
    Speed,
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
    Internal(#[from] InternalTarget),
    #[error("the list has too many pages")]
    TooManyPages,
    #[error("the list has more than {limit} entries")]
    TooManyEntries { limit: usize },
    #[error("the token service gave no usable token")]
    Token,
}

/// Why an upstream can't be set up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SetupError {
    #[error("the CA file is not a PEM bundle of certificates")]
    Authority(#[source] Source),
    #[error("the CA file holds no certificate")]
    NoCertificate,
    #[error("the client certificate and its key can't be used")]
    Identity(#[source] Source),
    #[error("the proxy's URL can't be used")]
    Proxy(#[source] Source),
    #[error(
        "TLS can't be set up; install the system's CA certificates (ca-certificates) or name a CA file"
    )]
    Tls(#[source] Source),
    #[error("the system gives no random bytes")]
    Random,
}

impl UpstreamError {
    /// The error of a request that is sent now; see [`since`](Self::since).
    pub fn new(url: &Url, failure: Failure) -> Self {
        Self {
            url: url.into(),
            failure,
            asked_at: Instant::now(),
            peer: None,
        }
    }

    /// What came from elsewhere instead of this upstream broke off: the next source goes on.
    pub fn elsewhere(url: &Url, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let source: Option<Source> = Some(Arc::new(source));
        Self::new(
            url,
            Failure::Broken {
                received: 0,
                source,
            },
        )
    }

    /// The same error of a question that began at this time. Where that joined a request that was
    /// already being sent, the earlier time counts.
    pub(super) fn since(self, asked_at: Instant) -> Self {
        Self {
            asked_at: self.asked_at.min(asked_at),
            ..self
        }
    }

    /// When the upstream began to be asked. Later than the beginning of a client's request only if the
    /// client has waited for all of the answer: not for a remembered error, nor for that of a question
    /// that other clients had asked before.
    pub const fn asked_at(&self) -> Instant {
        self.asked_at
    }

    /// The replica that answered so, if the upstream wasn't asked from here.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer.as_deref().copied()
    }

    pub(super) fn protocol(url: &Url, violation: impl Into<Violation>) -> Self {
        Self::new(url, Failure::Protocol(violation.into()))
    }

    /// Whether the upstream may well answer the same question later: resuming is worth a try, and the
    /// last known answer may be served meanwhile. False where the upstream did answer (404, 401, 403)
    /// or where its answer is wrong.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::RateLimited
                | ErrorKind::UpstreamFailed(_)
                | ErrorKind::Unreachable
                | ErrorKind::Timeout
                | ErrorKind::Busy
        )
    }

    /// Whether the upstream asks for fewer requests (429, 503): a download should use fewer streams.
    pub const fn pushes_back(&self) -> bool {
        matches!(
            self.failure,
            Failure::RateLimited { .. } | Failure::Unavailable { status: 503, .. }
        )
    }

    /// Whether the answer was larger than what is read of such an answer.
    pub const fn is_too_long(&self) -> bool {
        matches!(
            self.failure,
            Failure::Protocol(
                Violation::TooLarge { .. }
                    | Violation::TooManyPages
                    | Violation::TooManyEntries { .. }
            )
        )
    }

    /// 416: what was asked for begins behind the end of the blob.
    pub const fn is_out_of_range(&self) -> bool {
        matches!(self.failure, Failure::Unexpected(416))
    }

    /// The status that the registry or its token service answered with, where that is what failed.
    pub const fn status(&self) -> Option<u16> {
        match self.failure {
            Failure::NotFound(_) => Some(404),
            Failure::Unauthorized(_) => Some(401),
            Failure::Denied(_) => Some(403),
            Failure::RateLimited { .. } => Some(429),
            Failure::CredentialsRefused { status, .. }
            | Failure::Rejected { status, .. }
            | Failure::Unavailable { status, .. }
            | Failure::Unexpected(status) => Some(status),
            _ => None,
        }
    }

    /// A short constant name for metrics.
    pub const fn class(&self) -> &'static str {
        match self.failure {
            Failure::NotFound(_) => "not_found",
            Failure::Unauthorized(_) => "unauthorized",
            Failure::CredentialsRefused { .. } => "credentials_refused",
            Failure::NoCredentials(_) => "no_credentials",
            Failure::Denied(_) => "denied",
            Failure::RateLimited { .. } => "rate_limited",
            Failure::MonthUsedUp => "month_used_up",
            Failure::Offline => "offline",
            Failure::Rejected { .. } => "rejected",
            Failure::Unavailable { .. } => "unavailable",
            Failure::Unexpected(_) => "unexpected",
            Failure::Unreachable(_) => "unreachable",
            Failure::Timeout { .. } => "timeout",
            Failure::Broken { .. } => "broken",
            Failure::Protocol(_) => "protocol",
            Failure::Schema1 => "schema1",
            Failure::Manifest(_) => "manifest",
            Failure::Busy => "busy",
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
        assert_eq!(&*shown.0, "https://cdn.example:8443/a/b");
        assert_eq!(shown.to_string(), "https://cdn.example:8443/a/b");
        let long = Url::parse(&format!("https://cdn.example/{}", "x".repeat(100_000))).unwrap();
        assert_eq!(ShownUrl::from(&long).0.chars().count(), MAX_SHOWN + 1);
    }

    #[test]
    fn a_message_is_one_bounded_line() {
        let line = message(" no\r\nX: y\u{1b}[31m ");
        assert_eq!(line.as_deref(), Some("noX: y[31m"));
        assert_eq!(message("\n\t "), None);
        let long = message(&"ä".repeat(100_000)).unwrap();
        assert_eq!(long.chars().count(), MAX_MESSAGE);
    }

    #[test]
    fn only_429_and_503_push_back() {
        let url = Url::parse("https://registry.example/").unwrap();
        let pushes_back = |failure| UpstreamError::new(&url, failure).pushes_back();
        let retry_after = None;
        assert!(pushes_back(Failure::RateLimited { retry_after }));
        for status in [500, 502, 503, 504] {
            let unavailable = Failure::Unavailable {
                status,
                retry_after,
            };
            assert_eq!(pushes_back(unavailable), status == 503, "{status}");
        }
        assert!(!pushes_back(Failure::Unexpected(416)));
    }
}
