//! Media types of manifests (image-spec media-types.md; Docker image manifest schema 1 and 2).

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// The config of an artifact that has none (image-spec manifest.md, "Guidance for an Empty
/// Descriptor").
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// The type of a manifest that millpond serves. There are no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ManifestType {
    OciManifest,
    OciIndex,
    OciArtifact,
    DockerManifest,
    DockerList,
}

impl ManifestType {
    /// The types that are requested for a client that sends no `Accept` header.
    pub const ALL: [Self; 5] = [
        Self::OciManifest,
        Self::OciIndex,
        Self::OciArtifact,
        Self::DockerManifest,
        Self::DockerList,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OciManifest => OCI_MANIFEST,
            Self::OciIndex => OCI_INDEX,
            Self::OciArtifact => OCI_ARTIFACT,
            Self::DockerManifest => DOCKER_MANIFEST,
            Self::DockerList => DOCKER_LIST,
        }
    }
}

/// The meaning of a media type for a document that should be a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    Manifest(ManifestType),
    /// Docker's schema 1, signed or not, which millpond doesn't serve.
    Schema1,
    /// No media type of a manifest: absent, generic (`application/json`) or something else.
    Unknown,
}

impl Declared {
    /// Reads the value of a `Content-Type` header. Case and parameters don't matter (RFC 9110,
    /// section 8.3.1).
    pub fn from_content_type(value: &str) -> Self {
        let essence = value.split(';').next().unwrap_or_default().trim();
        Self::from_media_type(&essence.to_ascii_lowercase())
    }

    /// Reads a media type exactly as written, as in a manifest's `mediaType`.
    pub fn from_media_type(media_type: &str) -> Self {
        let mut known = ManifestType::ALL.into_iter();
        match known.find(|kind| kind.as_str() == media_type) {
            Some(kind) => Self::Manifest(kind),
            None if matches!(media_type, DOCKER_SCHEMA1 | DOCKER_SCHEMA1_SIGNED) => Self::Schema1,
            None => Self::Unknown,
        }
    }

    pub const fn manifest_type(self) -> Option<ManifestType> {
        match self {
            Self::Manifest(kind) => Some(kind),
            Self::Schema1 | Self::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_type_is_read_without_its_case_and_parameters() {
        for kind in ManifestType::ALL {
            let exact = Declared::Manifest(kind);
            let kind = kind.as_str();
            assert_eq!(Declared::from_media_type(kind), exact);
            for value in [
                kind.to_owned(),
                format!("{kind}; charset=utf-8"),
                format!(" {kind} ;q"),
                kind.to_ascii_uppercase(),
            ] {
                assert_eq!(Declared::from_content_type(&value), exact, "{value}");
            }
            let parameter = format!("{kind};charset=utf-8");
            assert_eq!(Declared::from_media_type(&parameter), Declared::Unknown);
        }
    }

    #[test]
    fn other_types_are_schema_1_or_say_nothing() {
        for kind in [DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED] {
            assert_eq!(Declared::from_content_type(kind), Declared::Schema1);
        }
        let octets = "application/octet-stream";
        for value in ["", "application/json", octets, "text/html", ";"] {
            assert_eq!(Declared::from_content_type(value), Declared::Unknown);
        }
    }
}
