//! Parses method and URI into an action. No code after this sees a raw path.
//!
//! The actions are those of distribution-spec 1.1 ("Endpoints") that a reader uses, and Docker's
//! `_catalog`. Writes are recognised so that they can be refused as writes.

use std::borrow::Cow;

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

use super::digest::{Digest, DigestError};
use super::error::{Classified, ErrorKind};
use super::name::{NameError, Reference, RepoName};

/// The most entries that one page of a list holds.
pub const MAX_PAGE: usize = 1000;
/// Longest `last` parameter, in bytes: a repository below an upstream's name.
const MAX_LAST: usize = 512;
/// Longest `ns` parameter, in bytes: a host name (255) and a port.
const MAX_NS: usize = 261;
/// Longest `artifactType` filter, in bytes (RFC 6838: 127 + 1 + 127).
const MAX_ARTIFACT_TYPE: usize = 255;

/// A parsed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub action: Action,
    /// containerd's `ns` parameter: the registry host that the client meant.
    pub ns: Option<String>,
}

/// The requested operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `GET /`: a check of load balancers, which the reference registry answers, too.
    Root,
    /// `OPTIONS` of any path: the permitted methods. Browsers send it before other requests.
    Options,
    /// `/v2/`: the check for a registry.
    Base,
    /// `/v2/_catalog`
    Catalog(Page),
    /// `/v2/<name>/tags/list`
    Tags { name: RepoName, page: Page },
    /// `/v2/<name>/manifests/<reference>`
    Manifest {
        name: RepoName,
        reference: Reference,
    },
    /// `/v2/<name>/blobs/<digest>`
    Blob { name: RepoName, digest: Digest },
    /// `/v2/<name>/referrers/<digest>`
    Referrers {
        name: RepoName,
        digest: Digest,
        artifact_type: Option<String>,
    },
}

/// `n` and `last` of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The requested number of entries; a page has at most [`MAX_PAGE`].
    pub n: Option<usize>,
    /// The page starts after this entry.
    pub last: Option<String>,
}

/// Why a request has no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("there is nothing at this path; the registry API begins at /v2/")]
    NotFound,
    #[error("this is a read-only mirror: push to the upstream registry itself")]
    Write,
    #[error("{0}")]
    Name(NameError),
    #[error("{0}")]
    Reference(NameError),
    #[error("{0}")]
    Digest(DigestError),
    #[error("n must be a whole number")]
    PageSize,
    #[error("the parameter {0} is longer than any valid value")]
    Parameter(&'static str),
    /// Two names of the host could mean two upstreams.
    #[error("the request has more than one Host header")]
    Hosts,
}

impl Classified for RouteError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound => ErrorKind::NoSuchPath,
            Self::Write => ErrorKind::ReadOnly,
            Self::Name(_) => ErrorKind::NameInvalid,
            Self::Reference(_) => ErrorKind::TagInvalid,
            Self::Digest(_) => ErrorKind::DigestInvalid,
            Self::PageSize => ErrorKind::PageSizeInvalid,
            Self::Parameter(_) | Self::Hosts => ErrorKind::BadRequest,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        self.to_string().into()
    }
}

impl Route {
    /// Parses a request line. `GET` and `HEAD` are reads; every other method but `OPTIONS` is refused as
    /// a write.
    pub fn parse(method: &Method, uri: &Uri) -> Result<Self, RouteError> {
        let path = if uri.path().contains('%') {
            percent_decode_str(uri.path())
                .decode_utf8()
                .map_err(|_not_utf8| RouteError::NotFound)?
        } else {
            Cow::Borrowed(uri.path())
        };
        let alone = |action| Ok(Self { action, ns: None });
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => None,
            Some(rest) => Some(rest.strip_prefix('/').ok_or(RouteError::NotFound)?),
            // The server as a whole (RFC 9110, section 9.3.7).
            None if method == Method::OPTIONS && matches!(&*path, "*" | "/") => {
                return alone(Action::Options);
            }
            None if (method == Method::GET || method == Method::HEAD) && path == "/" => {
                return alone(Action::Root);
            }
            None => return Err(RouteError::NotFound),
        };
        if method == Method::OPTIONS {
            return alone(Action::Options);
        }
        if method != Method::GET && method != Method::HEAD {
            return Err(RouteError::Write);
        }
        let query = Query::parse(uri.query().unwrap_or_default())?;
        let action = match rest {
            None => Action::Base,
            Some("_catalog") => Action::Catalog(query.page),
            Some(rest) => action_on(rest.trim_end_matches('/'), query.page, query.artifact_type)?,
        };
        Ok(Self {
            action,
            ns: query.ns,
        })
    }
}

