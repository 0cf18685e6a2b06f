//! What copying an image takes, and in which order. Pure.
//!
//! Blobs come first, the largest ones at the head, so that the last of them to end isn't the longest.
//! Manifests follow bottom-up: each after all that it refers to. The tag comes last. So a destination never
//! shows an incomplete image.

use std::collections::HashSet;

use bytes::Bytes;

use super::error::CopyError;
use crate::oci::{Declared, Descriptor, Digest, Manifest};

/// Manifests of one image, its platforms and referrers included.
const MAX_MANIFESTS: usize = 4096;
/// Bytes of all manifests of one image: they are in memory while it is copied.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// A manifest as it is stored, byte for byte.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub digest: Digest,
    pub bytes: Bytes,
    pub manifest: Manifest,
}

impl Document {
    /// The manifests that it refers to as parts of the image; not its subject.
    pub(super) fn children(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifest
            .manifests
            .iter()
            .filter(|entry| is_manifest(entry))
    }

    /// The blobs that a registry must have to accept it. Layers that a registry needn't have are left out.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let Manifest {
            config,
            blobs,
            manifests,
            ..
        } = &self.manifest;
        let others = manifests.iter().filter(|entry| !is_manifest(entry));
        let all = config.iter().chain(blobs).chain(others);
        all.filter(|blob| !blob.is_foreign())
    }
}

/// Whether an entry of an index is a manifest. Schema 1 ones count: they are refused when they are read.
fn is_manifest(entry: &Descriptor) -> bool {
    Declared::from_media_type(&entry.media_type) != Declared::Unknown
}

/// All manifests of an image and of what is attached to it, in the order in which they were found: each
/// before its children.
#[derive(Debug, Default)]
pub(super) struct Documents {
    all: Vec<Document>,
    known: HashSet<Digest>,
    bytes: u64,
}

impl Documents {
    /// Adds a manifest that isn't there yet.
    pub(super) fn add(&mut self, document: Document) -> Result<(), CopyError> {
        if self.known.insert(document.digest) {
            self.bytes += document.bytes.len() as u64;
            self.all.push(document);
        }
        if self.all.len() > MAX_MANIFESTS {
            return Err(CopyError::TooLarge("4,096 manifests"));
        }
        if self.bytes > MAX_BYTES {
            return Err(CopyError::TooLarge("8 MiB of manifests"));
        }
        Ok(())
    }

    /// Whether a manifest is there already.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.known.contains(digest)
    }

    /// The manifest that was added at this position.
    pub(super) fn at(&self, position: usize) -> Option<&Document> {
        self.all.get(position)
    }

    /// Manifests that were added.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// What has to be copied, in order.
    pub(super) fn plan(self) -> Plan {
        let mut blobs: Vec<Descriptor> = Vec::new();
        let mut seen = HashSet::new();
        for blob in self.all.iter().flat_map(Document::blobs) {
            if seen.insert(blob.digest) {
                blobs.push(blob.clone());
            }
        }
        blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size));
        let mut manifests = self.all;
        // A child is found after its parent, unless an earlier one refers to it, too.
        order(&mut manifests);
        Plan { blobs, manifests }
    }
}

/// Puts each manifest after those that it refers to, and otherwise later ones first.
fn order(documents: &mut Vec<Document>) {
    let mut waiting = std::mem::take(documents);
    waiting.reverse();
    let mut left: HashSet<Digest> = waiting.iter().map(|document| document.digest).collect();
    while !waiting.is_empty() {
        let before = waiting.len();
        let (ready, others) = waiting.into_iter().partition(|document| {
            !document
                .children()
                .any(|child| left.contains(&child.digest))
        });
        waiting = others;
        for document in &ready {
            left.remove(&document.digest);
        }
        documents.extend::<Vec<_>>(ready);
        // Digests can't form a circle; without one, some document is always ready.
        if waiting.len() == before {
            documents.append(&mut waiting);
        }
    }
}

/// What has to be copied.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Each once, the largest first.
    pub blobs: Vec<Descriptor>,
    /// Each after those that it refers to.
    pub manifests: Vec<Document>,
}

impl Plan {
    /// Of all blobs.
    pub(super) fn bytes(&self) -> u64 {
        self.blobs
            .iter()
            .fold(0, |sum, blob| sum.saturating_add(blob.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use serde_json::{Value, json};

    fn document(value: &Value) -> Document {
        let bytes = Bytes::from(value.to_string());
        Document {
            digest: Digest::of(Algorithm::Sha256, &bytes),
            manifest: Manifest::parse(&bytes).unwrap(),
            bytes,
        }
    }

    fn blob(name: &str, size: u64) -> Value {
        let digest = Digest::of(Algorithm::Sha256, name.as_bytes()).to_string();
        json!({"mediaType": "application/x", "digest": digest, "size": size})
    }

    fn image(layers: &[Value]) -> Document {
        let config = blob("config", 5);
        document(&json!({"schemaVersion": 2, "config": config, "layers": layers}))
    }

    fn index(children: &[&Document]) -> Document {
        let entries = children.iter().map(|child| {
            let kind = child.manifest.media_type.as_str();
            json!({"mediaType": kind, "digest": child.digest.to_string(), "size": child.bytes.len()})
        });
        let entries: Vec<_> = entries.collect();
        document(&json!({"schemaVersion": 2, "manifests": entries}))
    }

    #[test]
    fn each_blob_comes_once_and_the_largest_first() {
        let foreign = json!({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar",
            "digest": blob("f", 1)["digest"], "size": 99});
        let one = image(&[blob("a", 10), blob("b", 30), foreign]);
        let other = image(&[blob("b", 30), blob("c", 20)]);
        let mut documents = Documents::default();
        for document in [index(&[&one, &other]), one, other] {
            documents.add(document).unwrap();
        }
        let plan = documents.plan();
        let sizes: Vec<_> = plan.blobs.iter().map(|blob| blob.size).collect();
        assert_eq!(sizes, [30, 20, 10, 5]);
        assert_eq!(plan.bytes(), 65);
    }

    #[test]
    fn manifests_come_after_all_that_they_refer_to() {
        let one = image(&[blob("a", 1)]);
        let other = image(&[blob("b", 2)]);
        let inner = index(&[&one]);
        let outer = index(&[&one, &inner, &other]);
        let expected = outer.digest;
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
            let all = [&outer, &one, &inner, &other];
            let mut documents = Documents::default();
            for position in order {
                documents.add(all[position].clone()).unwrap();
                documents.add(all[position].clone()).unwrap();
            }
            let manifests = documents.plan().manifests;
            assert_eq!(manifests.len(), 4);
            for (position, manifest) in manifests.iter().enumerate() {
                for child in manifest.children() {
                    let mut before = manifests[..position].iter();
                    assert!(before.any(|before| before.digest == child.digest));
                }
            }
            assert_eq!(manifests[3].digest, expected);
        }
    }

    #[test]
    fn the_memory_of_manifests_is_bounded() {
        let mut documents = Documents::default();
        let large = |n: u32| {
            let text = "x".repeat(3 << 20);
            document(
                &json!({"schemaVersion": 2, "config": blob("c", 1), "layers": [],
                "annotations": {"n": n.to_string(), "text": text}}),
            )
        };
        documents.add(large(1)).unwrap();
        documents.add(large(2)).unwrap();
        assert!(matches!(
            documents.add(large(3)),
            Err(CopyError::TooLarge(_))
        ));
    }
}
