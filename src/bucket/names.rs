//! What an object is, by its key: the reference registry's names, read back.

use crate::bucket::keys;
use crate::oci::{Algorithm, Digest};

/// What links content, or names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name<'a> {
    Layer(Digest),
    Revision(Digest),
    /// What the tag names now. The digest is in the object.
    TagCurrent(&'a str),
    /// That the tag has named this digest.
    TagIndex(&'a str, Digest),
}

/// The digest of an object of content. None for another key.
pub(super) fn blob(key: &str) -> Option<Digest> {
    let mut parts = key.rsplit('/');
    let (data, hex, first) = (parts.next()?, parts.next()?, parts.next()?);
    let digest = digest(parts.next()?, hex)?;
    let is_whole = data == "data" && hex.get(..2) == Some(first);
    (is_whole && key == keys::blob(&digest)).then_some(digest)
}

/// The repository of a link or a tag, and what it is, by its key below that of the repositories. None for
/// another key.
pub(super) fn link(key: &str) -> Option<(&str, Name<'_>)> {
    // No component of a repository's name begins with this.
    let (repo, rest) = key.split_at_checked(key.find("/_")?)?;
    let mut parts = rest.split('/').skip(1);
    let mut next = || parts.next();
    let name = match (next()?, next()?) {
        ("_layers", algorithm) => Name::Layer(digest(algorithm, next()?)?),
        ("_manifests", "revisions") => Name::Revision(digest(next()?, next()?)?),
        ("_manifests", "tags") => match (next()?, next()?) {
            (tag, "current") => Name::TagCurrent(tag),
            (tag, "index") => Name::TagIndex(tag, digest(next()?, next()?)?),
            _ => return None,
        },
        _ => return None,
    };
    let is_whole = next()? == "link" && next().is_none();
    is_whole.then_some((repo, name))
}

fn digest(algorithm: &str, hex: &str) -> Option<Digest> {
    let known = Algorithm::ALL.into_iter();
    let mut known = known.filter(|known| known.as_str() == algorithm);
    Digest::from_parts(known.next()?, hex).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::LinkKind;

    #[test]
    fn keys_are_read_back() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"x");
            assert_eq!(blob(&keys::blob(&digest)), Some(digest));
            // A tag may look like the directory of links.
            for tag in ["latest", "_layers", "current", "index"] {
                let (repo, tag) = ("ghcr.io/owner/app".parse().unwrap(), tag.parse().unwrap());
                for (key, name) in [
                    (
                        keys::link(&repo, LinkKind::Layer, &digest),
                        Name::Layer(digest),
                    ),
                    (
                        keys::link(&repo, LinkKind::Revision, &digest),
                        Name::Revision(digest),
                    ),
                    (
                        keys::tag_current(&repo, &tag),
                        Name::TagCurrent(tag.as_str()),
                    ),
                    (
                        keys::tag_index(&repo, &tag, &digest),
                        Name::TagIndex(tag.as_str(), digest),
                    ),
                ] {
                    let below = key.strip_prefix(&keys::repositories()).unwrap();
                    let below = below.strip_prefix('/').unwrap();
                    assert_eq!(link(below), Some((repo.as_str(), name)));
                    assert_eq!(link(&format!("{below}/x")), None);
                    assert_eq!(link(below.strip_suffix("/link").unwrap()), None);
                }
            }
        }
    }

    #[test]
    fn other_keys_are_foreign() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let key = keys::blob(&digest);
        let hex = digest.hex();
        for wrong in [
            key.replace("/data", "/x"),
            key.replace("/2d/", "/2e/"),
            key.replace(&hex, &hex.to_uppercase()),
            key.replace("sha256", "blake3"),
            format!("{key}/data"),
            key.replace("docker/", ""),
            "data".to_owned(),
            String::new(),
        ] {
            assert_eq!(blob(&wrong), None, "{wrong}");
        }
        for wrong in [
            format!("a/_uploads/{hex}/data"),
            format!("a/_layers/sha256/{hex}/data"),
            "a/_layers/sha256/12/link".to_owned(),
            "a/_manifests/revisions/link".to_owned(),
            "a/_manifests/tags/x/link".to_owned(),
            format!("_layers/sha256/{hex}/link"),
            "a".to_owned(),
            String::new(),
        ] {
            assert_eq!(link(&wrong), None, "{wrong}");
        }
    }
}
