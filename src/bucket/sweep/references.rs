//! What manifests in use refer to is in use, too: nodes that have the layers of an image ask for its manifest
//! only, and an index may be all that anybody asks for.
//!
//! The sweep reads the manifests themselves, because no replica knows the digests of what it has evicted.
//! That is a GET for each manifest that stays, on days on which something goes. What a hosted manifest refers
//! to is hosted itself.

use std::collections::BinaryHeap;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::patience::patiently;
use super::rows::{Found, HOSTED, MANIFEST, Place, READ, Rows};
use crate::bucket::client::{Objects, Small};
use crate::bucket::day::Day;
use crate::bucket::error::BucketError;
use crate::bucket::keys;
use crate::oci::manifest::MAX_MANIFEST;
use crate::oci::{Digest, Manifest};

/// Manifests that are read at a time.
const READERS: usize = 8;

/// Takes what the manifests refer to that were used since a day for used on the same day. The most recently
/// used are read first, so that each is read once.
pub(super) async fn follow(
    objects: &Objects,
    rows: &mut Rows,
    since: Day,
) -> Result<(), BucketError> {
    let mut heap = BinaryHeap::new();
    for part in rows.parts() {
        for (place, row) in part {
            if row.facts.any(MANIFEST) && row.last >= since {
                heap.push((row.last, place));
            }
        }
        tokio::task::yield_now().await;
    }
    while let Some(day) = heap.peek().map(|(day, _)| *day) {
        let manifests = next(&mut heap, rows, day);
        let read = manifests.into_iter();
        let mut read: FuturesUnordered<_> = read.map(|digest| read_one(objects, digest)).collect();
        while let Some(children) = read.next().await {
            for child in children? {
                raise(&mut heap, rows, &child, day);
            }
        }
    }
    Ok(())
}

/// Some manifests that were last used on this day and weren't read yet.
fn next(heap: &mut BinaryHeap<(Day, Place)>, rows: &Rows, day: Day) -> Vec<Digest> {
    let mut digests = Vec::new();
    while digests.len() < READERS && heap.peek().is_some_and(|(next, _)| *next == day) {
        let place = heap.pop().map(|(_, place)| place);
        let row = place.and_then(|place| rows.get(place));
        let row = row.filter(|row| !row.facts.any(READ | HOSTED));
        let row = row.filter(|row| row.size <= MAX_MANIFEST);
        if let Some(row) = row {
            row.facts.add(READ);
            digests.push(row.digest());
        }
    }
    digests
}

fn raise(heap: &mut BinaryHeap<(Day, Place)>, rows: &mut Rows, child: &Digest, day: Day) {
    if let Found::At(place) = rows.find(child)
        && let Some(row) = rows.get_mut(place)
        && row.last < day
    {
        row.used(day);
        if row.facts.any(MANIFEST) {
            heap.push((day, place));
        }
    }
}

async fn read_one(objects: &Objects, digest: Digest) -> Result<Vec<Digest>, BucketError> {
    patiently(|| children(objects, &digest)).await
}

/// What a manifest refers to. Nothing where it isn't one: then nobody can pull it either.
async fn children(objects: &Objects, digest: &Digest) -> Result<Vec<Digest>, BucketError> {
    let key = keys::blob(digest);
    let bytes = match objects.get_small(&key, MAX_MANIFEST, None).await {
        Ok(Small::Whole(bytes, _)) => bytes,
        Ok(Small::Missing | Small::Unchanged) | Err(BucketError::TooLarge { .. }) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let is_right = Digest::of(digest.algorithm(), &bytes) == *digest;
    let manifest = is_right.then(|| Manifest::parse(&bytes).ok()).flatten();
    let Some(manifest) = manifest else {
        tracing::warn!(%digest, "the bucket links this as a manifest, which it isn't");
        return Ok(Vec::new());
    };
    let children = manifest.config.iter().chain(&manifest.blobs);
    let children = children.chain(&manifest.manifests);
    Ok(children.map(|child| child.digest).collect())
}
