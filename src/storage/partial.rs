//! What is there of a blob that isn't whole yet, and the small JSON text that says so on disk:
//!
//! ```json
//! {"digest":"sha256:...","upstream":"docker.io","total":1000,"ranges":[[0,400],[900,1000]]}
//! ```
//!
//! Nothing here touches the disk. The text is read as if anybody had written it.

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::oci::{Digest, RangeSet};

/// The longest text that is read, in bytes.
pub(super) const MAX_SIDECAR: u64 = 64 * 1024;

/// Ranges that are kept of one partial; those after them are forgotten, which is never wrong. The
/// text stays below [`MAX_SIDECAR`]: two offsets take at most 44 bytes.
pub const MAX_KEPT_RANGES: usize = 1024;

/// What is there of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// The name of the upstream that it was downloaded from. It is never resumed from another one.
    pub upstream: Arc<str>,
    /// The size of the whole blob, in bytes.
    pub total: u64,
    /// What has been written, all of it below `total`.
    pub ranges: RangeSet,
}

impl Partial {
    /// What of it is kept: the first [`MAX_KEPT_RANGES`] ranges.
    pub(super) fn kept(&self) -> Self {
        let mut ranges = RangeSet::new();
        for range in self.ranges.ranges().iter().take(MAX_KEPT_RANGES) {
            ranges.insert(range.start, range.end);
        }
        Self {
            upstream: Arc::clone(&self.upstream),
            total: self.total,
            ranges,
        }
    }

    /// The end of the last range; 0 when there is none.
    pub(super) fn end(&self) -> u64 {
        self.ranges.ranges().last().map_or(0, |range| range.end)
    }
}

/// Makes what a [`Stage`](super::Stage) has written outlive the process, while the stage goes on.
pub trait Keeper: Debug + Send + Sync + 'static {
    /// Makes everything durable that was written before this call, and then notes that `partial` is
    /// there, in place of what was noted before. Blocks, for as long as the disk takes.
    ///
    /// A partial of the same digest and upstream that nobody has in hand goes: there is at most one. After the
    /// stage was committed or dropped this does nothing and is no error. After it failed to make
    /// something durable, it fails for good; what was noted before stays true.
    fn keep(&self, partial: &Partial) -> Result<(), StoreError>;
}

/// Why a partial can't be taken up.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("a file of it is not there")]
    Missing,
    #[error("its sidecar has more than {MAX_SIDECAR} bytes")]
    TooLong,
    #[error("its sidecar can't be read: {0}")]
    Json(serde_json::Error),
    #[error("its sidecar is about {0}")]
    OtherDigest(Digest),
    #[error("its sidecar names another upstream than before")]
    OtherUpstream,
    #[error("its ranges are empty, out of order, or past the end of the blob")]
    Ranges,
    #[error("its file has {length} bytes; it should have {least} at least and {most} at most")]
    Length { length: u64, least: u64, most: u64 },
    /// The disk failed. The partial may be whole.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sidecar {
    digest: Digest,
    upstream: String,
    total: u64,
    /// Start, and the offset after the end.
    ranges: Vec<(u64, u64)>,
}

pub(super) fn to_json(digest: &Digest, partial: &Partial) -> serde_json::Result<Vec<u8>> {
    let kept = partial.kept();
    let ranges = kept.ranges.ranges().iter();
    serde_json::to_vec(&Sidecar {
        digest: *digest,
        upstream: (*kept.upstream).to_owned(),
        total: kept.total,
        ranges: ranges.map(|range| (range.start, range.end)).collect(),
    })
}

pub(super) fn from_json(text: &[u8], digest: &Digest) -> Result<Partial, Unusable> {
    if text.len() as u64 > MAX_SIDECAR {
        return Err(Unusable::TooLong);
    }
    let sidecar: Sidecar = serde_json::from_slice(text).map_err(Unusable::Json)?;
    if sidecar.digest != *digest {
        return Err(Unusable::OtherDigest(sidecar.digest));
    }
    let mut ranges = RangeSet::new();
    let mut free = 0;
    for (start, end) in sidecar.ranges {
        if start < free || start >= end || end > sidecar.total {
            return Err(Unusable::Ranges);
        }
        ranges.insert(start, end);
        free = end;
    }
    Ok(Partial {
        upstream: sidecar.upstream.into(),
        total: sidecar.total,
        ranges,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha512, b"blob")
    }

    fn partial(total: u64, ranges: RangeSet) -> Partial {
        Partial {
            upstream: "u".into(),
            total,
            ranges,
        }
    }

    fn text(rest: &str) -> Vec<u8> {
        format!(r#"{{"digest":"{}","upstream":"u",{rest}}}"#, digest()).into_bytes()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut ranges = RangeSet::new();
        for (start, end) in [(0, 5), (7, 8), (90, 100)] {
            ranges.insert(start, end);
        }
        let partial = partial(100, ranges);
        let json = to_json(&digest(), &partial).unwrap();
        assert_eq!(json, text(r#""total":100,"ranges":[[0,5],[7,8],[90,100]]"#));
        assert_eq!(from_json(&json, &digest()).unwrap(), partial);
    }

    #[test]
    fn the_longest_text_is_short_enough_to_be_read() {
        let mut ranges = RangeSet::new();
        for number in 0..=2 * MAX_KEPT_RANGES as u64 {
            let end = u64::MAX - number * 2;
            ranges.insert(end - 1, end);
        }
        let total = u64::MAX;
        let json = to_json(&digest(), &partial(total, ranges)).unwrap();
        let read = from_json(&json, &digest()).unwrap();
        assert_eq!(read.ranges.ranges().len(), MAX_KEPT_RANGES);
    }

    #[test]
    fn what_is_not_right_is_refused() {
        let refused = |text: &[u8]| from_json(text, &digest()).unwrap_err();
        for ranges in [
            "[[3,3]]",
            "[[3,2]]",
            "[[0,5],[4,6]]",
            "[[5,6],[0,2]]",
            "[[0,11]]",
            "[[10,11]]",
        ] {
            let error = refused(&text(&format!(r#""total":10,"ranges":{ranges}"#)));
            assert!(matches!(error, Unusable::Ranges), "{ranges}: {error}");
        }
        for rest in [
            r#""total":10"#,
            r#""total":-1,"ranges":[]"#,
            r#""total":10,"ranges":[[0,1,2]]"#,
            r#""total":10,"ranges":[],"more":1"#,
            r#""upstream":"v","total":10,"ranges":[]"#,
        ] {
            let error = refused(&text(rest));
            assert!(matches!(error, Unusable::Json(_)), "{rest}: {error}");
        }
        // A partial of a version that didn't note the upstream.
        let old = format!(r#"{{"digest":"{}","total":10,"ranges":[]}}"#, digest());
        assert!(matches!(refused(old.as_bytes()), Unusable::Json(_)));
        let other = Digest::of(Algorithm::Sha256, b"other");
        let sound = text(r#""total":10,"ranges":[]"#);
        let error = from_json(&sound, &other).unwrap_err();
        assert!(matches!(error, Unusable::OtherDigest(_)), "{error}");
        let mut long = sound;
        long.resize(usize::try_from(MAX_SIDECAR).unwrap() + 1, b' ');
        assert!(matches!(refused(&long), Unusable::TooLong));
        long.pop();
        assert!(from_json(&long, &digest()).is_ok());
    }
}
