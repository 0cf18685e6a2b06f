//! Lists the objects of content, a 256th at a time.

use std::collections::BTreeMap;

use futures_util::TryStreamExt as _;

use super::patience::patiently;
use super::rows::{Row, Rows};
use crate::bucket::client::Objects;
use crate::bucket::day::Day;
use crate::bucket::error::BucketError;
use crate::bucket::{keys, names};
use crate::oci::Algorithm;

/// All rows, and how many objects were something else.
pub(super) async fn list(objects: &Objects) -> Result<(Rows, u64), BucketError> {
    let (mut rows, mut uncounted) = (Rows::new(), 0);
    let longer = keys::blobs(Algorithm::Sha512, None);
    let (listed, mut foreign) = patiently(|| below(objects, longer.clone())).await?;
    let mut long: BTreeMap<u8, Vec<Row>> = BTreeMap::new();
    for row in listed {
        long.entry(row.digest().first_byte()).or_default().push(row);
    }
    // Where there are too many, it isn't always the same parts that are left out.
    let begin = Day::of(objects.now()).turn();
    for step in 0..=u8::MAX {
        let first = begin.wrapping_add(step);
        let prefix = keys::blobs(Algorithm::Sha256, Some(first));
        let (mut part, others) = patiently(|| below(objects, prefix.clone())).await?;
        foreign += others;
        part.extend(long.remove(&first).into_iter().flatten());
        uncounted += u32::from(!rows.fill(first, part));
    }
    if uncounted > 0 {
        tracing::warn!(
            parts = uncounted,
            "the bucket has too many objects for one sweep; these 256ths are left for another day"
        );
    }
    Ok((rows, foreign))
}

async fn below(objects: &Objects, prefix: String) -> Result<(Vec<Row>, u64), BucketError> {
    let (mut rows, mut foreign) = (Vec::new(), 0);
    let mut listed = objects.list(&prefix);
    while let Some(object) = listed.try_next().await? {
        match names::blob(&object.key) {
            Some(digest) => rows.push(Row::new(&digest, object.size, object.modified)),
            None => foreign += 1,
        }
    }
    Ok((rows, foreign))
}
