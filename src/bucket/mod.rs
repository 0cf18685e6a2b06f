//! The bucket that replicas share: a durable second tier of the cache on an object store.
//!
//! ```text
//! mirror ── content, tag ──► reading ─┐
//! mirror ── upload ──► queue ──► uploads ──► client ──► the store
//!                                            └ http: deadlines, counts
//! ```
//!
//! Its objects are the files of the reference registry ([`keys`]); millpond's own are below `millpond/`.
//! [`reading`] asks for content and for the link that lets a repository have it. [`queue`] holds what was
//! committed here and isn't in the bucket yet, over restarts, too; [`uploads`] writes it: content first, then
//! links, then tags. A bucket that fails is left alone for a while ([`circuit`]): it costs pulls nothing but
//! a request to the upstream.
//!
//! What must never happen: content is served that wasn't verified; a link is written before its content.

mod circuit;
mod client;
mod error;
mod http;
mod keys;
mod reading;

use std::sync::Arc;
use std::time::Duration;

use circuit::Circuit;
use client::Objects;
pub use error::{BucketError, BucketSetupError};
pub use reading::SharedContent;

use crate::metrics::BucketMetrics;

/// How long the whole of a small object may take.
const SMALL_TIME: Duration = Duration::from_secs(30);

/// The bucket.
#[derive(Debug)]
pub struct Bucket {
    objects: Objects,
    circuit: Circuit,
    metrics: Arc<BucketMetrics>,
}

impl Bucket {
    /// Whether it has failed and hasn't answered since.
    pub fn is_missing(&self) -> bool {
        self.circuit.is_open()
    }
}
