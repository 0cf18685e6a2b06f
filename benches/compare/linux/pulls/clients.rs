//! The clients: blocking threads. Those that are few look at every byte they get; those that are
//! many let the kernel discard it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::super::common::content::{self, PIECE};
use super::super::common::pace::Pace;
use super::super::common::together;
use super::super::common::upstream::{Blob, REPOSITORY, Upstream};
use super::super::common::wire::{Client, get};

/// How many layers of an image are fetched at a time: as dockerd and containerd do.
const LAYERS_AT_ONCE: usize = 3;
/// How many workers fetch chunks of a blob at a time.
const WORKERS: usize = 8;
/// Bytes that a client with a rate of its own takes at once.
const GULP: u64 = 1 << 20;

/// Fetches a blob and compares it; the seconds it took.
pub(crate) fn whole(addr: SocketAddr, blob: &Blob) -> Result<f64> {
    let started = Instant::now();
    let mut answer = get(addr, &blob.path())?;
    ensure!(answer.left() == blob.bytes, "a body of the wrong length");
    compare(&mut answer, blob, 0, blob.bytes)?;
    Ok(started.elapsed().as_secs_f64())
}

/// Fetches a blob at no more than `rate` bytes per second and discards it; the seconds to the first byte.
pub(crate) fn discarded(addr: SocketAddr, blob: &Blob, rate: u64) -> Result<f64> {
    let pace = Pace::new(rate);
    let started = Instant::now();
    let mut answer = get(addr, &blob.path())?;
    answer.wait_first_byte()?;
    let first_byte = started.elapsed().as_secs_f64();
    ensure!(answer.left() == blob.bytes, "a body of the wrong length");
    while answer.left() > 0 {
        pace.spend(answer.discard(GULP)?);
    }
    Ok(first_byte)
}

/// The seconds that an empty answer takes: what connecting, a request and the scheduler cost on this
/// machine at this moment.
pub(crate) fn ping(addr: SocketAddr) -> Result<f64> {
    let started = Instant::now();
    get(addr, "/v2/")?.read_all()?;
    Ok(started.elapsed().as_secs_f64())
}

/// What a client reads in a manifest.
#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
}

/// Pulls the upstream's image as clients do: the manifest by its tag, the config, then the layers,
/// three at a time. Returns the seconds it took.
pub(crate) fn image(addr: SocketAddr, upstream: &Upstream) -> Result<f64> {
    let started = Instant::now();
    let manifest = get(addr, &format!("/v2/{REPOSITORY}/manifests/latest"))?.read_all()?;
    let manifest: Manifest = serde_json::from_slice(&manifest)?;
    let config = format!("/v2/{REPOSITORY}/blobs/{}", manifest.config.digest);
    get(addr, &config)?.read_all()?;
    let next = AtomicUsize::new(0);
    let fetch = || {
        while let Some(layer) = manifest.layers.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut blobs = upstream.blobs().iter();
            let blob = blobs
                .find(|blob| blob.digest == layer.digest)
                .context("the manifest names an unknown layer")?;
            whole(addr, blob)?;
        }
        Ok(())
    };
    together([&fetch; LAYERS_AT_ONCE])?;
    Ok(started.elapsed().as_secs_f64())
}

/// Fetches a blob as containerd 2.x does: workers that each take the next chunk, ask for all from
/// its start on, hang up when they have it, and go on. Returns the seconds it took.
pub(crate) fn ranged(addr: SocketAddr, blob: &Blob, chunk: u64) -> Result<f64> {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let fetch = || {
        loop {
            let offset = next.fetch_add(chunk, Ordering::Relaxed);
            if offset >= blob.bytes {
                return Ok(());
            }
            let mut client = Client::connect(addr)?;
            client.get_from(&blob.path(), offset)?;
            let left = blob.bytes - offset;
            ensure!(client.left() == left, "a range of the wrong length");
            compare(&mut client, blob, offset, chunk.min(left))?;
        }
    };
    together([&fetch; WORKERS])?;
    Ok(started.elapsed().as_secs_f64())
}

/// Reads `length` bytes that must be those of `blob` from `offset` on, which is where a piece
/// begins.
fn compare(answer: &mut Client, blob: &Blob, offset: u64, length: u64) -> Result<()> {
    let (mut got, mut wanted) = (vec![0; PIECE], vec![0; PIECE]);
    let (mut number, mut left) = (offset / PIECE as u64, length);
    while left > 0 {
        let size = usize::try_from(left)?.min(PIECE);
        got.truncate(size);
        wanted.truncate(size);
        answer
            .read_exact(&mut got)
            .with_context(|| format!("{left} bytes before the end of {length} from {offset}"))?;
        content::fill(blob.seed, number, &mut wanted);
        ensure!(
            got == wanted,
            "wrong bytes in piece {number} of {}",
            blob.digest
        );
        number += 1;
        left -= size as u64;
    }
    Ok(())
}
