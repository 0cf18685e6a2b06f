//! Whole images on their way from one place to another: copies between registries and files
//! (`millpond copy`), and images that are brought into the cache ahead of the clients that will pull them.
//!
//! ```text
//! Job ─► engine ─ source: manifests, referrers ─► plan: blobs, the largest first; manifests bottom-up
//!          ├─ upload (registry) or layout (files): each blob that the destination lacks
//!          │     source ─ fetch: resumes, hashes ─ spool: memory, a bounded file ─ PATCH, PUT
//!          └─ target: manifests, then the tag
//! ```
//!
//! A copy has no part in the mirror: `upstream` asks the registries; `host` bounds what happens at one of
//! them at a time, and decides when something is tried again; `journal` remembers uploads for the next run.
//! `files` reads images in files: a `layout`, a [`bundle`], or a `docker_archive`. `location` reads what
//! people write, `events` tell of the progress.
//!
//! [`warm`] fetches images into the cache, through the mirror, as a client's pull does it. [`bundle`] has files
//! that carry images into networks without a way to the upstreams; [`import`] takes over what they hold.
//! [`image`] reads names of images, `platform` selects images of an index, for both.
//!
//! What must never happen: bytes change (but for an index of which only some platforms are copied, which is
//! said); a destination shows an image of which something isn't stored; a tag is replaced before all of its
//! image is there; more than a few MiB of a blob are in memory. Source: distribution-spec 1.1.

pub mod bundle;
mod docker_archive;
mod engine;
mod error;
mod events;
mod fetch;
mod files;
mod host;
pub mod image;
pub mod import;
mod journal;
mod layout;
mod location;
mod plan;
mod platform;
mod source;
mod spool;
mod target;
mod upload;
mod upload_mode;
pub mod warm;

pub use engine::{CopySettings, Engine, Job};
pub use error::CopyError;
pub use events::{BlobEnd, BlobStep, Copied, Event, Observer};
pub use files::{FileImage, ImageFiles, parts_of};
pub use host::Host;
pub use journal::Journal;
pub use location::{FilesForm, FilesLocation, HUB, Location, LocationError, RegistryLocation};
pub use platform::{Platform, PlatformError};
pub use source::{FileSource, RegistrySource, Source, Wanted};
pub use spool::SpoolSettings;
pub use target::{LayoutTarget, RegistryTarget, Target};
