//! Copies images between registries, and between registries and files (`millpond copy`).
//!
//! ```text
//! Job ─► engine ─ source: manifests, referrers ─► plan: blobs, the largest first; manifests bottom-up
//!          ├─ upload (registry) or layout (files): each blob that the destination lacks
//!          │     source ─ fetch: resumes, hashes ─ spool: memory, a bounded file ─ PATCH, PUT
//!          └─ target: manifests, then the tag
//! ```
//!
//! A registry is asked by `upstream`; `host` bounds what happens there at a time, and decides when something
//! is tried again. `journal` remembers uploads for the next run. `location` reads what people write,
//! `platform` selects, `events` tell of the progress.
//!
//! What it never does: change bytes (but for an index of which only some platforms are copied, which is said);
//! show an incomplete image at the destination; replace a tag before all of its image is there; hold more than
//! a few MiB of a blob in memory. Source: distribution-spec 1.1.

pub mod bundle;
mod docker_archive;
mod engine;
mod error;
mod events;
mod fetch;
mod files;
mod host;
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

pub use engine::{CopySettings, Engine, Job};
pub use error::CopyError;
pub use events::{BlobEnd, BlobStep, Copied, Event, Observer};
pub use files::{FileImage, ImageFiles, open, parts_of};
pub use host::Host;
pub use journal::Journal;
pub use location::{FilesForm, FilesLocation, HUB, Location, LocationError, RegistryLocation};
pub use platform::{Platform, PlatformError};
pub use source::{RegistrySource, Source, Wanted};
pub use spool::SpoolSettings;
pub use target::{LayoutTarget, RegistryTarget, Target};
