//! The requests of the specification's categories "push" and "content management", parsed.

use std::borrow::Cow;

use http::Method;

use super::bytes;
use super::digest::{Algorithm, Digest};
use super::name::{NameError, Reference, RepoName, Tag};
use super::route_error::{MAX_TAGS, RouteError};
use super::upload::UploadId;

/// A request that writes, or that is about an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Push {
    /// `POST uploads/`
    Start { algorithm: Option<Algorithm> },
    /// `POST uploads/?digest=`: the blob is the body.
    Blob { digest: Digest },
    /// `POST uploads/?mount=`
    Mount {
        digest: Digest,
        from: Option<RepoName>,
    },
    /// A request for a session that can't exist: its id isn't one.
    NoSession,
    /// `GET uploads/<id>`
    Status(UploadId),
    /// `PATCH uploads/<id>`
    Append(UploadId),
    /// `PUT uploads/<id>?digest=`
    Finish { upload: UploadId, digest: Digest },
    /// `DELETE uploads/<id>`
    Cancel(UploadId),
    /// `PUT manifests/<reference>`, with further tags for a digest.
    PutManifest {
        reference: Reference,
        tags: Vec<Tag>,
    },
    /// `DELETE manifests/<reference>`
    DeleteManifest(Reference),
    /// `DELETE blobs/<digest>`
    DeleteBlob(Digest),
}

impl Push {
    /// `GET uploads/<id>`
    pub(super) fn status(id: &str) -> Self {
        id.parse().map_or(Self::NoSession, Self::Status)
    }

    /// Parses the rest of a path below `/v2/`. `None` where nothing is written with this method.
    pub(super) fn parse(
        method: &Method,
        rest: &str,
        query: &str,
    ) -> Option<Result<(RepoName, Self), RouteError>> {
        let (head, what) = bytes::rsplit_once(rest, b'/')?;
        let (name, noun) = bytes::rsplit_once(head, b'/')?;
        let parse = |name: &str, push: Result<Self, RouteError>| {
            let name = name.parse::<RepoName>();
            name.map_err(RouteError::from)
                .and_then(|name| Ok((name, push?)))
        };
        if noun == "uploads" {
            let name = name.strip_suffix("/blobs")?;
            let push = session(method, what, query)?;
            return Some(parse(name, push));
        }
        let push = match (noun, what) {
            ("blobs", "uploads") if method == Method::POST => start(query),
            ("blobs", _) if method == Method::DELETE => digest(what).map(Self::DeleteBlob),
            ("manifests", _) if method == Method::DELETE => {
                let reference = what.parse().map_err(RouteError::Name);
                reference.map(Self::DeleteManifest)
            }
            ("manifests", _) if method == Method::PUT => manifest(what, query),
            _ => return None,
        };
        Some(parse(name, push))
    }
}

fn digest(text: &str) -> Result<Digest, RouteError> {
    let digest = text.parse::<Digest>().map_err(NameError::Digest);
    digest.map_err(RouteError::Name)
}

/// The first parameter with a name.
fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let mut all = url::form_urlencoded::parse(query.as_bytes());
    all.find_map(|(key, value)| (key == name).then_some(value))
}

/// A request for an upload session.
fn session(method: &Method, id: &str, query: &str) -> Option<Result<Push, RouteError>> {
    let upload = id.parse::<UploadId>();
    let with = |push: fn(UploadId) -> Push| Ok(upload.map_or(Push::NoSession, push));
    Some(match *method {
        Method::PATCH => with(Push::Append),
        Method::DELETE => with(Push::Cancel),
        Method::PUT => {
            let digest = digest(&parameter(query, "digest").unwrap_or_default());
            digest.map(|digest| {
                upload.map_or(Push::NoSession, |upload| Push::Finish { upload, digest })
            })
        }
        _ => return None,
    })
}

/// A mount is never refused: a client that can't mount uploads (distribution-spec, "Mounting a blob
/// from another repository").
fn start(query: &str) -> Result<Push, RouteError> {
    if let Some(mount) = parameter(query, "mount") {
        let from = parameter(query, "from").filter(|from| !from.is_empty());
        let from = from.map(|from| from.parse::<RepoName>()).transpose();
        return Ok(match (mount.parse::<Digest>(), from) {
            (Ok(digest), Ok(from)) => Push::Mount { digest, from },
            _ => Push::Start { algorithm: None },
        });
    }
    if let Some(text) = parameter(query, "digest") {
        return digest(&text).map(|digest| Push::Blob { digest });
    }
    let Some(name) = parameter(query, "digest-algorithm") else {
        return Ok(Push::Start { algorithm: None });
    };
    let mut known = Algorithm::ALL.into_iter();
    let algorithm = known.find(|algorithm| algorithm.as_str() == name);
    let unknown = NameError::Digest(super::digest::DigestError::Algorithm);
    let algorithm = algorithm.ok_or(RouteError::Name(unknown))?;
    Ok(Push::Start {
        algorithm: Some(algorithm),
    })
}

