//! Parses manifests: their type, and the content that they refer to.
//!
//! millpond never changes a manifest and stores it byte for byte. The parser reads only the fields
//! that a mirror needs (image-spec manifest.md, image-index.md; Docker schema 2).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::digest::{Algorithm, Digest};
pub use super::media_type;
use super::media_type::{Declared, ManifestType};
use super::name::Tag;

/// The largest manifest that is accepted, in bytes: the limit that registries share (4 MiB).
pub const MAX_MANIFEST: u64 = 4 * 1024 * 1024;

/// A manifest of at most this size, in bytes, is hashed and parsed in less than a millisecond: one full
/// of annotations takes 0.7 ms in a release build, an ordinary one 0.3 ms. Larger ones belong on the
/// blocking pool.
pub const QUICK: usize = 64 * 1024;

/// A reference to content by digest (image-spec descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Whether the content can be downloaded from other URLs, too.
    #[serde(
        default,
        rename = "urls",
        deserialize_with = "has_entries",
        skip_serializing
    )]
    has_urls: bool,
}

impl Descriptor {
    /// The approximate memory that it takes, in bytes.
    pub fn memory(&self) -> u64 {
        let types = self.media_type.len() + self.artifact_type.as_ref().map_or(0, String::len);
        (size_of::<Self>() + types) as u64 + memory_of(&self.annotations)
    }

    /// Whether the registry perhaps doesn't serve the content: it has other URLs, or a media type of
    /// layers that aren't distributed (image-spec layer.md, "Non-Distributable Layers").
    pub fn is_foreign(&self) -> bool {
        let kind = &self.media_type;
        self.has_urls || kind.contains(".foreign.") || kind.contains(".nondistributable.")
    }
}

fn memory_of(annotations: &BTreeMap<String, String>) -> u64 {
    // Each is two texts in a map.
    let texts = |(key, value): (&String, &String)| (key.len() + value.len() + 64) as u64;
    annotations.iter().map(texts).sum()
}

/// The fields of a manifest that a mirror needs.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its declared `mediaType`, else the type that its fields imply.
    pub media_type: ManifestType,
    /// The image's config, or none for an index or artifact.
    pub config: Option<Descriptor>,
    /// Layers of an image, blobs of an artifact.
    pub blobs: Vec<Descriptor>,
    /// Children of an index or manifest list.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one is attached to.
    pub subject: Option<Descriptor>,
    artifact_type: Option<String>,
    annotations: BTreeMap<String, String>,
}

/// What clients are told of a schema 1 manifest, whether it is stored or the upstream sends it.
pub const SCHEMA1_REFUSED: &str = "the upstream has it as a Docker schema 1 manifest, which this \
                                   mirror does not serve; push the image again as Docker schema 2 or OCI";

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("not the JSON of a manifest")]
    Json(#[from] serde_json::Error),
    #[error(
        "Docker schema 1 manifests are not served; the image must be pushed again as schema 2 or OCI"
    )]
    Schema1,
    #[error("schemaVersion must be 2")]
    SchemaVersion,
    #[error("neither an image manifest, an index nor an artifact manifest")]
    Shape,
    /// Clients disagree on what such a document is (CVE-2021-41190).
    #[error("it has the fields of an index and of an image manifest")]
    Ambiguous,
    #[error("its mediaType is none of a manifest that this mirror serves")]
    MediaType,
    #[error("its mediaType is {}, which contradicts its fields", .0.as_str())]
    Contradiction(ManifestType),
    #[error("it is sent as {}, but is {}", .sent.as_str(), .actual.as_str())]
    ContentType {
        sent: ManifestType,
        actual: ManifestType,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Raw {
    /// The type of the document: its fields must fit the declared type.
    fn kind(&self, declared: Option<ManifestType>) -> Result<ManifestType, ManifestError> {
        let is_image = self.config.is_some() || self.layers.is_some();
        let is_index = self.manifests.is_some();
        if is_index && (is_image || self.blobs.is_some()) {
            return Err(ManifestError::Ambiguous);
        }
        let (implied, others) = if is_index {
            (ManifestType::OciIndex, &[ManifestType::DockerList][..])
        } else if is_image {
            (
                ManifestType::OciManifest,
                &[ManifestType::DockerManifest][..],
            )
        } else if self.blobs.is_some() || self.subject.is_some() {
            let images = &[ManifestType::OciManifest, ManifestType::DockerManifest];
            (ManifestType::OciArtifact, &images[..])
        } else {
            // An index without entries may say `"manifests": null`.
            return declared.ok_or(ManifestError::Shape);
        };
        match declared {
            Some(kind) if kind != implied && !others.contains(&kind) => {
                Err(ManifestError::Contradiction(kind))
            }
            declared => Ok(declared.unwrap_or(implied)),
        }
    }
}

/// Whether a value is an array with entries; whatever else is there counts as none. Nothing is built
/// of it: its author could make that far larger than the text.
fn has_entries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let value = <&RawValue>::deserialize(deserializer)?;
    let entries = value.get().strip_prefix('[');
    Ok(entries.is_some_and(|entries| entries.trim_start() != "]"))
}

