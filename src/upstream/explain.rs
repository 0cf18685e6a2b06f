//! The messages for clients about an upstream's errors.

use std::borrow::Cow;
use std::time::Duration;

use super::UpstreamError;
use crate::oci::manifest::SCHEMA1_REFUSED;
use crate::oci::{Classified, ErrorKind};

impl Classified for UpstreamError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::Schema1 { .. } => ErrorKind::NotFound,
            Self::Denied { .. } | Self::CredentialsRefused { status: 403, .. } => ErrorKind::Denied,
            // Without a challenge of our own: it would make clients send us credentials that we
            // can't pass on.
            Self::Unauthorized { .. } | Self::CredentialsRefused { .. } => ErrorKind::Unauthorized,
            Self::RateLimited { .. } => ErrorKind::RateLimited,
            Self::Unavailable { status, .. } => ErrorKind::UpstreamFailed(*status),
            Self::Unreachable { .. } | Self::Broken { .. } => ErrorKind::Unreachable,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Busy { .. } => ErrorKind::Busy,
            Self::Unexpected { .. } | Self::Protocol { .. } | Self::Manifest { .. } => {
                ErrorKind::WrongAnswer
            }
            Self::Setup { .. } => ErrorKind::Internal,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::NotFound { .. } => "the upstream has no such thing",
            Self::Unauthorized { .. } => {
                "the upstream demands credentials that this mirror doesn't have, or there is no such repository"
            }
            Self::CredentialsRefused { .. } => "the upstream refuses this mirror's credentials",
            Self::Denied { .. } => "the upstream denies this mirror access",
            Self::RateLimited { .. } => "the upstream limits how often this mirror may ask",
            Self::Unavailable { status, .. } => {
                return format!("the upstream failed with status {status}").into();
            }
            Self::Unreachable { .. } => "the upstream can't be reached",
            Self::Timeout { .. } => "the upstream took too long to answer",
            Self::Broken { .. } => "the upstream broke off its answer",
            Self::Busy { .. } => "too many requests wait for the upstream; ask again",
            Self::Unexpected { .. } | Self::Protocol { .. } => {
                "the upstream's answer is not a registry's"
            }
            Self::Schema1 { .. } => SCHEMA1_REFUSED,
            Self::Manifest { source, .. } => {
                return format!("the upstream's manifest can't be served: {source}").into();
            }
            Self::Setup { .. } => "the upstream is set up wrongly here",
        }
        .into()
    }

    fn retry_after(&self) -> Option<Duration> {
        Self::retry_after(self)
    }
}
