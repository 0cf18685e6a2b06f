//! Platforms of images: `linux/arm64/v8`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

/// An operating system and an architecture, as images of an index name them (image-spec,
/// image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    os: String,
    architecture: String,
    /// None selects each variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

impl FromStr for Platform {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('/').map(str::to_owned);
        let is_valid = text.split('/').all(|part| !part.is_empty());
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) if is_valid => Ok(Self {
                os,
                architecture,
                variant,
            }),
            _ => Err("write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64"),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl Platform {
    fn selects(&self, image: &Self) -> bool {
        self.os == image.os
            && self.architecture == image.architecture
            && (self.variant.is_none() || self.variant == image.variant)
    }
}

/// The images of an index that are of one of the platforms. Empty for what isn't an index.
pub(super) fn select(index: &[u8], platforms: &[Platform]) -> Vec<Digest> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default)]
        manifests: Vec<Image>,
    }
    #[derive(Deserialize)]
    struct Image {
        digest: Digest,
        platform: Option<Platform>,
    }
    let index: Option<Index> = serde_json::from_slice(index).ok();
    let images = index.into_iter().flat_map(|index| index.manifests);
    let is_selected = |image: &Image| {
        let platform = image.platform.as_ref();
        platform.is_some_and(|own| platforms.iter().any(|platform| platform.selects(own)))
    };
    images
        .filter(is_selected)
        .map(|image| image.digest)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

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
            assert_eq!(select(index.as_bytes(), &platforms), expected);
        }
        assert_eq!(select(b"[]", &[]), []);
        for text in ["linux", "", "linux/", "a/b/c/d", "linux//v7"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