fn manifest(reference: &str, query: &str) -> Result<Push, RouteError> {
    let reference: Reference = reference.parse().map_err(RouteError::Name)?;
    let mut tags = Vec::new();
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if key != "tag" {
            continue;
        }
        if matches!(reference, Reference::Tag(_)) {
            return Err(RouteError::TagsOfTag);
        }
        let tag: Tag = value.parse().map_err(RouteError::Name)?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
        if tags.len() > MAX_TAGS {
            return Err(RouteError::TooManyTags);
        }
    }
    Ok(Push::PutManifest { reference, tags })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::digest::DigestError;
    use crate::oci::{Action, Route};

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const U: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn push(line: &str) -> Result<(RepoName, Push), RouteError> {
        let line = line.replace("$D", D).replace("$U", U);
        let (method, uri) = line.split_once(' ').unwrap();
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let route = Route::parse(&method, &uri.parse().unwrap())?;
        let Action::Push { name, push } = route.action else {
            panic!("{line}: {route:?}");
        };
        Ok((name, *push))
    }

    #[test]
    fn every_request_of_a_push_is_known() {
        let name: RepoName = "a/b".parse().unwrap();
        let other: RepoName = "c".parse().unwrap();
        let (digest, upload): (Digest, UploadId) = (D.parse().unwrap(), U.parse().unwrap());
        let start = |algorithm| Push::Start { algorithm };
        let mount = |from: Option<&RepoName>| Push::Mount {
            digest,
            from: from.cloned(),
        };
        let manifest = |reference: &str, tags: &[&str]| Push::PutManifest {
            reference: reference.parse().unwrap(),
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
        };
        for (line, expected) in [
            ("POST /v2/a/b/blobs/uploads/", start(None)),
            ("POST /v2/a/b/blobs/uploads", start(None)),
            (
                "POST /v2/a/b/blobs/uploads/?digest-algorithm=sha512",
                start(Some(Algorithm::Sha512)),
            ),
            (
                "POST /v2/a/b/blobs/uploads/?digest=$D",
                Push::Blob { digest },
            ),
            (
                "POST /v2/a/b/blobs/uploads/?mount=$D&from=c",
                mount(Some(&other)),
            ),
            ("POST /v2/a/b/blobs/uploads/?mount=$D&from=", mount(None)),
            ("POST /v2/a/b/blobs/uploads/?mount=$D&origin=x", mount(None)),
            (
                "POST /v2/a/b/blobs/uploads/?mount=sha256:1&from=c",
                start(None),
            ),
            ("POST /v2/a/b/blobs/uploads/?mount=$D&from=..", start(None)),
            ("GET /v2/a/b/blobs/uploads/$U", Push::Status(upload)),
            ("PATCH /v2/a/b/blobs/uploads/$U", Push::Append(upload)),
            ("PATCH /v2/a/b/blobs/uploads/1", Push::NoSession),
            ("DELETE /v2/a/b/blobs/uploads/$U", Push::Cancel(upload)),
            (
                "PUT /v2/a/b/blobs/uploads/$U?state=x&digest=$D",
                Push::Finish { upload, digest },
            ),
            ("PUT /v2/a/b/blobs/uploads/1?digest=$D", Push::NoSession),
            ("PUT /v2/a/b/manifests/1", manifest("1", &[])),
            (
                "PUT /v2/a/b/manifests/$D?tag=1&tag=2&tag=1",
                manifest(D, &["1", "2"]),
            ),
            (
                "DELETE /v2/a/b/manifests/1",
                Push::DeleteManifest("1".parse().unwrap()),
            ),
            ("DELETE /v2/a/b/blobs/$D", Push::DeleteBlob(digest)),
        ] {
            assert_eq!(push(line), Ok((name.clone(), expected)), "{line}");
        }
    }

    #[test]
    fn malformed_requests_of_a_push_have_no_route() {
        let digest = |error| RouteError::Name(NameError::Digest(error));
        let tags = |n: usize| {
            let tags = (0..n).map(|n| format!("tag={n}")).collect::<Vec<_>>();
            format!("PUT /v2/a/manifests/$D?{}", tags.join("&"))
        };
        for (line, error) in [
            (
                "POST /v2/a/blobs/uploads/?digest=x",
                digest(DigestError::Form),
            ),
            (
                "POST /v2/a/blobs/uploads/?digest-algorithm=sha384",
                digest(DigestError::Algorithm),
            ),
            ("PUT /v2/a/blobs/uploads/$U", digest(DigestError::Form)),
            (
                "PUT /v2/a/blobs/uploads/$U?digest=sha256:E3",
                digest(DigestError::Hex),
            ),
            ("DELETE /v2/a/blobs/sha256:12", digest(DigestError::Hex)),
            (
                "POST /v2/A/blobs/uploads/",
                RouteError::Name(NameError::Name),
            ),
            ("PUT /v2/a/manifests/.x", RouteError::Name(NameError::Tag)),
            (
                "PUT /v2/a/manifests/$D?tag=.x",
                RouteError::Name(NameError::Tag),
            ),
            ("PUT /v2/a/manifests/1?tag=2", RouteError::TagsOfTag),
            (&tags(33), RouteError::TooManyTags),
            ("POST /v2/a/manifests/1", RouteError::Method),
            ("PUT /v2/a/blobs/$D", RouteError::Method),
            ("PUT /v2/a/blobs/uploads/", RouteError::Method),
            ("GET /v2/uploads/x", RouteError::NotFound),
            ("GET /v2/a/uploads/x", RouteError::NotFound),
            ("POST /v2/blobs/uploads/", RouteError::Method),
        ] {
            assert_eq!(push(line), Err(error), "{line}");
        }
        assert!(push(&tags(32)).is_ok());
    }
}