/// Parses `<name>/<noun>/<item>` from the right, because the name may have slashes.
fn action_on(rest: &str, page: Page, artifact_type: Option<String>) -> Result<Action, RouteError> {
    let (head, what) = rest.rsplit_once('/').ok_or(RouteError::NotFound)?;
    let (name, noun) = head.rsplit_once('/').ok_or(RouteError::NotFound)?;
    let name = || name.parse::<RepoName>().map_err(RouteError::Name);
    Ok(match (noun, what) {
        ("tags", "list") => Action::Tags {
            name: name()?,
            page,
        },
        ("manifests", reference) => Action::Manifest {
            name: name()?,
            reference: reference.parse().map_err(|error| match error {
                NameError::Digest(error) => RouteError::Digest(error),
                other => RouteError::Reference(other),
            })?,
        },
        ("blobs", digest) => Action::Blob {
            name: name()?,
            digest: digest.parse().map_err(RouteError::Digest)?,
        },
        ("referrers", digest) => Action::Referrers {
            name: name()?,
            digest: digest.parse().map_err(RouteError::Digest)?,
            artifact_type,
        },
        _ => return Err(RouteError::NotFound),
    })
}

/// The known parameters; others are ignored, as by every registry.
#[derive(Default)]
struct Query {
    ns: Option<String>,
    page: Page,
    artifact_type: Option<String>,
}

