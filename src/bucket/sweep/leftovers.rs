//! What nobody needs any more, beside content: old uses, marks, and uploads that were never finished.

use std::time::{Duration, SystemTime};

use super::patience::patiently;
use crate::bucket::client::Objects;
use crate::bucket::error::BucketError;
use crate::bucket::{keys, names};
use crate::oci::Algorithm;

/// How long an upload in parts may take.
const UPLOADS_STAY: Duration = Duration::from_hours(24);

/// Removes objects of our own.
pub(super) async fn remove(objects: &Objects, keys: &[String]) -> Result<(), BucketError> {
    for key in keys {
        patiently(|| objects.delete(key)).await?;
    }
    Ok(())
}

/// Ends the uploads of content that began more than a day ago; how many. Only S3 lists them: the others
/// remove them by themselves, or by a rule of the bucket.
pub(in crate::bucket) async fn end_uploads(
    objects: &Objects,
    now: SystemTime,
) -> Result<u64, BucketError> {
    let mut ended = 0;
    for algorithm in Algorithm::ALL {
        let prefix = keys::blobs(algorithm, None);
        let uploads = patiently(|| objects.unfinished(&prefix)).await?;
        for upload in uploads {
            let age = now.duration_since(upload.begun).unwrap_or_default();
            if age >= UPLOADS_STAY && names::blob(&upload.key).is_some() {
                patiently(|| objects.abort_parts(&upload.parts)).await?;
                ended += 1;
            }
        }
    }
    Ok(ended)
}
