//! Reading manifests: what they are, and what they refer to.
//!
//! millpond never changes a manifest and stores it byte for byte; this is a reader's view of the
//! few fields that a mirror needs (image-spec manifest.md, image-index.md; Docker schema 2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// Manifests larger than this, in bytes, are refused: the limit that registries share (4 MiB).
pub const MAX_MANIFEST: u64 = 4 * 1024 * 1024;

/// Media types of manifests.
pub mod media_type {
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
    /// The config of an artifact that has none (image-spec manifest.md, "Guidance for an Empty
    /// Descriptor").
    pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
    pub const DOCKER_SCHEMA1_SIGNED: &str =
        "application/vnd.docker.distribution.manifest.v1+prettyjws";

    /// Every type that is asked for when a client doesn't say what it reads.
    pub const MANIFESTS: &[&str] = &[
        OCI_MANIFEST,
        OCI_INDEX,
        OCI_ARTIFACT,
        DOCKER_MANIFEST,
        DOCKER_LIST,
    ];
}

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
    /// Where else the content can be had. Whatever is written there: only whether something is
    /// matters here.
    #[serde(default, skip_serializing)]
    urls: serde_json::Value,
}

impl Descriptor {
    /// Whether the content is perhaps not the registry's to give: it has other places, or a media
    /// type of layers that aren't distributed (image-spec layer.md, "Non-Distributable Layers").
    pub fn is_foreign(&self) -> bool {
        let elsewhere = self.urls.as_array().is_some_and(|urls| !urls.is_empty());
        let kind = &self.media_type;
        elsewhere || kind.contains(".foreign.") || kind.contains(".nondistributable.")
    }
}

/// What a manifest says, in the fields that a mirror reads.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its declared `mediaType`, else the type its shape tells.
    pub media_type: String,
    /// The image's config, or none for an index or artifact.
    pub config: Option<Descriptor>,
    /// Layers of an image, blobs of an artifact.
    pub blobs: Vec<Descriptor>,
    /// Children of an index or manifest list.
    pub manifests: Vec<Descriptor>,
    /// What this manifest is attached to.
    pub subject: Option<Descriptor>,
    artifact_type: Option<String>,
    annotations: BTreeMap<String, String>,
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("not the JSON of a manifest")]
    Json(#[from] serde_json::Error),
    #[error(
        "schemaVersion 1 manifests are no longer served; the image must be pushed again as schema 2 or OCI"
    )]
    Schema1,
    #[error("schemaVersion must be 2")]
    SchemaVersion,
    #[error("neither an image manifest, an index nor an artifact manifest")]
    Shape,
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

impl Manifest {
    /// Reads a manifest. The caller bounds `bytes` by [`MAX_MANIFEST`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let raw: Raw = serde_json::from_slice(bytes)?;
        let declared = raw.media_type.filter(|kind| !kind.is_empty());
        match raw.schema_version {
            Some(2) => {}
            Some(1) => return Err(ManifestError::Schema1),
            // The retired OCI artifact manifest has no schemaVersion.
            None if declared.as_deref() == Some(media_type::OCI_ARTIFACT) => {}
            _ => return Err(ManifestError::SchemaVersion),
        }
        let shape = if raw.manifests.is_some() {
            media_type::OCI_INDEX
        } else if raw.config.is_some() || raw.layers.is_some() {
            media_type::OCI_MANIFEST
        } else if raw.blobs.is_some() || raw.subject.is_some() {
            media_type::OCI_ARTIFACT
        } else if declared.is_some() {
            ""
        } else {
            return Err(ManifestError::Shape);
        };
        Ok(Self {
            media_type: declared.unwrap_or_else(|| shape.to_owned()),
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
            media_type: self.media_type.clone(),
            digest,
            size,
            artifact_type: self.artifact_type.clone().or(config_type),
            annotations: self.annotations.clone(),
            urls: serde_json::Value::Null,
        }
    }
}

/// The image index that the referrers API answers with.
pub fn referrers_index(manifests: &[Descriptor]) -> Vec<u8> {
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": manifests,
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(
            text.replace(
                "$D",
                &format!("\"mediaType\":\"x/y\",\"digest\":\"{EMPTY}\",\"size\":1"),
            )
            .as_bytes(),
        )
    }

    #[test]
    fn the_declared_type_counts_else_the_shape() {
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
            assert_eq!(parse(text).unwrap().media_type, kind, "{text}");
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        assert!(matches!(parse("<html>"), Err(ManifestError::Json(_))));
        assert!(matches!(parse("{}"), Err(ManifestError::SchemaVersion)));
        assert!(matches!(
            parse(r#"{"schemaVersion":2}"#),
            Err(ManifestError::Shape)
        ));
        assert!(matches!(
            parse(r#"{"schemaVersion":1,"fsLayers":[]}"#),
            Err(ManifestError::Schema1)
        ));
        let bad_digest = r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:..","size":1},"layers":[]}"#;
        assert!(matches!(parse(bad_digest), Err(ManifestError::Json(_))));
        let negative =
            r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"$E","size":-1},"layers":[]}"#;
        assert!(matches!(
            parse(&negative.replace("$E", EMPTY)),
            Err(ManifestError::Json(_))
        ));
    }

    #[test]
    fn a_layer_from_elsewhere_is_foreign() {
        for (kind, more, foreign) in [
            ("application/vnd.oci.image.layer.v1.tar+gzip", "", false),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                r#","urls":[]"#,
                false,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                r#","urls":null"#,
                false,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                r#","urls":7"#,
                false,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                r#","urls":["http://a/"]"#,
                true,
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "",
                true,
            ),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                "",
                true,
            ),
        ] {
            let layer = format!(r#"{{"mediaType":"{kind}","digest":"{EMPTY}","size":1{more}}}"#);
            let text = format!(r#"{{"schemaVersion":2,"config":{{$D}},"layers":[{layer}]}}"#);
            assert_eq!(
                parse(&text).unwrap().blobs[0].is_foreign(),
                foreign,
                "{layer}"
            );
        }
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
        assert_eq!(
            from_config.descriptor(digest, 9).artifact_type.as_deref(),
            Some("x/y")
        );
        let index: serde_json::Value = serde_json::from_slice(&referrers_index(&[own])).unwrap();
        assert_eq!(index["manifests"][0]["artifactType"], "a/b");
        assert_eq!(index["mediaType"], media_type::OCI_INDEX);
    }
}
