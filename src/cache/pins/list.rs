//! The list of the pins.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::cache::index::Pins;
use crate::cache::state::timestamp::Timestamp;
use crate::cache::{NotReady, Selection, SelectionError};
use crate::oci::{Classified, ErrorKind};
use crate::storage::Layout;

/// The most pins.
const MAX_PINS: usize = 10_000;
/// The most pins whose repository is a pattern: each is compared with each repository.
const MAX_PATTERNS: usize = 100;

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// What it keeps, by its stored name: see [`Selection`].
    pub reference: String,
    /// RFC 3339.
    pub added: String,
    /// When it ends, in RFC 3339; none is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// Why the pins can't be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{reference:?} can't be pinned: {source}")]
    Reference {
        reference: String,
        source: SelectionError,
    },
    #[error(
        "there are too many pins: at most {MAX_PINS}, and {MAX_PATTERNS} of them with a pattern as \
         the repository"
    )]
    Full,
    #[error("{0} isn't pinned by `millpond pin`")]
    Unknown(String),
    #[error("the pins {path} can't be read: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the pins {path} aren't valid: {reason}")]
    Invalid { path: PathBuf, reason: String },
    #[error("the pins {path} can't be saved, so that nothing has changed: {source}")]
    Save {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error("the pins weren't changed: the task that changes them ended")]
    Lost,
}

impl Classified for PinError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference { .. } | Self::Full | Self::Unknown(_) => ErrorKind::BadRequest,
            Self::NotReady(_) => ErrorKind::Busy,
            Self::Read { .. } | Self::Invalid { .. } | Self::Save { .. } | Self::Lost => {
                ErrorKind::Internal
            }
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        self.to_string().into()
    }
}

/// By reference.
pub(super) type ByReference = BTreeMap<String, Pin>;

/// The pins of one cache.
#[derive(Debug)]
pub(in crate::cache) struct PinList {
    pub(super) pins: Mutex<ByReference>,
    /// Orders changes: each saves what the one before it left.
    pub(super) changing: Arc<Semaphore>,
    /// None for a cache that doesn't outlive the process.
    pub(super) path: Option<PathBuf>,
}

impl PinList {
    /// An empty list; `state` is where the cache keeps its expiry state.
    pub(in crate::cache) fn beside(state: Option<&PathBuf>) -> Self {
        let root = state.and_then(|state| state.parent());
        Self {
            pins: Mutex::default(),
            changing: Arc::new(Semaphore::new(1)),
            path: root.map(|root| Layout::new(root).pins()),
        }
    }
}

impl Pin {
    pub(super) fn selection(&self) -> Result<Selection, PinError> {
        let reference = self.reference.clone();
        let parsed = reference.parse();
        parsed.map_err(|source| PinError::Reference { reference, source })
    }

    /// None if it doesn't end. An end that can't be read is an error with the text.
    pub(super) fn end(&self) -> Result<Option<Timestamp>, &str> {
        let text = self.until.as_deref();
        text.map(|text| Timestamp::parse(text).ok_or(text))
            .transpose()
    }

    pub(super) fn is_live(&self, now: Timestamp) -> bool {
        self.end().is_ok_and(|end| end.is_none_or(|end| end > now))
    }
}

/// What the index applies of a list in which all is valid.
pub(super) fn compile(pins: &ByReference) -> Result<Pins, PinError> {
    let mut compiled = Vec::with_capacity(pins.len());
    for pin in pins.values() {
        compiled.push((pin.selection()?, pin.end().unwrap_or_default()));
    }
    let patterns = compiled.iter();
    let patterns = patterns.filter(|(selection, _)| selection.literal_repository().is_none());
    if compiled.len() > MAX_PINS || patterns.count() > MAX_PATTERNS {
        return Err(PinError::Full);
    }
    Ok(Pins::new(compiled))
}
