//! The file of the deny list: `{"denied":[...]}`.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{DeniedEntry, DenyError};

/// The largest file that is read, in bytes: more than the most entries of the longest references and
/// reasons take.
const MAX_FILE: u64 = 64 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Document<T> {
    denied: T,
}

/// The entries; none where there is no file. Blocks.
pub(super) fn read(path: &Path) -> Result<Vec<DeniedEntry>, DenyError> {
    let mut text = Vec::new();
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file,
    };
    let length = file.and_then(|file| file.take(MAX_FILE).read_to_end(&mut text));
    length.map_err(|source| DenyError::Read {
        path: path.to_owned(),
        source,
    })?;
    let document: Document<Vec<DeniedEntry>> =
        serde_json::from_slice(&text).map_err(|source| DenyError::Invalid {
            path: path.to_owned(),
            source,
        })?;
    Ok(document.denied)
}

/// Replaces the file: after a crash, it has the old entries or the new ones. Blocks.
pub(super) fn write(path: &Path, entries: &[DeniedEntry]) -> Result<(), DenyError> {
    let replaced = || {
        let text = serde_json::to_vec_pretty(&Document { denied: entries })?;
        let draft = path.with_extension("json.new");
        let parent = path.parent().unwrap_or(path);
        fs::create_dir_all(parent)?;
        let mut file = File::create(&draft)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(parent)?.sync_all()
    };
    replaced().map_err(|source| DenyError::Save {
        path: path.to_owned(),
        source,
    })
}