impl Query {
    fn parse(query: &str) -> Result<Self, RouteError> {
        let mut parsed = Self::default();
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let bounded = |name, max| {
                if value.len() > max {
                    Err(RouteError::Parameter(name))
                } else {
                    Ok(Some(value.to_string()))
                }
            };
            match &*key {
                "ns" => parsed.ns = bounded("ns", MAX_NS)?.filter(|ns| !ns.is_empty()),
                "last" => {
                    parsed.page.last = bounded("last", MAX_LAST)?.filter(|last| !last.is_empty());
                }
                "n" if value.is_empty() => {}
                "n" => {
                    let n: usize = value
                        .parse()
                        .map_err(|_not_a_number| RouteError::PageSize)?;
                    parsed.page.n = Some(n);
                }
                "artifactType" => {
                    // A media type's "+" that the client didn't escape was read as a blank.
                    let kind = bounded("artifactType", MAX_ARTIFACT_TYPE)?;
                    parsed.artifact_type = kind
                        .map(|kind| kind.replace(' ', "+"))
                        .filter(|kind| !kind.is_empty());
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(uri: &str) -> Result<Route, RouteError> {
        Route::parse(&Method::GET, &uri.replace("$D", D).parse().unwrap())
    }

    fn action(uri: &str) -> Action {
        get(uri).unwrap().action
    }

    #[test]
    fn every_endpoint() {
        let name = |text: &str| text.parse::<RepoName>().unwrap();
        let digest: Digest = D.parse().unwrap();
        assert_eq!(action("/v2/"), Action::Base);
        assert_eq!(action("/v2"), Action::Base);
        assert_eq!(
            action("/v2/_catalog?n=5&last=a/b"),
            Action::Catalog(Page {
                n: Some(5),
                last: Some("a/b".into())
            })
        );
        assert_eq!(
            action("/v2/a/b/c/tags/list"),
            Action::Tags {
                name: name("a/b/c"),
                page: Page::default()
            }
        );
        assert_eq!(
            action("/v2/debian/manifests/12"),
            Action::Manifest {
                name: name("debian"),
                reference: "12".parse().unwrap()
            }
        );
        let by_digest = Action::Manifest {
            name: name("a"),
            reference: Reference::Digest(digest),
        };
        assert_eq!(action("/v2/a/manifests/$D"), by_digest);
        assert_eq!(
            action(&format!("/v2/a/manifests/{}", D.replace(':', "%3A"))),
            by_digest
        );
        assert_eq!(
            action("/v2/a%2Fb/blobs/$D"),
            Action::Blob {
                name: name("a/b"),
                digest
            }
        );
        assert_eq!(
            action("/v2/a/referrers/$D?artifactType=a/b+json"),
            Action::Referrers {
                name: name("a"),
                digest,
                artifact_type: Some("a/b+json".into())
            }
        );
    }

    #[test]
    fn repositories_named_like_endpoints() {
        let name: RepoName = "tags/list/manifests".parse().unwrap();
        assert_eq!(
            action("/v2/tags/list/manifests/manifests/blobs"),
            Action::Manifest {
                name,
                reference: "blobs".parse().unwrap()
            }
        );
    }

    #[test]
    fn the_namespace_parameter() {
        assert_eq!(
            get("/v2/?ns=docker.io").unwrap().ns.as_deref(),
            Some("docker.io")
        );
        assert_eq!(
            get("/v2/?ns=127.0.0.1%3A7101").unwrap().ns.as_deref(),
            Some("127.0.0.1:7101")
        );
        assert_eq!(get("/v2/?ns=").unwrap().ns, None);
        assert_eq!(
            get(&format!("/v2/?ns={}", "a".repeat(300))),
            Err(RouteError::Parameter("ns"))
        );
    }

    #[test]
    fn refusals() {
        for (uri, error) in [
            ("//", RouteError::NotFound),
            ("/v1/_ping", RouteError::NotFound),
            ("/v2x/a/manifests/b", RouteError::NotFound),
            ("/v2/a", RouteError::NotFound),
            ("/v2/a/nothing/b", RouteError::NotFound),
            ("/v2/%ff/manifests/b", RouteError::NotFound),
            ("/v2/manifests/b", RouteError::NotFound),
            ("/v2/A/manifests/b", RouteError::Name(NameError::Name)),
            (
                "/v2/a/../../etc/manifests/b",
                RouteError::Name(NameError::Name),
            ),
            ("/v2/a%00/manifests/b", RouteError::Name(NameError::Name)),
            ("/v2/a/manifests/.b", RouteError::Reference(NameError::Tag)),
            (
                "/v2/a/manifests/sha256:0",
                RouteError::Digest(DigestError::Hex),
            ),
            ("/v2/a/blobs/latest", RouteError::Digest(DigestError::Form)),
            ("/v2/a/tags/list?n=-1", RouteError::PageSize),
            ("/v2/a/tags/list?n=x", RouteError::PageSize),
        ] {
            assert_eq!(get(uri), Err(error), "{uri}");
        }
        let long = format!("/v2/{}/manifests/b", "a".repeat(256));
        assert_eq!(get(&long), Err(RouteError::Name(NameError::TooLong)));
    }

    #[test]
    fn what_is_asked_of_the_server_itself() {
        assert_eq!(action("/"), Action::Root);
        for (uri, expected) in [
            ("*", Ok(Action::Options)),
            ("/", Ok(Action::Options)),
            ("/v2/", Ok(Action::Options)),
            ("/v2/App/manifests/x", Ok(Action::Options)),
            ("/x", Err(RouteError::NotFound)),
        ] {
            let route = Route::parse(&Method::OPTIONS, &uri.parse().unwrap());
            assert_eq!(route.map(|route| route.action), expected, "{uri}");
        }
        let write = Route::parse(&Method::POST, &"/".parse().unwrap());
        assert_eq!(write, Err(RouteError::NotFound));
    }

    #[test]
    fn writes_are_known_as_writes() {
        for (method, uri) in [
            (Method::POST, "/v2/a/blobs/uploads/"),
            (Method::PUT, "/v2/a/manifests/b"),
            (Method::PATCH, "/v2/a/blobs/uploads/1"),
            (Method::DELETE, "/v2/a/manifests/b"),
        ] {
            assert_eq!(
                Route::parse(&method, &uri.parse().unwrap()),
                Err(RouteError::Write)
            );
        }
        let outside = Route::parse(&Method::POST, &"/x".parse().unwrap());
        assert_eq!(outside, Err(RouteError::NotFound));
    }

    proptest! {
        #[test]
        fn any_path_is_survived(path in "(/|v2|a|manifests|blobs|tags|list|referrers|\\.\\.|%2[fF]|%00|:|@|_catalog|sha256:){0,12}", query in "[a-z=&%0-9]{0,30}") {
            if let Ok(uri) = format!("/v2/{path}?{query}").parse::<Uri>()
                && let Ok(Route { action: Action::Manifest { name, .. } | Action::Blob { name, .. }, .. }) =
                    Route::parse(&Method::GET, &uri)
            {
                prop_assert!(name.components().all(|part| part != ".." && !part.is_empty()));
            }
        }

        #[test]
        fn any_valid_name_and_tag_find_their_way(name in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}", tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}") {
            let route = get(&format!("/v2/{name}/manifests/{tag}")).unwrap();
            let expected = Action::Manifest { name: name.parse().unwrap(), reference: tag.parse().unwrap() };
            prop_assert_eq!(route.action, expected);
        }
    }
}
