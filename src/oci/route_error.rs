//! Why a request has no route.

use std::borrow::Cow;

use super::error::{Classified, ErrorKind};
use super::name::NameError;

/// The most tags of one push.
pub(super) const MAX_TAGS: usize = 32;

/// Why a request has no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("there is nothing at this path; the registry API begins at /v2/")]
    NotFound,
    #[error("nothing at this path is written with this method")]
    Method,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("n must be a whole number")]
    PageSize,
    #[error("the parameter {0} is longer than any valid value")]
    Parameter(&'static str),
    #[error("tag parameters are for a manifest that is pushed by its digest")]
    TagsOfTag,
    #[error("more than {MAX_TAGS} tags in one request; push the others in another one")]
    TooManyTags,
    /// Two names of the host could mean two upstreams.
    #[error("the request has more than one Host header")]
    Hosts,
}

impl Classified for RouteError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound => ErrorKind::NoSuchPath,
            Self::Method => ErrorKind::ReadOnly,
            Self::Name(NameError::Name | NameError::TooLong) => ErrorKind::NameInvalid,
            Self::Name(NameError::Tag) => ErrorKind::TagInvalid,
            Self::Name(NameError::Digest(_)) => ErrorKind::DigestInvalid,
            Self::PageSize => ErrorKind::PageSizeInvalid,
            Self::Parameter(_) | Self::TagsOfTag | Self::Hosts => ErrorKind::BadRequest,
            Self::TooManyTags => ErrorKind::UriTooLong,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        self.to_string().into()
    }
}
