//! Places that images are copied from and to, as people write them. Pure.
//!
//! ```text
//! [docker://][host/]repository[:tag][@digest]   a registry; without a host, Docker Hub
//! oci:DIR[:name|@digest]                        a directory with an OCI image layout
//! oci-archive:FILE[:name|@digest]               a tar of one
//! docker-archive:FILE[:name]                    what `docker save` writes; only to copy from
//! ```
//!
//! Sources: distribution's reference grammar; containers-transports(5).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::oci::digest::DigestError;
use crate::oci::name::NameError;
use crate::oci::{Digest, Reference, RepoName, Tag};

/// What Docker Hub is called in the names of images.
pub const HUB: &str = "docker.io";
/// Names of one component are in this namespace of Docker Hub.
const HUB_NAMESPACE: &str = "library";
/// Other names of Docker Hub.
const HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
const DEFAULT_TAG: &str = "latest";

/// Where an image is, or shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    Registry(RegistryLocation),
    Files(FilesLocation),
}

/// A repository of a registry, and perhaps an image in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryLocation {
    /// `host[:port]`, in lower case.
    pub host: String,
    /// Whether the host was written, and isn't Docker Hub by default.
    pub is_explicit: bool,
    /// None where only a host is written, with a slash at its end.
    pub repository: Option<RepoName>,
    /// Whether the text ends with a slash: images are copied below it, under their own names.
    pub is_prefix: bool,
    pub tag: Option<Tag>,
    pub digest: Option<Digest>,
}

/// How files hold images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesForm {
    /// A directory with an image layout (image-spec image-layout.md).
    Layout,
    /// A tar of one.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
}

impl FilesForm {
    const ALL: [Self; 3] = [Self::Layout, Self::OciArchive, Self::DockerArchive];

    /// What the locations of such files begin with.
    fn transport(self) -> &'static str {
        match self {
            Self::Layout => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
        }
    }
}

/// Files with images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesLocation {
    pub form: FilesForm,
    pub path: PathBuf,
    /// The name of an image in them, as annotated: any text for a source, a tag for a destination.
    pub name: Option<String>,
    pub digest: Option<Digest>,
}

/// Why a text is no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error(
        "{0:?} is not a transport that is known; docker://, oci:, oci-archive: and docker-archive: are"
    )]
    Transport(String),
    #[error("{0:?} is not the host of a registry")]
    Host(String),
    #[error("the path is missing")]
    Path,
    #[error("the repository is missing")]
    Repository,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        if let Some((transport, rest)) = text.split_once(':') {
            let mut forms = FilesForm::ALL.into_iter();
            if let Some(form) = forms.find(|form| form.transport() == transport) {
                return files(form, rest).map(Self::Files);
            }
        }
        let rest = match text.split_once("://") {
            Some(("docker", rest)) => rest,
            Some((transport, _)) => return Err(LocationError::Transport(transport.to_owned())),
            None => text,
        };
        RegistryLocation::parse_at(rest, HUB).map(Self::Registry)
    }
}

/// The path ends at the first colon, so that a name may have some.
fn files(form: FilesForm, text: &str) -> Result<FilesLocation, LocationError> {
    let (rest, digest) = match text.rsplit_once('@') {
        Some((rest, digest)) if digest.contains(':') => (rest, Some(digest.parse()?)),
        _ => (text, None),
    };
    let (path, name) = match rest.split_once(':') {
        Some((path, name)) if !name.is_empty() => (path, Some(name.to_owned())),
        Some((path, _)) => (path, None),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(LocationError::Path);
    }
    Ok(FilesLocation {
        form,
        path: path.into(),
        name,
        digest,
    })
}

/// Whether the first component of a name is a host, as Docker decides it.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first.eq_ignore_ascii_case("localhost")
}

/// Whether a text is `host[:port]` and nothing else.
fn is_authority(text: &str) -> bool {
    let url = url::Url::parse(&format!("https://{text}/"));
    url.is_ok_and(|url| {
        url.username().is_empty() && url.password().is_none() && url.path() == "/" && {
            let known = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
            text.chars().all(known) && !text.ends_with(':')
        }
    })
}

