//! A look at a data directory from outside, for a diagnosis: whom it belongs to and how fast its disk
//! is. Takes no lock: a server may use the directory meanwhile. Blocks.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::error::Context as _;
use super::{Layout, StoreError, blocking, disk};
#[cfg(target_os = "linux")]
use crate::error_chain::on_one_line;

/// Bytes of the file that is written and read.
const SAMPLE: u64 = 8 << 20;
/// Bytes of one write.
const CHUNK: usize = 1 << 20;

/// An existing data directory.
#[derive(Debug, Clone, Copy)]
pub struct Survey {
    /// The user id of its owner.
    pub owner: u32,
    pub speed: DiskSpeed,
}

/// How long the disk took for [`bytes`](Self::bytes).
#[derive(Debug, Clone, Copy)]
pub struct DiskSpeed {
    pub bytes: u64,
    /// To write and sync them.
    pub write: Duration,
    /// To read them again; not from the page cache, where the system permits that.
    pub read: Duration,
}

impl Survey {
    /// Looks at the directory `root`, and writes a file without a name in it, which is gone at the end
    /// even if the process is killed. None where no server has ever used the directory: nothing is made
    /// then.
    pub async fn of(root: &Path) -> Result<Option<Self>, StoreError> {
        let layout = Layout::new(root);
        blocking(move || survey(&layout)).await
    }
}

fn survey(layout: &Layout) -> Result<Option<Survey>, StoreError> {
    let (root, own) = (layout.root(), layout.own());
    let metadata = disk::found(fs::metadata(root)).context("look at", root)?;
    let is_used = disk::found(fs::metadata(&own)).context("look at", &own)?;
    let (Some(metadata), Some(_)) = (metadata, is_used) else {
        return Ok(None);
    };
    let path = own.join(format!("doctor.{}", std::process::id()));
    let speed = measure(&path).map_err(StoreError::not_writable(root, &path))?;
    Ok(Some(Survey {
        owner: metadata.uid(),
        speed,
    }))
}

fn measure(path: &Path) -> io::Result<DiskSpeed> {
    let mut options = File::options();
    let mut file = options.read(true).write(true).create_new(true).open(path)?;
    // From here on it has no name.
    fs::remove_file(path)?;
    // Not zeros, which some file systems don't write.
    let mut chunk = vec![0; CHUNK];
    let mut state = 1_u32;
    for byte in &mut chunk {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = state.to_be_bytes()[0];
    }
    let began = Instant::now();
    for _ in 0..SAMPLE / CHUNK as u64 {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    let write = began.elapsed();
    // Only advice: where it isn't taken, the page cache is read.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed) {
        tracing::debug!(error = %on_one_line(&error), "the page cache is read");
    }
    file.rewind()?;
    let began = Instant::now();
    while file.read(&mut chunk)? > 0 {}
    Ok(DiskSpeed {
        bytes: SAMPLE,
        write,
        read: began.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_survey_leaves_nothing_behind_and_makes_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Survey::of(dir.path()).await.unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let own = dir.path().join("millpond");
        fs::create_dir(&own).unwrap();
        let survey = Survey::of(dir.path()).await.unwrap().unwrap();
        assert_eq!(survey.speed.bytes, SAMPLE);
        assert_eq!(fs::read_dir(own).unwrap().count(), 0);
    }
}
