//! What writing a blob to a file costs by itself.

use std::io::Write;

use anyhow::Result;

use super::proc::cpu_seconds;

/// How many files' worth of memory is made present. One wasn't enough for steady figures: a cold
/// run also takes pages for socket buffers, and the kernel's order of reuse is its own.
const PRESENT: u64 = 3;
/// Bytes per write(2).
const PIECE: usize = 256 * 1024;

/// Writes a file of so many bytes where the mirrors keep their data, removes it, and returns the
/// CPU seconds that it took.
///
/// Before it, larger files are written and removed, and they are what makes cold runs comparable.
/// A host may have taken the memory behind a virtual machine's free pages; touching such a page
/// again is charged to whoever does, and can make a write ten times as expensive (2.5 s instead of
/// 0.2 s per GiB were seen). After those files the pages are there.
pub(crate) fn write_seconds(bytes: u64) -> Result<f64> {
    for _ in 0..2 {
        write(bytes * PRESENT)?;
    }
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
