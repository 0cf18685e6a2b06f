//! Why a caller may not do something, and why the deny list can't be changed.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use crate::metrics::RefusedCaller;
use crate::oci::{Classified, ErrorKind};
use crate::upstream::NOT_FOUND;

/// Why a caller may not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Denied {
    /// Who says who it is may be allowed to. The rule's place, where one decided.
    #[error("credentials are needed for this repository")]
    Anonymous(Option<Arc<str>>),
    #[error("access to this repository is denied")]
    Caller(Option<Arc<str>>),
    /// Nothing says who may write: no rule, and no users.
    #[error(
        "nobody may {action} over the network: no rule of `access` says who may. Add to the \
         configuration, for example: access: [{{networks: [10.0.0.0/8], repositories: \
         [{repository}], actions: [{action}], effect: allow}}, {{anyone: true, actions: [pull, \
         list], effect: allow}}]; or `auth`, for users with passwords"
    )]
    NoWriters {
        action: &'static str,
        repository: Arc<str>,
    },
    /// The caller must not learn that the repository exists.
    #[error("the repository is hidden by the rule at {0}")]
    Hidden(Arc<str>),
    /// The deny list has it, with this reason.
    #[error("{} is denied{}", .0.reference, .0.because())]
    Listed(Arc<super::DeniedEntry>),
}

impl Denied {
    /// What decided: the place of a rule, or an entry of the deny list.
    pub(super) fn rule(&self) -> Option<&str> {
        match self {
            Self::Anonymous(rule) | Self::Caller(rule) => rule.as_deref(),
            Self::NoWriters { .. } => None,
            Self::Hidden(rule) => Some(rule),
            Self::Listed(entry) => Some(&entry.reference),
        }
    }
}

impl Denied {
    /// What the metrics say of it.
    pub fn counted_as(&self) -> RefusedCaller {
        match self {
            Self::Anonymous(_) => RefusedCaller::Needed,
            Self::Caller(_) | Self::NoWriters { .. } => RefusedCaller::Rule,
            Self::Hidden(_) => RefusedCaller::Hidden,
            Self::Listed(_) => RefusedCaller::DenyList,
        }
    }
}

impl Classified for Denied {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Anonymous(_) => ErrorKind::Unauthorized,
            Self::Caller(_) | Self::NoWriters { .. } | Self::Listed(_) => ErrorKind::Denied,
            Self::Hidden(_) => ErrorKind::NotFound,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::Hidden(_) => NOT_FOUND.into(),
            Self::Anonymous(_) | Self::Caller(_) | Self::NoWriters { .. } | Self::Listed(_) => {
                self.to_string().into()
            }
        }
    }
}

/// Why the deny list can't be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DenyError {
    #[error(
        "{0:?} is no digest such as sha256:..., no repository and no repository:tag; patterns may \
         have * and **"
    )]
    Reference(String),
    #[error("the reason has more than {} bytes", super::entry::MAX_REASON)]
    Reason,
    #[error(
        "the deny list is full: it has at most {} entries, and {} of them are images",
        super::entry::MAX_ENTRIES,
        super::entry::MAX_IMAGES
    )]
    Full,
    #[error("{0} isn't on the deny list")]
    Unknown(String),
    #[error("{0} is denied by the configuration; remove it there")]
    Configured(String),
    #[error("the deny list {path} can't be read: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the deny list {path} isn't valid: {source}")]
    Invalid {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("the deny list {path} can't be saved, so that a restart loses the change: {source}")]
    Save {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the deny list wasn't saved: its task ended")]
    Lost,
}

impl Classified for DenyError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_)
            | Self::Reason
            | Self::Full
            | Self::Unknown(_)
            | Self::Configured(_) => ErrorKind::BadRequest,
            Self::Read { .. } | Self::Invalid { .. } | Self::Save { .. } | Self::Lost => {
                ErrorKind::Internal
            }
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        self.to_string().into()
    }
}
