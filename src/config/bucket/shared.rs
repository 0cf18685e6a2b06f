//! `storage.shared`: how the bucket is used.

use std::time::Duration;

/// How the bucket is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedStorage {
    /// How long the headers of a response may take, 100 ms to 1 min.
    pub timeout: Duration,
    pub redirect: RedirectMode,
    /// With [`RedirectMode::Busy`], the number of bodies in transfer above which clients are redirected; at
    /// least 1.
    pub redirect_above: usize,
    /// Whether clients are also redirected to content that not every caller may pull.
    pub redirect_private: bool,
    /// How long unused content stays; never 0. None is forever.
    pub ttl: Option<Duration>,
    /// Of all blobs together, in bytes; never 0. None is no limit.
    pub max_size: Option<u64>,
}

/// Which requests for blobs are answered with a signed URL of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectMode {
    Never,
    /// Those that come while many bodies are sent.
    Busy,
    Always,
}
