//! The vocabulary of all modules: names, digests, references, routes, ranges, manifests, patterns
//! of names and the error document of the distribution specification.
//!
//! Pure: no I/O, no clock, no runtime. Its parsers turn text from the network into types that can
//! only hold valid values, and no module builds a path or a URL from anything else.
//!
//! Sources: OCI distribution-spec 1.1, OCI image-spec 1.1, Docker Registry HTTP API V2, RFC 9110.

pub mod accept;
pub mod action;
mod bytes;
pub mod digest;
mod digits;
pub mod error;
pub mod manifest;
pub mod media_type;
pub mod name;
mod page;
pub mod pattern;
mod push;
pub mod range;
pub mod range_set;
mod route_error;
mod upload;

pub use accept::Accept;
pub use action::{Action, Route};
pub use digest::{Algorithm, Digest, Hasher};
pub use digits::digits;
pub use error::{Classified, ErrorCode, ErrorKind, error_document, error_document_of};
pub use manifest::{Descriptor, Manifest};
pub use media_type::{Declared, ManifestType};
pub use name::{Reference, RepoName, Tag};
pub use page::{MAX_PAGE, Page};
pub use pattern::{ImagePattern, Pattern};
pub use push::Push;
pub use range::{ByteRange, Requested};
pub use range_set::RangeSet;
pub use route_error::RouteError;
pub use upload::{UploadId, UploadIdError};
