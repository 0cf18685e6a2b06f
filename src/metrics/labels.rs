//! The labels of series: fixed sets, and the upstreams' names.

use std::fmt::Write as _;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// Declares an enum of a label's values, each with the word that logs and metrics use for it.
macro_rules! label {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident => $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $value,)+
        }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$value,)+];

            /// The word used in logs and as the metric's label.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)+
                }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                encoder.write_str(self.as_str())
            }
        }
    };
}

label! {
    /// What a request is about.
    Kind {
        Base => "base",
        Manifest => "manifest",
        Blob => "blob",
        Tags => "tags",
        Referrers => "referrers",
        Catalog => "catalog",
        /// An upload, or what writes or removes a manifest, tag or blob.
        Push => "push",
        /// A request for a token.
        Token => "token",
        /// A request without a route.
        Other => "other",
    }
}

label! {
    /// A request to the bucket.
    BucketRequest {
        Get => "get",
        Head => "head",
        List => "list",
        /// An object, a part of one, or what begins or completes those.
        Put => "put",
        Delete => "delete",
    }
}

label! {
    /// What became of something that was to be uploaded to the bucket.
    BucketUpload {
        Done => "done",
        /// An attempt; it is tried again.
        Failed => "failed",
        /// The queue is full, or the content is gone.
        Dropped => "dropped",
    }
}

label! {
    /// How long ago a token was obtained: less than this.
    TokenAge {
        Minute => "1m",
        FiveMinutes => "5m",
        Hour => "1h",
        Longer => "longer",
    }
}

impl TokenAge {
    pub(super) fn of(age: Duration) -> Self {
        let bounds = [(1, Self::Minute), (5, Self::FiveMinutes), (60, Self::Hour)];
        let bound = bounds
            .iter()
            .find(|(minutes, _)| age < Duration::from_mins(*minutes));
        bound.map_or(Self::Longer, |(_, name)| *name)
    }
}

label! {
    /// Where an answer came from.
    Outcome {
        /// The store alone.
        Hit => "hit",
        /// The store, after the upstream confirmed it.
        Revalidated => "revalidated",
        /// The store, because the upstream couldn't answer.
        Stale => "stale",
        /// The store, for a short time after what it has was fresh, while the upstream is asked.
        Updating => "updating",
        /// A download that another client's request had started.
        Joined => "joined",
        /// The upstream.
        Miss => "miss",
        /// The bucket, to which the client was redirected.
        Redirected => "redirected",
        /// Neither: the request was refused or failed.
        Error => "error",
    }
}

label! {
    /// Why a client's connection was refused.
    RefusedConnection {
        /// The listener's limit of open connections.
        Total => "total",
        /// The limit of open connections from one address.
        Address => "address",
        /// The system's limits: no file descriptor, no memory.
        System => "system",
    }
}

label! {
    /// How a client's TLS handshake ended.
    Handshake {
        Full => "full",
        /// It resumed a session.
        Resumed => "resumed",
        /// The client sent a request without TLS.
        Plain => "plain_http",
        /// The client didn't complete it in time.
        Timeout => "timeout",
        /// The client closed the connection, or it broke.
        Disconnected => "disconnected",
        /// The client showed no certificate, or one that isn't valid.
        Certificate => "client_certificate",
        /// The client refused it: mostly because it doesn't trust the server's certificate.
        Refused => "refused_by_client",
        /// The client speaks nothing that the server does, or not TLS.
        Protocol => "protocol",
    }
}

label! {
    /// How a caller was identified, or why not.
    Authentication {
        Password => "password",
        Certificate => "certificate",
        Network => "network",
        /// A token of the built-in token service, or of the external one.
        Token => "token",
        /// An OpenID Connect identity token.
        IdentityToken => "identity_token",
        /// Credentials that are an account at an upstream.
        Login => "login",
        /// A token was issued to a user.
        IssuedUser => "issued_user",
        /// A token was issued to an anonymous caller.
        IssuedAnonymous => "issued_anonymous",
        Refused => "refused",
        /// Refused without looking at the password, after too many wrong ones.
        Throttled => "throttled",
        Malformed => "malformed",
        /// The queue of passwords is full, or an issuer doesn't answer.
        Unavailable => "unavailable",
    }
}

