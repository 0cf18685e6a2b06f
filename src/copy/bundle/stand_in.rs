//! Entries by which other tools find images that have one of Docker's types.
//!
//! skopeo finds images of the OCI types alone by their names in a layout. So an image of another type gets a
//! second entry of its name: an OCI index that refers to the image, or to all that its list refers to. The
//! image itself stays as it is; an import ignores the second entry.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::oci::manifest::media_type;
use crate::oci::{Algorithm, Descriptor, Digest, Manifest};

/// The annotation of such an entry.
const STAND_IN: &str = "millpond.stand-in";

/// An index that stands in for an image. `content` is the image's manifest. None for an image of an OCI type,
/// and for one that can't be read.
pub fn stand_in(image: &Descriptor, content: &[u8]) -> Option<(Descriptor, Bytes)> {
    let manifests = match image.media_type.as_str() {
        media_type::DOCKER_MANIFEST => json!([{
            "mediaType": image.media_type,
            "digest": image.digest,
            "size": image.size,
        }]),
        media_type::DOCKER_LIST => {
            let list: Value = serde_json::from_slice(content).ok()?;
            list.get("manifests")?.clone()
        }
        _ => return None,
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": manifests,
    });
    let index = Bytes::from(index.to_string());
    let digest = Digest::of(Algorithm::Sha256, &index);
    let parsed = Manifest::parse(&index).ok()?;
    let mut entry = parsed.descriptor(digest, index.len() as u64);
    let marker = (STAND_IN.to_owned(), image.digest.to_string());
    entry.annotations.extend([marker]);
    Some((entry, index))
}

/// Whether an entry of a bundle's index is such a one.
pub(super) fn is_stand_in(entry: &Descriptor) -> bool {
    entry.annotations.contains_key(STAND_IN)
}
