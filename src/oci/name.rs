//! Repository names, tags and references (distribution-spec 1.1, "Pulling manifests").

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::bytes;
use super::digest::{Digest, DigestError};

/// The longest repository name a client may send, in bytes: distribution's own limit.
pub const MAX_NAME: usize = 255;
/// The longest tag, in bytes.
pub const MAX_TAG: usize = 128;

/// Why a text is not a name, tag or reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a repository name is at most {MAX_NAME} bytes")]
    TooLong,
    #[error(
        "a repository name is lower-case letters and digits, separated by one of . _ __ or dashes, \
         in components separated by /"
    )]
    Name,
    #[error(
        "a tag is at most {MAX_TAG} of letters, digits, '.', '_' and '-', not starting with '.' or '-'"
    )]
    Tag,
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// A repository name: `library/debian`. Safe as a relative path: no component is empty, starts
/// with a dot or an underscore, or holds anything but `[a-z0-9._-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoName(Arc<str>);

impl RepoName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// `self` below `prefix`: the stored name of a repository of a named upstream. The result may be
    /// longer than [`MAX_NAME`], which bounds what a client sends.
    #[must_use]
    pub fn below(&self, prefix: &Self) -> Self {
        Self(format!("{prefix}/{self}").into())
    }

    /// The first component, when something remains after it.
    pub fn first_component(&self) -> Option<&str> {
        bytes::split_once(&self.0, b'/').map(|(first, _)| first)
    }

    /// Splits off the first component, when something remains.
    pub fn split_first(&self) -> Option<(Self, Self)> {
        let (first, rest) = bytes::split_once(&self.0, b'/')?;
        Some((Self(first.into()), Self(rest.into())))
    }

    /// A name read back from the store, where it may carry an upstream's prefix.
    pub fn from_stored(text: &str) -> Result<Self, NameError> {
        if text.split('/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Name)
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, without a regular expression.
pub fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_separator = |separator: &[u8]| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    };
    let mut rest = component.as_bytes();
    // Alphanumerics first, and after each separator.
    loop {
        let run = rest.iter().take_while(|byte| alphanumeric(**byte)).count();
        rest = rest.get(run..).unwrap_or_default();
        if run == 0 || rest.is_empty() {
            return run > 0;
        }
        let run = rest.iter().take_while(|byte| !alphanumeric(**byte)).count();
        let (separator, after) = rest.split_at_checked(run).unwrap_or_default();
        if !is_separator(separator) {
            return false;
        }
        rest = after;
    }
}

