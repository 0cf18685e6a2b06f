//! What writing a blob to a file costs by itself.

use std::io::Write;

use anyhow::Result;

use super::proc::cpu_seconds;

/// Bytes per write(2).
const PIECE: usize = 256 * 1024;

/// Writes a file of so many bytes where the mirrors keep their data, removes it, and returns the
/// CPU seconds that a second such file takes.
///
/// The first one is what makes cold runs comparable. A host may have taken the memory behind a
/// virtual machine's free pages; touching such a page again is charged to whoever does, and can
/// make a write ten times as expensive (2.5 s instead of 0.2 s per GiB were seen). After the first
/// file the pages are there.
pub(crate) fn write_seconds(bytes: u64) -> Result<f64> {
    write(bytes)?;
    let before = cpu_seconds(std::process::id())?;
    write(bytes)?;
    Ok(cpu_seconds(std::process::id())? - before)
}

fn write(bytes: u64) -> Result<()> {
    let mut file = tempfile::tempfile()?;
    let piece = vec![0x5a; PIECE];
    for _ in 0..bytes / PIECE as u64 {
        file.write_all(&piece)?;
    }
    Ok(())
}
