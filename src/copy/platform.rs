//! Which manifests of an index `--platform` selects. Pure.
//!
//! Source: image-spec image-index.md; BuildKit's attestation storage.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::Document;
use crate::oci::{Algorithm, Digest, Manifest};

/// The annotation with which BuildKit names the manifest that an attestation is about.
const ATTESTED: &str = "vnd.docker.reference.digest";

/// `os/architecture[/variant]`, as Docker writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    os: String,
    architecture: String,
    /// None selects each variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

/// Why a text isn't a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write os/architecture[/variant], such as linux/arm64 or linux/arm/v7")]
pub struct PlatformError;

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let mut parts = text.split('/').map(|part| {
            let is_name = !part.is_empty() && part.chars().all(known);
            is_name.then(|| part.to_owned())
        });
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        match (os.flatten(), architecture.flatten(), parts.next()) {
            (Some(os), Some(architecture), None) if variant != Some(None) => Ok(Self {
                os,
                architecture,
                variant: variant.flatten(),
            }),
            _ => Err(PlatformError),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Platform {
    /// Whether an image for another platform is meant. 64-bit ARM has one variant, which is often left out.
    fn selects(&self, image: &Self) -> bool {
        let variant = |of: &Self| match of.variant.as_deref() {
            Some("v8") if of.architecture == "arm64" => String::new(),
            variant => variant.unwrap_or_default().to_owned(),
        };
        self.os == image.os
            && self.architecture == image.architecture
            && (self.variant.is_none() || variant(self) == variant(image))
    }
}

/// What is copied of an image.
#[derive(Debug)]
pub(super) enum Selected {
    /// All of it, because it is no index or nothing is selected.
    All,
    /// One manifest of the index, instead of it.
    One(Digest),
    /// An index with some of the manifests, whose digest is another one than that of the whole.
    Sparse(Box<Document>),
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: Digest,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The images of an index that are of one of the platforms. Empty for what isn't an index.
pub(super) fn matching(index: &[u8], platforms: &[Platform]) -> Vec<Digest> {
    let index: Option<Index> = serde_json::from_slice(index).ok();
    let images = index.into_iter().flat_map(|index| index.manifests);
    let is_selected = |image: &Entry| {
        let platform = image.platform.as_ref();
        platform.is_some_and(|own| platforms.iter().any(|platform| platform.selects(own)))
    };
    images
        .filter(is_selected)
        .map(|image| image.digest)
        .collect()
}

/// What is copied of `root`. An error names the platform that the index lacks.
pub(super) fn select(root: &Document, platforms: &[Platform]) -> Result<Selected, String> {
    if platforms.is_empty() || root.manifest.manifests.is_empty() {
        return Ok(Selected::All);
    }
    // It was parsed before; only platforms could be malformed.
    let index: Index = serde_json::from_slice(&root.bytes).map_err(|error| error.to_string())?;
    let mut chosen = Vec::new();
    for platform in platforms {
        let mut entries = index.manifests.iter();
        let found = entries.find(|entry| {
            let of_entry = entry.platform.as_ref();
            of_entry.is_some_and(|entry| platform.selects(entry))
        });
        chosen.push(found.ok_or_else(|| platform.to_string())?.digest);
    }
    chosen.dedup();
    if let [one] = *chosen {
        return Ok(Selected::One(one));
    }
    let attests = |entry: &&Entry| {
        let attested = entry.annotations.get(ATTESTED);
        attested.is_some_and(|attested| chosen.iter().any(|one| one.to_string() == *attested))
    };
    let attestations = index.manifests.iter().filter(attests);
    let attestations: Vec<_> = attestations.map(|entry| entry.digest).collect();
    chosen.extend(attestations);
    if index
        .manifests
        .iter()
        .all(|entry| chosen.contains(&entry.digest))
    {
        return Ok(Selected::All);
    }
    sparse(root, &chosen).map(Selected::Sparse)
}

/// The index with these entries only, and all its other fields.
fn sparse(root: &Document, chosen: &[Digest]) -> Result<Box<Document>, String> {
    let unusable = |error: &dyn fmt::Display| error.to_string();
    let mut index: Value = serde_json::from_slice(&root.bytes).map_err(|error| unusable(&error))?;
    if let Some(entries) = index.get_mut("manifests").and_then(Value::as_array_mut) {
        entries.retain(|entry| {
            let digest = entry.get("digest").and_then(Value::as_str);
            let digest = digest.and_then(|digest| digest.parse().ok());
            digest.is_some_and(|digest: Digest| chosen.contains(&digest))
        });
    }
    let bytes = Bytes::from(index.to_string());
    Ok(Box::new(Document {
        digest: Digest::of(Algorithm::Sha256, &bytes),
        manifest: Manifest::parse(&bytes).map_err(|error| unusable(&error))?,
        bytes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(n: u8, platform: &str, more: &Value) -> Value {
        let mut parts = platform.split('/');
        let digest = Digest::of(Algorithm::Sha256, &[n]).to_string();
        let mut entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
            "platform": {"os": parts.next(), "architecture": parts.next()},
        });
        if let Some(variant) = parts.next() {
            entry["platform"]["variant"] = variant.into();
        }
        if let Some(more) = more.as_object() {
            entry.as_object_mut().unwrap().extend(more.clone());
        }
        entry
    }

    fn index() -> Document {
        let attested = Digest::of(Algorithm::Sha256, &[1]).to_string();
        let about = json!({"annotations": {ATTESTED: attested}});
        let index = json!({"schemaVersion": 2, "annotations": {"a": "b"}, "manifests": [
            entry(1, "linux/amd64", &json!({})),
            entry(2, "linux/arm64/v8", &json!({})),
            entry(3, "linux/arm/v6", &json!({})),
            entry(4, "linux/arm/v7", &json!({})),
            entry(5, "unknown/unknown", &about),
        ]});
        let bytes = Bytes::from(index.to_string());
        Document {
            digest: Digest::of(Algorithm::Sha256, &bytes),
            manifest: Manifest::parse(&bytes).unwrap(),
            bytes,
        }
    }

    fn selected(platforms: &[&str]) -> Result<Selected, String> {
        let platforms: Vec<_> = platforms.iter().map(|text| text.parse().unwrap()).collect();
        select(&index(), &platforms)
    }

    #[test]
    fn one_platform_is_its_manifest() {
        for (platform, n) in [
            ("linux/amd64", 1),
            ("linux/arm64", 2),
            ("linux/arm64/v8", 2),
            ("linux/arm", 3),
            ("linux/arm/v7", 4),
        ] {
            let Ok(Selected::One(digest)) = selected(&[platform]) else {
                panic!("{platform}");
            };
            assert_eq!(digest, Digest::of(Algorithm::Sha256, &[n]), "{platform}");
        }
        assert_eq!(selected(&["linux/s390x"]).unwrap_err(), "linux/s390x");
        assert_eq!(selected(&["linux/arm64/v9"]).unwrap_err(), "linux/arm64/v9");
        let every = ["linux/amd64", "linux/arm64", "linux/arm/v6", "linux/arm/v7"];
        for all in [&[][..], &every] {
            assert!(
                matches!(selected(all), Ok(Selected::All)),
                "its bytes don't change"
            );
        }
    }

    #[test]
    fn several_platforms_are_an_index_of_them_and_their_attestations() {
        let Ok(Selected::Sparse(sparse)) = selected(&["linux/arm/v7", "linux/amd64"]) else {
            panic!("a sparse index");
        };
        let digests = sparse.manifest.manifests.iter().map(|entry| entry.digest);
        let expected = [1, 4, 5].map(|n| Digest::of(Algorithm::Sha256, &[n]));
        assert!(digests.eq(expected), "in the order of the whole index");
        let value: Value = serde_json::from_slice(&sparse.bytes).unwrap();
        assert_eq!(value["annotations"]["a"], "b");
        assert_eq!(value["manifests"][1]["platform"]["variant"], "v7");
    }

    #[test]
    fn platforms_are_read_strictly() {
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/arm/v7/x",
            "linux/arm/",
            "a b/c",
        ] {
            assert_eq!(text.parse::<Platform>(), Err(PlatformError), "{text}");
        }
        let arm: Platform = "linux/arm/v7".parse().unwrap();
        assert_eq!(arm.to_string(), "linux/arm/v7");
    }

    #[test]
    fn a_platform_selects_its_images() {
        let digest = |name: &str| Digest::of(Algorithm::Sha256, name.as_bytes());
        let image = |name: &str| {
            let platform = name.parse::<Platform>().unwrap();
            serde_json::json!({"digest": digest(name), "platform": platform})
        };
        let all = [
            "linux/amd64",
            "linux/arm/v6",
            "linux/arm/v7",
            "windows/amd64",
        ];
        let mut images: Vec<_> = all.map(image).to_vec();
        images.push(serde_json::json!({"digest": digest("none")}));
        let index = serde_json::json!({ "manifests": images }).to_string();
        for (selected, expected) in [
            (&["linux/amd64"][..], &["linux/amd64"][..]),
            (&["linux/arm"], &["linux/arm/v6", "linux/arm/v7"]),
            (
                &["linux/arm/v7", "windows/amd64"],
                &["linux/arm/v7", "windows/amd64"],
            ),
            (&["linux/riscv64"], &[]),
        ] {
            let platforms = selected.iter().map(|text| text.parse().unwrap());
            let platforms: Vec<Platform> = platforms.collect();
            let expected = expected.iter().map(|name| digest(name)).collect::<Vec<_>>();
            assert_eq!(matching(index.as_bytes(), &platforms), expected);
        }
        assert_eq!(matching(b"[]", &[]), []);
    }
}