impl RegistryLocation {
    /// Reads the name of an image or a repository, as Docker does. One without a host is of the registry
    /// `home`.
    pub(super) fn parse_at(text: &str, home: &str) -> Result<Self, LocationError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let is_prefix = rest.ends_with('/');
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) if is_host(host) => (Some(host), path),
            None if is_prefix && is_host(rest) => (Some(rest), ""),
            _ => (None, rest),
        };
        // A prefix names no image.
        if is_prefix && digest.is_some() {
            return Err(LocationError::Repository);
        }
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) if !is_prefix && !tag.contains('/') => {
                (path, Some(tag.parse::<Tag>()?))
            }
            _ => (path, None),
        };
        let lower = host.map(str::to_ascii_lowercase);
        let lower = lower.filter(|host| !HUB_ALIASES.contains(&host.as_str()));
        let is_explicit = host.is_some();
        let host = lower.unwrap_or_else(|| if is_explicit { HUB } else { home }.to_owned());
        if !is_authority(&host) {
            return Err(LocationError::Host(host));
        }
        let repository = match path {
            "" if is_prefix && is_explicit => None,
            "" => return Err(LocationError::Repository),
            path if host == HUB && !path.contains('/') && !is_prefix => {
                Some(format!("{HUB_NAMESPACE}/{path}").parse()?)
            }
            path => Some(path.parse()?),
        };
        Ok(Self {
            host,
            is_explicit,
            repository,
            is_prefix,
            tag,
            digest,
        })
    }

    /// The image that is meant: the digest counts before the tag; `latest` where neither is written.
    pub fn reference(&self) -> Reference {
        if let Some(digest) = self.digest {
            return Reference::Digest(digest);
        }
        self.tag.clone().map_or_else(latest, Reference::Tag)
    }
}

fn latest() -> Reference {
    #[expect(clippy::expect_used, reason = "a constant, which the tests parse")]
    DEFAULT_TAG.parse().expect("a valid tag")
}

impl fmt::Display for RegistryLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if let Some(repository) = &self.repository {
            write!(f, "/{repository}")?;
        }
        if self.is_prefix {
            f.write_str("/")?;
        }
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for FilesLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.form.transport(), self.path.display())?;
        if let Some(name) = &self.name {
            write!(f, ":{name}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(registry) => registry.fmt(f),
            Self::Files(files) => files.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// (text, how it is shown)
    const REGISTRIES: &[(&str, &str)] = &[
        ("debian", "docker.io/library/debian"),
        ("debian:12", "docker.io/library/debian:12"),
        ("owner/app", "docker.io/owner/app"),
        ("docker://debian:12", "docker.io/library/debian:12"),
        ("docker.io/debian", "docker.io/library/debian"),
        ("index.docker.io/a/b:c", "docker.io/a/b:c"),
        ("ghcr.io/owner/app:1.0", "ghcr.io/owner/app:1.0"),
        ("GHCR.io/owner/app", "ghcr.io/owner/app"),
        ("localhost/a", "localhost/a"),
        ("localhost:5000/a:b", "localhost:5000/a:b"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c"),
        ("[::1]:5000/a", "[::1]:5000/a"),
        ("host:5000/", "host:5000/"),
        ("host.example/mirror/", "host.example/mirror/"),
    ];

    #[test]
    fn names_of_images_are_read_as_docker_reads_them() {
        for (text, shown) in REGISTRIES {
            let location: Location = text.parse().unwrap();
            assert_eq!(location.to_string(), *shown, "{text}");
        }
        let pinned: Location = format!("ghcr.io/a/b:c@{DIGEST}").parse().unwrap();
        let Location::Registry(pinned) = pinned else {
            panic!("a registry");
        };
        assert_eq!(pinned.reference().to_string(), DIGEST);
        assert_eq!(pinned.tag.map(|tag| tag.to_string()).as_deref(), Some("c"));
        let plain: Location = "ghcr.io/a/b".parse().unwrap();
        assert!(
            matches!(plain, Location::Registry(plain) if plain.reference().to_string() == "latest")
        );
    }

    #[test]
    fn files_are_paths_with_a_name() {
        use FilesForm::{DockerArchive, Layout, OciArchive};
        let digest = format!("oci:/a@{DIGEST}");
        for (text, form, path, name) in [
            ("oci:/a/b", Layout, "/a/b", None),
            ("oci:dir:1.0", Layout, "dir", Some("1.0")),
            ("oci:dir:", Layout, "dir", None),
            (&digest, Layout, "/a", None),
            (
                "oci-archive:a.tar:h:1/b:c",
                OciArchive,
                "a.tar",
                Some("h:1/b:c"),
            ),
            ("docker-archive:/a:b:c", DockerArchive, "/a", Some("b:c")),
        ] {
            let Location::Files(files) = text.parse().unwrap() else {
                panic!("{text}");
            };
            assert_eq!(
                (files.form, files.path.to_str(), files.name.as_deref()),
                (form, Some(path), name)
            );
            assert_eq!(files.digest.is_some(), text.contains('@'));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "/",
            "host.example/a:b/",
            "docker://",
            "oci:",
            "oci::x",
            "https://host/a",
            "dir:/a",
            "host:5000/A",
            "host.example:port/a",
            "a@b",
            "a:b@sha256:x",
            "user@host.example/a",
            "a:.b",
            "host.example:/a?x",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(text in "[a-z0-9./:@_-]{0,40}") {
            if let Ok(location) = text.parse::<Location>() {
                let shown = location.to_string();
                let again: Location = shown.parse().unwrap();
                prop_assert_eq!(again.to_string(), shown);
            }
        }
    }
}
