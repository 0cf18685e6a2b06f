//! Whole images on their way from one place to another, ahead of the clients that will pull them.
//!
//! [`image`] reads names of images as people write them, [`selection`] selects images of an index. [`warm`]
//! fetches images into the cache, through the mirror, as a client's pull does it. [`bundle`] has files that
//! carry images into networks without a way to the upstreams; [`import`] takes over what they hold.
//!
//! What must never happen: an image counts as complete of which something isn't stored.

pub mod bundle;
pub mod image;
pub mod import;
pub mod selection;
pub mod warm;
