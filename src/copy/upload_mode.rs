//! In which way a registry takes the bytes of an upload. Pure.
//!
//! One PATCH with everything is what Docker sends, and what most registries take. Others, or proxies in front
//! of them, bound the size of a request, or know no PATCH.

/// The first size of chunks, in bytes, unless the registry wants larger ones.
const CHUNK: u64 = 16 * 1024 * 1024;
/// No smaller chunks are tried.
const MIN_CHUNK: u64 = 256 * 1024;
/// The largest chunk that a registry may demand.
const MAX_CHUNK: u64 = 1 << 30;

/// How the bytes of an upload are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UploadMode {
    /// One PATCH with all that is missing.
    Streamed,
    /// PATCH requests of so many bytes.
    Chunked(u64),
    /// With the PUT that ends the upload.
    Whole,
}

impl UploadMode {
    /// What is tried after this was refused; None if nothing is left.
    pub(super) fn next(self, status: u16, min_chunk: u64) -> Option<Self> {
        let no_patch = matches!(status, 404 | 405 | 501);
        match self {
            Self::Streamed if no_patch => Some(Self::Whole),
            Self::Streamed => Some(Self::Chunked(CHUNK.max(min_chunk).min(MAX_CHUNK))),
            Self::Chunked(size) if status == 413 && size / 2 >= MIN_CHUNK.max(min_chunk) => {
                Some(Self::Chunked(size / 2))
            }
            Self::Chunked(_) => Some(Self::Whole),
            Self::Whole => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_parts_are_tried_and_then_everything_at_once() {
        use UploadMode::{Chunked, Streamed, Whole};
        for (mode, status, min_chunk, next) in [
            (Streamed, 413, 0, Some(Chunked(CHUNK))),
            (Streamed, 416, 32 << 20, Some(Chunked(32 << 20))),
            (Streamed, 405, 0, Some(Whole)),
            (Streamed, 501, 0, Some(Whole)),
            (Chunked(CHUNK), 413, 0, Some(Chunked(CHUNK / 2))),
            (Chunked(CHUNK), 413, CHUNK, Some(Whole)),
            (Chunked(MIN_CHUNK), 413, 0, Some(Whole)),
            (Chunked(CHUNK), 400, 0, Some(Whole)),
            (Whole, 413, 0, None),
        ] {
            assert_eq!(mode.next(status, min_chunk), next, "{mode:?} {status}");
        }
    }
}
