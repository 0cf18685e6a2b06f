//! The file of the pins that were made at run time: `{"pins":[...]}`.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::list::{Pin, PinError};
use crate::kept_file;
use crate::storage::{Layout, Modes, sync_directory};

/// The largest file that is read, in bytes: more than the most pins of the longest references take.
const MAX_FILE: u64 = 64 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Document<T> {
    pins: T,
}

/// The pins; none where there is no file. Blocks.
pub(super) fn read(path: &Path) -> Result<Vec<Pin>, PinError> {
    let text = kept_file::read(path, MAX_FILE).map_err(|source| PinError::Read {
        path: path.to_owned(),
        source,
    })?;
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    let document: Document<Vec<Pin>> =
        serde_json::from_slice(&text).map_err(|error| PinError::Invalid {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    Ok(document.pins)
}

/// Replaces the file: after a crash, it has the old pins or the new ones. Blocks.
pub(super) fn write<'a>(path: &Path, pins: impl Iterator<Item = &'a Pin>) -> Result<(), PinError> {
    let replaced = || {
        let pins: Vec<_> = pins.collect();
        let text = serde_json::to_vec_pretty(&Document { pins })?;
        let draft = path.with_extension("json.new");
        let own = path.parent().unwrap_or(path);
        fs::create_dir_all(own)?;
        let modes = Modes::beside(&Layout::new(own.parent().unwrap_or(own)));
        let mut options = File::options();
        let mut file = modes.open(options.create(true).write(true).truncate(true), &draft)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        sync_directory(own)
    };
    replaced().map_err(|source| PinError::Save {
        path: path.to_owned(),
        source,
    })
}