impl FromStr for RepoName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        Self::from_stored(text)
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tag: `bookworm-slim`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the tag is a semantic version (semver.org, 2.0.0), perhaps after a `v`: `1.2.3`,
    /// `v1.2.3-rc.1`. A tag can't have build metadata.
    pub fn is_semver(&self) -> bool {
        let version = self.0.strip_prefix('v').unwrap_or(&self.0);
        let (core, pre_release) = match version.split_once('-') {
            Some((core, pre_release)) => (core, Some(pre_release)),
            None => (version, None),
        };
        let is_number = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_digit())
                && (text == "0" || !text.starts_with('0'))
        };
        let is_identifier = |text: &str| {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            let is_numeric = text.bytes().all(|byte| byte.is_ascii_digit());
            !text.is_empty() && text.bytes().all(legal) && (!is_numeric || is_number(text))
        };
        core.split('.').count() == 3
            && core.split('.').all(is_number)
            && pre_release.is_none_or(|text| text.split('.').all(is_identifier))
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let first = text.bytes().next().ok_or(NameError::Tag)?;
        if text.len() > MAX_TAG || matches!(first, b'.' | b'-') || !text.bytes().all(rest) {
            return Err(NameError::Tag);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tag or digest that names a manifest. A text with a colon can only be a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(if bytes::contains(text, b':') {
            Self::Digest(text.parse()?)
        } else {
            Self::Tag(text.parse()?)
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_valid_names_are_parsed() {
        let deep = "ghcr.io/owner/app";
        for good in ["a", "library/debian", "a.b_c__d--e/f", deep, "0/0/0"] {
            assert_eq!(good.parse::<RepoName>().unwrap().as_str(), good);
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "_layers",
            "a/../b", "a b", "ä", "a\0",
        ] {
            assert_eq!(bad.parse::<RepoName>(), Err(NameError::Name), "{bad:?}");
        }
        assert!("a".repeat(255).parse::<RepoName>().is_ok());
        assert_eq!("a".repeat(256).parse::<RepoName>(), Err(NameError::TooLong));
    }

    #[test]
    fn a_name_below_a_prefix_splits_again() {
        let upstream: RepoName = "ghcr.io".parse().unwrap();
        let name: RepoName = "owner/app".parse().unwrap();
        let stored = name.below(&upstream);
        assert_eq!(stored.as_str(), "ghcr.io/owner/app");
        assert_eq!(stored.split_first(), Some((upstream, name)));
        assert_eq!("app".parse::<RepoName>().unwrap().split_first(), None);
    }

    #[test]
    fn a_reference_is_a_tag_or_a_digest() {
        for tag in ["latest", "_1.0-RC", &"a".repeat(128)] {
            assert!(matches!(tag.parse(), Ok(Reference::Tag(_))), "{tag}");
        }
        for bad in [".hidden", "", "a/b", &"a".repeat(129)] {
            assert_eq!(bad.parse::<Reference>(), Err(NameError::Tag), "{bad}");
        }
        let short = NameError::Digest(DigestError::Hex);
        assert_eq!("sha256:12".parse::<Reference>(), Err(short));
    }

    #[test]
    fn semantic_versions_are_told_from_other_tags() {
        let is_semver = |tag: &str| tag.parse::<Tag>().unwrap().is_semver();
        for tag in [
            "0.0.0",
            "1.2.3",
            "v10.20.30",
            "1.27.3-alpine",
            "v1.0.0-rc.1",
            "1.0.0--x",
        ] {
            assert!(is_semver(tag), "{tag}");
        }
        for tag in [
            "1",
            "1.2",
            "1.2.3.4",
            "01.2.3",
            "v",
            "vv1.2.3",
            "V1.2.3",
            "1.2.x",
            "1..3",
            "latest",
            "1.2.3-",
            "1.2.3-a..b",
            "1.2.3-01",
            "1.2.3-a_b",
            "1.2.3_4",
        ] {
            assert!(!is_semver(tag), "{tag}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_specified_expression(text in "[a-b0._/A-]{0,12}") {
            let expected = specified(&text);
            prop_assert_eq!(text.parse::<RepoName>().is_ok(), expected);
        }

        #[test]
        fn a_parsed_name_never_leaves_its_directory(text in "\\PC{0,40}") {
            if let Ok(name) = text.parse::<RepoName>() {
                prop_assert!(name.components().all(|part| !part.is_empty() && !part.starts_with(['.', '_'])));
            }
        }

        #[test]
        fn references_print_as_written(text in "[a-z0-9:._-]{1,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }
    }

    /// The specification's expression, walked by a tiny backtracking matcher of its own shape, so
    /// that the hand-written parser is checked against something written differently.
    fn specified(text: &str) -> bool {
        fn component(text: &[u8]) -> bool {
            let run = text
                .iter()
                .take_while(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                .count();
            (1..=run).any(|taken| {
                let rest = &text[taken..];
                let dashes = rest.iter().take_while(|b| **b == b'-').count();
                rest.is_empty()
                    || rest.strip_prefix(b".").is_some_and(component)
                    || rest.strip_prefix(b"__").is_some_and(component)
                    || rest.strip_prefix(b"_").is_some_and(component)
                    || (1..=dashes).any(|n| component(&rest[n..]))
            })
        }
        text.split('/').all(|part| component(part.as_bytes()))
    }
}
