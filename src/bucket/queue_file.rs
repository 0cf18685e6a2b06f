//! The queue's file in the data directory.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use super::queue::Saved;

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// What an earlier process has left. Blocks.
pub(super) fn read(path: &Path) -> io::Result<Saved> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Replaces the file: after a crash, it has the old queue or the new one. Blocks.
pub(super) fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let text = serde_json::to_vec(saved)?;
    let draft = path.with_extension("json.new");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::create(&draft)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&draft, path)
}