label! {
    /// Why a caller was refused.
    RefusedCaller {
        /// The request has no credentials and needs some.
        Needed => "credentials_needed",
        /// Wrong credentials, or a token that isn't accepted.
        Wrong => "credentials_wrong",
        /// The token doesn't permit the request.
        Scope => "scope",
        /// A rule of the configuration.
        Rule => "rule",
        /// A rule that hides the repository.
        Hidden => "hidden",
        /// An entry of the deny list.
        DenyList => "deny_list",
        /// Too many wrong passwords.
        Throttled => "throttled",
        Malformed => "malformed",
        /// Too many passwords wait to be verified, or an issuer doesn't answer.
        Unavailable => "unavailable",
        /// The upstream refused the caller's account, or the mirror's.
        Upstream => "upstream",
    }
}

label! {
    /// Why a blob was removed from the cache.
    Removal {
        /// Evicted because of `storage.maxsize`.
        MaxSize => "maxsize",
        /// Evicted because of `storage.minfree`.
        MinFree => "minfree",
        /// Its last link expired.
        Expired => "expired",
        /// An operator purged it.
        Purged => "purged",
        /// It was damaged.
        Damaged => "damaged",
        /// No repository links it.
        Unlinked => "unlinked",
    }
}

label! {
    /// How a request for a token ended.
    TokenFetch {
        Granted => "granted",
        /// The token service refused it, or the credentials.
        Refused => "refused",
        Failed => "failed",
    }
}

label! {
    /// What became of a tag that is kept fresh.
    KeptFresh {
        Unchanged => "unchanged",
        /// It names another manifest than before.
        Moved => "moved",
        /// Not now: the upstream or the operator leaves nothing for background work.
        Deferred => "deferred",
        Failed => "failed",
    }
}

label! {
    /// How a request ended that was relayed to the replica that writes hosted content.
    Relayed {
        /// That replica's answer was passed on, whatever its status.
        Answered => "answered",
        /// The replica failed lately, can't be reached, is silent, or its answer has no mark.
        Unavailable => "unavailable",
        /// The replica says that another one is the writer.
        Misdirected => "misdirected",
        /// The answer broke off in its body.
        Broken => "broken",
        /// The client left before the end.
        Abandoned => "abandoned",
    }
}

label! {
    /// A condition under which the server serves, with less than usual.
    Degraded {
        /// The file system of the cache has no space left.
        StoreFull => "store_full",
        /// The file system of the cache can't be written.
        StoreReadOnly => "store_read_only",
        /// Other replicas don't answer.
        ReplicasMissing => "replicas_missing",
        /// The bucket has failed and hasn't answered since.
        BucketMissing => "bucket_missing",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OfReason {
    pub(super) reason: RefusedConnection,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KeptFreshResult {
    pub(super) result: KeptFresh,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HandshakeResult {
    pub(super) result: Handshake,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OfListener {
    /// Its address in the configuration.
    pub(super) listener: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AuthenticatedBy {
    pub(super) result: Authentication,
}

/// How a request to an upstream ended: a status, or no status at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    Status(u16),
    /// The class of the error, a fixed word.
    Error(&'static str),
}

impl EncodeLabelValue for Ending {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Status(status) => write!(encoder, "{status}"),
            Self::Error(class) => encoder.write_str(class),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UpstreamRequest {
    pub(super) upstream: String,
    pub(super) kind: Kind,
    pub(super) method: &'static str,
    pub(super) status: Ending,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RelayedResult {
    pub(super) result: Relayed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DegradedBy {
    pub(super) condition: Degraded,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UpstreamBytes {
    pub(super) upstream: String,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OfUpstream {
    pub(super) upstream: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UpstreamFailure {
    pub(super) upstream: String,
    pub(super) error: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UpstreamPhase {
    pub(super) upstream: String,
    pub(super) phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct UpstreamToken {
    pub(super) upstream: String,
    pub(super) result: TokenFetch,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RefusedFor {
    pub(super) reason: RefusedCaller,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RemovedFor {
    pub(super) reason: Removal,
}
