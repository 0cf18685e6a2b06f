//! The file of the deny list: `{"denied":[...]}`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{DeniedEntry, DenyError};
use crate::kept_file;

/// The largest file that is read, in bytes: more than the most entries of the longest references and
/// reasons take.
const MAX_FILE: u64 = 64 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Document<T> {
    denied: T,
}

/// The entries; none where there is no file. Blocks.
pub(super) fn read(path: &Path) -> Result<Vec<DeniedEntry>, DenyError> {
    let text = kept_file::read(path, MAX_FILE).map_err(|source| DenyError::Read {
        path: path.to_owned(),
        source,
    })?;
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    let document: Document<Vec<DeniedEntry>> =
        serde_json::from_slice(&text).map_err(|source| DenyError::Invalid {
            path: path.to_owned(),
            source,
        })?;
    Ok(document.denied)
}

/// Replaces the file: after a crash, it has the old entries or the new ones. Blocks.
pub(super) fn write(path: &Path, entries: &[DeniedEntry]) -> Result<(), DenyError> {
    let replaced = kept_file::replace(path, &Document { denied: entries });
    replaced.map_err(|source| DenyError::Save {
        path: path.to_owned(),
        source,
    })
}
