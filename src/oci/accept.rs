//! The set of manifest media types that a client can read (RFC 9110, section 12.5.1).
//!
//! Clients send the list in one header line or in several, in any order; only the set matters, and of
//! it only the types that millpond serves. Two requests with the same set get the same answer, so the
//! set is also a part of a tag record's key: nearly all clients share one.

use std::fmt;
use std::sync::{Arc, LazyLock};

use http::header::{ACCEPT, HeaderMap, HeaderValue};

use super::media_type::ManifestType;

/// Media types kept from one request; real clients send at most a dozen.
const MAX_TYPES: usize = 32;
/// Bytes kept of one media type (RFC 6838 allows 127 + 1 + 127).
const MAX_TYPE: usize = 255;

/// A normalised Accept list: lower-case, sorted, without duplicates and parameters, and without types
/// that millpond doesn't serve, unless there are no others. A client that sends none, or accepts `*/*`,
/// accepts every known type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Accept(Arc<[Box<str>]>);

impl Accept {
    /// Every manifest type in use: for requests whose digest already determines the content.
    pub fn everything() -> Self {
        static EVERYTHING: LazyLock<Accept> =
            LazyLock::new(|| Accept::from_types(std::iter::empty()));
        EVERYTHING.clone()
    }

    /// Reads every `Accept` line. Types with `q=0` are refused ones and left out; the order of
    /// preference is not kept, because registries don't honour it either.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(ACCEPT).iter();
        let lines = lines.filter_map(|line| line.to_str().ok());
        let ranges = lines.flat_map(|line| line.split(','));
        Self::from_types(ranges.filter_map(media_range))
    }

    fn from_types(types: impl Iterator<Item = String>) -> Self {
        let mut types: Vec<Box<str>> = types.take(MAX_TYPES).map(String::into_boxed_str).collect();
        if types.is_empty()
            || types
                .iter()
                .any(|kind| matches!(&**kind, "*/*" | "application/*"))
        {
            types.extend(ManifestType::ALL.map(|kind| Box::from(kind.as_str())));
        }
        let is_served = |kind: &str| ManifestType::ALL.iter().any(|known| kind == known.as_str());
        if types.iter().any(|kind| is_served(kind)) {
            types.retain(|kind| is_served(kind));
        }
        // No current client lists the artifact manifest, which was withdrawn from image-spec 1.1. Those that
        // list all others get the same answers as those that accept anything.
        let artifact = ManifestType::OciArtifact.as_str();
        let mut others = ManifestType::ALL
            .iter()
            .filter(|kind| kind.as_str() != artifact);
        if others.all(|kind| types.iter().any(|listed| **listed == *kind.as_str())) {
            types.push(artifact.into());
        }
        types.sort_unstable();
        types.dedup();
        Self(types.into())
    }

    /// Whether the client accepts a manifest of this type.
    pub fn allows(&self, kind: ManifestType) -> bool {
        self.0.iter().any(|allowed| **allowed == *kind.as_str())
    }

    /// Whether the client accepts some index, so that it gets what a tag of an image for several
    /// platforms names. To others, some registries send the manifest of one platform instead.
    pub fn allows_indexes(&self) -> bool {
        self.allows(ManifestType::OciIndex) || self.allows(ManifestType::DockerList)
    }

    /// The set as one header line, always in the same order.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.to_string()).unwrap_or(HeaderValue::from_static("*/*"))
    }
}

fn media_range(part: &str) -> Option<String> {
    let mut pieces = part.split(';').map(str::trim);
    let kind = pieces
        .next()
        .filter(|kind| !kind.is_empty() && kind.len() <= MAX_TYPE)?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+*/".contains(&byte);
    if !kind.bytes().all(legal) {
        return None;
    }
    let refused = pieces.any(|parameter| {
        let weight = parameter
            .strip_prefix("q=")
            .or_else(|| parameter.strip_prefix("Q="));
        weight.is_some_and(|weight| weight.trim().parse::<f32>() == Ok(0.0))
    });
    (!refused).then(|| kind.to_ascii_lowercase())
}

impl fmt::Display for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(lines: &[&str]) -> Accept {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT, HeaderValue::from_str(line).unwrap());
        }
        Accept::from_headers(&headers)
    }

    #[test]
    fn one_line_or_many_in_any_order_is_one_set() {
        let one = accept(&["application/a+json, application/b+json;q=0.5 ,application/c"]);
        let many = accept(&[
            "application/C",
            "application/b+json",
            "application/a+json",
            "application/c",
        ]);
        assert_eq!(one, many);
        assert_eq!(
            one.header(),
            "application/a+json, application/b+json, application/c"
        );
        assert!(!one.allows(ManifestType::OciManifest));
        let docker = accept(&["application/vnd.Docker.distribution.manifest.v2+json;q=0.9"]);
        assert!(docker.allows(ManifestType::DockerManifest));
        assert!(!docker.allows(ManifestType::DockerList));
    }

    #[test]
    fn no_header_and_wildcards_read_everything() {
        for set in [
            accept(&[]),
            accept(&["*/*"]),
            accept(&["application/vnd.x", "*/*;q=0.1"]),
        ] {
            for kind in ManifestType::ALL {
                assert!(set.allows(kind), "{set:?} {kind:?}");
            }
        }
        assert_eq!(accept(&[]), Accept::everything());
        assert_ne!(accept(&["application/vnd.x"]), Accept::everything());
    }

    #[test]
    fn clients_of_images_and_indexes_of_both_kinds_share_one_set() {
        let four = "application/vnd.oci.image.manifest.v1+json, \
                    application/vnd.oci.image.index.v1+json, \
                    application/vnd.docker.distribution.manifest.v2+json, \
                    application/vnd.docker.distribution.manifest.list.v2+json";
        let schema1 = "application/vnd.docker.distribution.manifest.v1+json";
        for lines in [&[four][..], &[four, schema1], &[schema1, four, "*/*"]] {
            assert_eq!(accept(lines), Accept::everything(), "{lines:?}");
        }
        let images = accept(&["application/vnd.oci.image.manifest.v1+json", schema1]);
        assert_eq!(
            images.to_string(),
            "application/vnd.oci.image.manifest.v1+json"
        );
        assert!(!images.allows_indexes() && Accept::everything().allows_indexes());
    }

    #[test]
    fn refused_and_malformed_types_are_left_out() {
        let set = accept(&["application/a;q=0, application/b; q=0.0, application/c, a b, \"x\""]);
        assert_eq!(set.to_string(), "application/c");
    }

    #[test]
    fn a_flood_of_types_is_bounded() {
        let line: Vec<String> = (0..10_000).map(|n| format!("application/x{n}")).collect();
        assert_eq!(
            accept(&[&line.join(",")]).to_string().split(", ").count(),
            MAX_TYPES
        );
    }
}