impl Manifest {
    /// The approximate memory that it takes, in bytes.
    pub fn memory(&self) -> u64 {
        let descriptors = [&self.blobs, &self.manifests].into_iter().flatten();
        let all = descriptors.chain(&self.config).chain(&self.subject);
        let descriptors: u64 = all.map(Descriptor::memory).sum();
        size_of::<Self>() as u64 + descriptors + memory_of(&self.annotations)
    }

    /// Reads a manifest. The caller bounds `bytes` by [`MAX_MANIFEST`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let raw: Raw = serde_json::from_slice(bytes)?;
        let declared = match raw.media_type.as_deref() {
            None | Some("") => None,
            Some(text) => match Declared::from_media_type(text) {
                Declared::Manifest(kind) => Some(kind),
                Declared::Schema1 => return Err(ManifestError::Schema1),
                Declared::Unknown if raw.schema_version == Some(1) => {
                    return Err(ManifestError::Schema1);
                }
                Declared::Unknown => return Err(ManifestError::MediaType),
            },
        };
        match raw.schema_version {
            Some(2) => {}
            Some(1) => return Err(ManifestError::Schema1),
            // The retired OCI artifact manifest has no schemaVersion.
            None if declared == Some(ManifestType::OciArtifact) => {}
            _ => return Err(ManifestError::SchemaVersion),
        }
        let media_type = raw.kind(declared)?;
        Ok(Self {
            media_type,
            config: raw.config,
            blobs: raw.layers.or(raw.blobs).unwrap_or_default(),
            manifests: raw.manifests.unwrap_or_default(),
            subject: raw.subject,
            artifact_type: raw.artifact_type.filter(|kind| !kind.is_empty()),
            annotations: raw.annotations.unwrap_or_default(),
        })
    }

    /// The descriptor that the referrers API lists for this manifest: its artifact type is the
    /// declared one, else the config's media type (distribution-spec, "Listing Referrers").
    pub fn descriptor(&self, digest: Digest, size: u64) -> Descriptor {
        let config_type = self.config.as_ref().map(|config| config.media_type.clone());
        Descriptor {
            media_type: self.media_type.as_str().to_owned(),
            digest,
            size,
            artifact_type: self.artifact_type.clone().or(config_type),
            annotations: self.annotations.clone(),
            has_urls: false,
        }
    }
}

/// The most arrays and objects within each other that a pushed manifest may have. Known ones have 5.
const MAX_DEPTH: usize = 64;

