//! The name of an image, as people write it.

use std::str::FromStr;

use super::location::{HUB, RegistryLocation};
use crate::oci::{Reference, RepoName};

/// An image in a registry, under the registry's own name for its repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `host[:port]`, in lower case.
    pub registry: String,
    pub repo: RepoName,
    pub reference: Reference,
}

impl FromStr for Image {
    type Err = &'static str;

    /// Reads `[REGISTRY/]NAME[:TAG][@DIGEST]` like Docker: `debian` is
    /// `docker.io/library/debian:latest`. A digest counts more than a tag.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse_at(text, HUB)
    }
}

impl Image {
    /// The same, where names without a registry are those of the registry `home`. The error says what to
    /// write.
    pub fn parse_at(text: &str, home: &str) -> Result<Self, &'static str> {
        let advice = "write an image such as debian:12 or ghcr.io/owner/app:1.0";
        let location = RegistryLocation::parse_at(text, home).or(Err(advice))?;
        let reference = location.reference();
        let repo = location.repository.filter(|_| !location.is_prefix);
        Ok(Self {
            registry: location.host,
            repo: repo.ok_or(advice)?,
            reference,
        })
    }
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let separator = match self.reference {
            Reference::Tag(_) => ':',
            Reference::Digest(_) => '@',
        };
        let (repo, reference) = (self.repo.as_str(), &self.reference);
        write!(f, "{}/{repo}{separator}{reference}", self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_like_dockers() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let by_digest = format!("ghcr.io/owner/app@{digest}");
        let by_both = format!("ghcr.io/owner/app:1@{digest}");
        for (text, expected) in [
            ("debian", "docker.io/library/debian:latest"),
            ("owner/app:1", "docker.io/owner/app:1"),
            ("docker.io/debian:12", "docker.io/library/debian:12"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("localhost/app:2", "localhost/app:2"),
            ("GHCR.io/owner/app:v1.0", "ghcr.io/owner/app:v1.0"),
            (&by_digest, &by_digest),
            (&by_both, &by_digest),
        ] {
            assert_eq!(text.parse::<Image>().unwrap().to_string(), expected);
        }
        for text in [
            "",
            "a b",
            "ghcr.io/Owner/app",
            "app:",
            "app@sha256:1",
            "ghcr.io/",
        ] {
            assert!(text.parse::<Image>().is_err(), "{text}");
        }
        let image = Image::parse_at("debian", "registry.example").unwrap();
        assert_eq!(image.to_string(), "registry.example/debian:latest");
    }
}
