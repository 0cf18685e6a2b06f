//! What is to be imported from a bundle, and in which order.

use std::collections::HashSet;

use super::reader::BundleReader;
use super::stand_in::is_stand_in;
use super::{BundleError, IMAGE_NAME, REF_NAME};
use crate::oci::{Descriptor, Digest};

/// The most manifests of one image, and how deep indexes may be nested.
const MAX_MANIFESTS: usize = 1_000;
const MAX_DEPTH: usize = 8;
/// The most manifests and blobs of all images together, each counted for each image that has it: they are
/// in memory.
const MAX_PARTS: usize = if cfg!(test) { 3_000 } else { 300_000 };

/// An image of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundledImage {
    /// As people write it.
    pub name: String,
    pub root: Digest,
    /// The manifests that the bundle has, each after those that it refers to.
    pub manifests: Vec<Digest>,
    /// What they refer to, each once. The bundle may lack some of it.
    pub blobs: Vec<BundledBlob>,
}

/// A blob of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BundledBlob {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// The images of a bundle. `name` is that of the one image that has none.
pub fn images(reader: &BundleReader, name: Option<&str>) -> Result<Vec<BundledImage>, BundleError> {
    let (mut images, mut attached, mut unnamed) = (Vec::new(), Vec::new(), Vec::new());
    let (entries, mut budget) = (reader.entries().iter(), MAX_PARTS);
    for entry in entries.filter(|entry| !is_stand_in(entry)) {
        match name_of(entry) {
            Some(name) if name.contains(char::is_control) => {
                return Err(reader.unusable("the name of an image has control characters"));
            }
            Some(name) => images.push(image(reader, name.to_owned(), entry.digest, &mut budget)?),
            None => match reader.manifest(&entry.digest)?.subject {
                Some(subject) => attached.push((entry.digest, subject.digest)),
                None => unnamed.push(entry.digest),
            },
        }
    }
    match (unnamed.as_slice(), name) {
        ([], None) => {}
        ([root], Some(name)) => images.push(image(reader, name.to_owned(), *root, &mut budget)?),
        ([], Some(_)) => return Err(reader.unusable("each of its images has a name of its own")),
        ([_], None) => {
            return Err(reader.unusable("its image has no name; give it one with --name"));
        }
        _ => return Err(reader.unusable("several of its images have no name")),
    }
    for image in &mut images {
        attach(reader, image, &attached, &mut budget)?;
    }
    Ok(images)
}

/// The full name of an entry; a tag alone is none.
fn name_of(entry: &Descriptor) -> Option<&str> {
    let names = [IMAGE_NAME, REF_NAME].map(|key| entry.annotations.get(key));
    let mut names = names.into_iter().flatten().map(String::as_str);
    names.find(|name| name.contains(['/', ':']))
}

fn image(
    reader: &BundleReader,
    name: String,
    root: Digest,
    budget: &mut usize,
) -> Result<BundledImage, BundleError> {
    let mut image = BundledImage {
        name,
        root,
        manifests: Vec::new(),
        blobs: Vec::new(),
    };
    let mut seen = Seen {
        digests: HashSet::new(),
        budget,
    };
    add(reader, &mut image, root, &mut seen, 0)?;
    Ok(image)
}

/// Adds what is attached to an image, and to what is attached.
fn attach(
    reader: &BundleReader,
    image: &mut BundledImage,
    attached: &[(Digest, Digest)],
    budget: &mut usize,
) -> Result<(), BundleError> {
    let blobs = image.blobs.iter().map(|blob| blob.digest);
    let digests = image.manifests.iter().copied().chain(blobs).collect();
    let mut seen = Seen { digests, budget };
    // The root comes last, so that what has its tag is complete.
    let root = image.manifests.pop();
    loop {
        let is_next = |(digest, subject): &&(Digest, Digest)| {
            seen.digests.contains(subject) && !seen.digests.contains(digest)
        };
        let Some((next, _)) = attached.iter().find(is_next) else {
            break;
        };
        add(reader, image, *next, &mut seen, 0)?;
    }
    image.manifests.extend(root);
    Ok(())
}

/// The parts of an image that have been found.
struct Seen<'a> {
    digests: HashSet<Digest>,
    /// How many more there may be, of this image and all others.
    budget: &'a mut usize,
}

impl Seen<'_> {
    /// Whether a part is new.
    fn insert(&mut self, reader: &BundleReader, digest: Digest) -> Result<bool, BundleError> {
        let is_new = self.digests.insert(digest);
        let left = self.budget.checked_sub(is_new.into());
        *self.budget = left.ok_or_else(|| reader.unusable("its images have too many parts"))?;
        Ok(is_new)
    }
}

/// Adds a manifest, after what it refers to.
fn add(
    reader: &BundleReader,
    image: &mut BundledImage,
    digest: Digest,
    seen: &mut Seen<'_>,
    depth: usize,
) -> Result<(), BundleError> {
    if !seen.insert(reader, digest)? {
        return Ok(());
    }
    if depth > MAX_DEPTH || image.manifests.len() >= MAX_MANIFESTS {
        return Err(reader.unusable("an image has too many manifests"));
    }
    let manifest = reader.manifest(&digest)?;
    for child in &manifest.manifests {
        // Those of other platforms may be missing.
        if reader.size(&child.digest).is_some() {
            add(reader, image, child.digest, seen, depth + 1)?;
        }
    }
    for blob in manifest.config.iter().chain(&manifest.blobs) {
        if !blob.is_foreign() && seen.insert(reader, blob.digest)? {
            image.blobs.push(BundledBlob {
                digest: blob.digest,
                size: blob.size,
            });
        }
    }
    image.manifests.push(digest);
    Ok(())
}