/// Whether a JSON text is nested so deeply that clients' parsers may fail on it. A field that isn't read
/// may be.
pub fn is_deep(text: &[u8]) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// The image index that the referrers API answers with.
pub fn referrers_index<'a>(manifests: impl Iterator<Item = &'a Descriptor>) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u8,
        media_type: &'static str,
        manifests: Vec<&'a Descriptor>,
    }
    let index = Index {
        schema_version: 2,
        media_type: media_type::OCI_INDEX,
        manifests: manifests.collect(),
    };
    // Texts and numbers can't fail to be written.
    serde_json::to_vec(&index).unwrap_or_default()
}

/// The tag that holds the referrers of a digest where a registry doesn't list them
/// (distribution-spec, "Referrers Tag Schema"): `sha256-<hex>`, of which at most 64 digits.
pub fn referrers_tag(digest: &Digest) -> Option<Tag> {
    let hex = digest.hex();
    let shown = match digest.algorithm() {
        Algorithm::Sha256 => hex.as_str(),
        Algorithm::Sha512 => hex.get(..64)?,
    };
    format!("{}-{shown}", digest.algorithm()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Result<Manifest, ManifestError> {
        let descriptor = format!(r#""mediaType":"x/y","digest":"{EMPTY}","size":1"#);
        Manifest::parse(text.replace("$D", &descriptor).as_bytes())
    }

    #[test]
    fn the_tag_that_stands_in_for_the_referrers_api() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let tag = referrers_tag(&digest).unwrap().to_string();
        assert_eq!(tag, digest.to_string().replace(':', "-"));
        let long = referrers_tag(&Digest::of(Algorithm::Sha512, b"")).unwrap();
        assert_eq!(long.as_str().len(), "sha512-".len() + 64);
    }

    #[test]
    fn the_declared_type_counts_else_the_fields() {
        for (text, kind) in [
            (
                r#"{"schemaVersion":2,"config":{$D},"layers":[{$D}]}"#,
                media_type::OCI_MANIFEST,
            ),
            (
                r#"{"schemaVersion":2,"manifests":[]}"#,
                media_type::OCI_INDEX,
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{$D},"layers":[]}"#,
                media_type::DOCKER_MANIFEST,
            ),
            (
                r#"{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[{$D}],"subject":{$D}}"#,
                media_type::OCI_ARTIFACT,
            ),
        ] {
            assert_eq!(parse(text).unwrap().media_type.as_str(), kind, "{text}");
        }
    }

    #[test]
    fn only_known_types_that_fit_the_fields_are_manifests() {
        let image = r#""config":{$D},"layers":[{$D}]"#;
        let index = r#""manifests":[{$D}]"#;
        let both = format!("{image},{index}");
        let parameter = format!("{}; a=b", media_type::OCI_MANIFEST);
        let refusal = |kind: &str, fields: &str| {
            let text = format!(r#"{{"schemaVersion":2,"mediaType":"{kind}",{fields}}}"#);
            match parse(&text) {
                Ok(_) => "",
                Err(ManifestError::Ambiguous) => "ambiguous",
                Err(ManifestError::MediaType) => "type",
                Err(ManifestError::Contradiction(_)) => "contradiction",
                Err(ManifestError::Schema1) => "schema 1",
                Err(error) => panic!("{text}: {error}"),
            }
        };
        for (kind, fields, expected) in [
            (media_type::OCI_MANIFEST, image, ""),
            (media_type::DOCKER_MANIFEST, image, ""),
            (media_type::OCI_INDEX, image, "contradiction"),
            (media_type::DOCKER_LIST, image, "contradiction"),
            (media_type::OCI_ARTIFACT, image, "contradiction"),
            (media_type::OCI_INDEX, index, ""),
            (media_type::DOCKER_LIST, index, ""),
            (media_type::OCI_MANIFEST, index, "contradiction"),
            (media_type::DOCKER_MANIFEST, index, "contradiction"),
            (media_type::OCI_INDEX, r#""manifests":null"#, ""),
            (media_type::OCI_INDEX, &both, "ambiguous"),
            (media_type::OCI_MANIFEST, &both, "ambiguous"),
            ("", &both, "ambiguous"),
            ("", r#""manifests":[],"layers":[]"#, "ambiguous"),
            ("text/html", image, "type"),
            (&parameter, image, "type"),
            (media_type::DOCKER_SCHEMA1, image, "schema 1"),
            (media_type::DOCKER_SCHEMA1_SIGNED, index, "schema 1"),
        ] {
            assert_eq!(refusal(kind, fields), expected, "{kind} {fields}");
        }
    }

    #[test]
    fn documents_without_the_fields_of_a_manifest_are_refused() {
        use ManifestError as E;
        let config = |digest: &str, size: i32| {
            let config = format!(r#"{{"mediaType":"x","digest":"{digest}","size":{size}}}"#);
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#)
        };
        assert!(matches!(parse("<html>"), Err(E::Json(_))));
        assert!(matches!(parse("{}"), Err(E::SchemaVersion)));
        assert!(matches!(parse(r#"{"schemaVersion":2}"#), Err(E::Shape)));
        let schema1 = parse(r#"{"schemaVersion":1,"fsLayers":[]}"#);
        assert!(matches!(schema1, Err(E::Schema1)));
        assert!(parse(&config(EMPTY, 1)).is_ok());
        assert!(matches!(parse(&config("sha256:..", 1)), Err(E::Json(_))));
        assert!(matches!(parse(&config(EMPTY, -1)), Err(E::Json(_))));
    }

    #[test]
    fn layers_that_a_registry_perhaps_lacks_are_foreign() {
        let oci = "application/vnd.oci.image.layer.v1.tar+gzip";
        let docker = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let private = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
        for (kind, more, foreign) in [
            (oci, "", false),
            (oci, r#","urls":[]"#, false),
            (oci, r#","urls":null"#, false),
            (oci, r#","urls":7"#, false),
            (oci, r#","urls":[ ]"#, false),
            (oci, r#","urls":["http://a/"]"#, true),
            (docker, "", true),
            (private, "", true),
        ] {
            let layer = format!(r#"{{"mediaType":"{kind}","digest":"{EMPTY}","size":1{more}}}"#);
            let text = format!(r#"{{"schemaVersion":2,"config":{{$D}},"layers":[{layer}]}}"#);
            let manifest = parse(&text).unwrap();
            assert_eq!(manifest.blobs[0].is_foreign(), foreign, "{layer}");
        }
    }

    #[test]
    fn only_what_is_nested_is_deep() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(is_deep(nested(65).as_bytes()));
        assert!(!is_deep(nested(64).as_bytes()));
        assert!(!is_deep("[],".repeat(100).as_bytes()));
        let text = format!(r#"{{"a\"\\":"{}"}}"#, "[".repeat(100));
        assert!(!is_deep(text.as_bytes()), "{text}");
        assert!(is_deep(format!(r#"{{"a\\":{}"#, nested(64)).as_bytes()));
    }

    #[test]
    fn a_referrer_is_described_with_its_artifact_type() {
        let digest: Digest = EMPTY.parse().unwrap();
        let own = parse(
            r#"{"schemaVersion":2,"artifactType":"a/b","config":{$D},"layers":[],"annotations":{"k":"v"}}"#,
        );
        let own = own.unwrap().descriptor(digest, 9);
        assert_eq!((own.artifact_type.as_deref(), own.size), (Some("a/b"), 9));
        assert_eq!(own.annotations.get("k").map(String::as_str), Some("v"));
        let from_config = parse(r#"{"schemaVersion":2,"config":{$D},"layers":[]}"#).unwrap();
        let from_config = from_config.descriptor(digest, 9);
        assert_eq!(from_config.artifact_type.as_deref(), Some("x/y"));
        let index = referrers_index([own].iter());
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["manifests"][0]["artifactType"], "a/b");
        assert_eq!(index["mediaType"], media_type::OCI_INDEX);
    }
}
