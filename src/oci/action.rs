//! Parses method and URI into an action. No code after this sees a raw path.
//!
//! The actions are those of distribution-spec 1.1 ("Endpoints"), and Docker's `_catalog`. What writes is
//! parsed by [`super::push`].

use std::borrow::Cow;

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

use super::bytes;
use super::digest::Digest;
use super::name::{NameError, Reference, RepoName};
use super::page::Page;
use super::push::Push;
use super::route_error::RouteError;

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
    /// `/token` and `/token/<upstream>`: the built-in token service.
    Token {
        upstream: Option<String>,
        /// POST: the parameters are in the body, as a form.
        is_form: bool,
    },
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
        /// The page starts after this entry.
        last: Option<String>,
    },
    /// A request that writes, or one about an upload. Boxed: it is rare.
    Push { name: RepoName, push: Box<Push> },
}

impl Action {
    /// The repository that the action is for, as the client wrote it.
    pub fn repository(&self) -> Option<&RepoName> {
        match self {
            Self::Tags { name, .. }
            | Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Referrers { name, .. }
            | Self::Push { name, .. } => Some(name),
            Self::Root | Self::Options | Self::Base | Self::Token { .. } | Self::Catalog(_) => None,
        }
    }
}

impl Route {
    /// Parses a request line.
    pub fn parse(method: &Method, uri: &Uri) -> Result<Self, RouteError> {
        let path = if bytes::contains(uri.path(), b'%') {
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
            None => return token(method, &path).map_or(Err(RouteError::NotFound), alone),
        };
        if method == Method::OPTIONS {
            return alone(Action::Options);
        }
        let written = uri.query().unwrap_or_default();
        let query = Query::parse(written)?;
        let action = match rest {
            Some(rest) if method != Method::GET && method != Method::HEAD => {
                push(method, rest, written)?
            }
            None if method != Method::GET && method != Method::HEAD => {
                return Err(RouteError::Method);
            }
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

fn push(method: &Method, rest: &str, query: &str) -> Result<Action, RouteError> {
    let pushed = Push::parse(method, rest.trim_end_matches('/'), query);
    let (name, push) = pushed.unwrap_or(Err(RouteError::Method))?;
    let push = Box::new(push);
    Ok(Action::Push { name, push })
}

/// The token service, which is beside `/v2/`. The name of an upstream may have a port.
fn token(method: &Method, path: &str) -> Option<Action> {
    let rest = path.strip_prefix("/token")?;
    let is_form = method == Method::POST;
    if !is_form && method != Method::GET && method != Method::HEAD {
        return None;
    }
    let upstream = match rest {
        "" | "/" => None,
        _ => Some(rest.strip_prefix('/')?.to_owned()),
    };
    let is_name = |name: &String| name.len() <= MAX_NS && !name.contains(['/', '\0']);
    upstream
        .as_ref()
        .is_none_or(is_name)
        .then_some(Action::Token { upstream, is_form })
}

/// Parses `<name>/<noun>/<item>` from the right, because the name may have slashes.
fn action_on(rest: &str, page: Page, artifact_type: Option<String>) -> Result<Action, RouteError> {
    let (head, what) = bytes::rsplit_once(rest, b'/').ok_or(RouteError::NotFound)?;
    let (name, noun) = bytes::rsplit_once(head, b'/').ok_or(RouteError::NotFound)?;
    let digest = || what.parse::<Digest>().map_err(NameError::Digest);
    Ok(match (noun, what) {
        ("tags", "list") => Action::Tags {
            name: name.parse()?,
            page,
        },
        ("manifests", reference) => Action::Manifest {
            name: name.parse()?,
            reference: reference.parse()?,
        },
        ("blobs", _) => Action::Blob {
            name: name.parse()?,
            digest: digest()?,
        },
        ("referrers", _) => Action::Referrers {
            name: name.parse()?,
            digest: digest()?,
            artifact_type,
            last: page.last,
        },
        ("uploads", id) => {
            let name = name.strip_suffix("/blobs").ok_or(RouteError::NotFound)?;
            Action::Push {
                name: name.parse()?,
                push: Box::new(Push::status(id)),
            }
        }
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
            let bounded = |name, max| match value.len() {
                0 => Ok(None),
                length if length > max => Err(RouteError::Parameter(name)),
                _ => Ok(Some(value.to_string())),
            };
            match &*key {
                "ns" => parsed.ns = bounded("ns", MAX_NS)?,
                "last" => parsed.page.last = bounded("last", MAX_LAST)?,
                "n" if value.is_empty() => {}
                "n" => {
                    let n: Result<usize, _> = value.parse();
                    parsed.page.n = Some(n.map_err(|_not_a_number| RouteError::PageSize)?);
                }
                "artifactType" => {
                    // A media type's "+" that the client didn't escape was read as a blank.
                    let kind = bounded("artifactType", MAX_ARTIFACT_TYPE)?;
                    parsed.artifact_type = kind.map(|kind| kind.replace(' ', "+"));
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
    use crate::oci::digest::DigestError;
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(uri: &str) -> Result<Route, RouteError> {
        Route::parse(&Method::GET, &uri.replace("$D", D).parse().unwrap())
    }

    fn action(uri: &str) -> Action {
        get(uri).unwrap().action
    }

    fn name(text: &str) -> RepoName {
        text.parse().unwrap()
    }

    #[test]
    fn every_endpoint_has_its_action() {
        let digest: Digest = D.parse().unwrap();
        let manifest = |repo, reference: &str| Action::Manifest {
            name: name(repo),
            reference: reference.parse().unwrap(),
        };
        let page = Page {
            n: Some(5),
            last: Some("a/b".into()),
        };
        let tags = Action::Tags {
            name: name("a/b/c"),
            page: Page::default(),
        };
        let blob = Action::Blob {
            name: name("a/b"),
            digest,
        };
        let referrers = Action::Referrers {
            name: name("a"),
            digest,
            artifact_type: Some("a/b+json".into()),
            last: Some("c".into()),
        };
        let escaped = format!("/v2/a/manifests/{}", D.replace(':', "%3A"));
        for (uri, expected) in [
            ("/", Action::Root),
            ("/v2/", Action::Base),
            ("/v2", Action::Base),
            ("/v2/_catalog?n=5&last=a/b", Action::Catalog(page)),
            ("/v2/a/b/c/tags/list", tags),
            ("/v2/debian/manifests/12", manifest("debian", "12")),
            ("/v2/a/manifests/$D", manifest("a", D)),
            (&escaped, manifest("a", D)),
            ("/v2/a%2Fb/blobs/$D", blob),
            ("/v2/a/referrers/$D?artifactType=a/b+json&last=c", referrers),
            // A repository that is named like endpoints.
            (
                "/v2/tags/list/manifests/manifests/blobs",
                manifest("tags/list/manifests", "blobs"),
            ),
        ] {
            assert_eq!(action(uri), expected, "{uri}");
        }
    }

    #[test]
    fn the_namespace_parameter_is_bounded() {
        for (query, ns) in [
            ("ns=docker.io", Some("docker.io")),
            ("ns=127.0.0.1%3A7101", Some("127.0.0.1:7101")),
            ("ns=", None),
        ] {
            let route = get(&format!("/v2/?{query}")).unwrap();
            assert_eq!(route.ns.as_deref(), ns, "{query}");
        }
        let long = format!("/v2/?ns={}", "a".repeat(300));
        assert_eq!(get(&long), Err(RouteError::Parameter("ns")));
    }

    #[test]
    fn invalid_requests_have_no_route() {
        let digest = |error| RouteError::Name(NameError::Digest(error));
        let name = || RouteError::Name(NameError::Name);
        let long = format!("/v2/{}/manifests/b", "a".repeat(256));
        for (uri, error) in [
            ("//", RouteError::NotFound),
            ("/v1/_ping", RouteError::NotFound),
            ("/v2x/a/manifests/b", RouteError::NotFound),
            ("/v2/a", RouteError::NotFound),
            ("/v2/a/nothing/b", RouteError::NotFound),
            ("/v2/%ff/manifests/b", RouteError::NotFound),
            ("/v2/manifests/b", RouteError::NotFound),
            ("/v2/A/manifests/b", name()),
            ("/v2/a/../../etc/manifests/b", name()),
            ("/v2/a%00/manifests/b", name()),
            (&long, NameError::TooLong.into()),
            ("/v2/a/manifests/.b", RouteError::Name(NameError::Tag)),
            ("/v2/a/manifests/sha256:0", digest(DigestError::Hex)),
            ("/v2/a/blobs/latest", digest(DigestError::Form)),
            ("/v2/a/tags/list?n=-1", RouteError::PageSize),
            ("/v2/a/tags/list?n=x", RouteError::PageSize),
        ] {
            assert_eq!(get(uri), Err(error), "{uri}");
        }
    }

    #[test]
    fn the_token_service_names_an_upstream() {
        let token = |upstream: Option<&str>, is_form| {
            let upstream = upstream.map(str::to_owned);
            Ok(Action::Token { upstream, is_form })
        };
        let long = format!("/token/{}", "a".repeat(300));
        for (method, uri, expected) in [
            (Method::GET, "/token?scope=a", token(None, false)),
            (
                Method::GET,
                "/token/docker.io",
                token(Some("docker.io"), false),
            ),
            (Method::GET, "/token/a%3A5", token(Some("a:5"), false)),
            (Method::POST, "/token/a", token(Some("a"), true)),
            (Method::DELETE, "/token", Err(RouteError::NotFound)),
            (Method::GET, "/tokens", Err(RouteError::NotFound)),
            (Method::GET, "/token/a/b", Err(RouteError::NotFound)),
            (Method::GET, &long, Err(RouteError::NotFound)),
        ] {
            let route = Route::parse(&method, &uri.parse().unwrap());
            assert_eq!(route.map(|route| route.action), expected, "{method} {uri}");
        }
    }

    #[test]
    fn options_is_answered_and_other_methods_need_a_path_that_is_written() {
        let (options, method) = (Ok(Action::Options), Err(RouteError::Method));
        let not_found = Err(RouteError::NotFound);
        for (method, uri, expected) in [
            (Method::OPTIONS, "*", &options),
            (Method::OPTIONS, "/", &options),
            (Method::OPTIONS, "/v2/", &options),
            (Method::OPTIONS, "/v2/App/manifests/x", &options),
            (Method::OPTIONS, "/x", &not_found),
            (Method::POST, "/v2/", &method),
            (Method::DELETE, "/v2/_catalog", &method),
            (Method::PUT, "/v2/a/tags/list", &method),
            (Method::TRACE, "/v2/a/manifests/b", &method),
            (Method::POST, "/", &not_found),
            (Method::POST, "/x", &not_found),
        ] {
            let route = Route::parse(&method, &uri.parse().unwrap());
            let action = route.map(|route| route.action);
            assert_eq!(action, *expected, "{method} {uri}");
        }
    }

    proptest! {
        #[test]
        fn no_path_leaves_its_directory(path in "(/|v2|a|manifests|blobs|tags|list|referrers|\\.\\.|%2[fF]|%00|:|@|_catalog|sha256:){0,12}", query in "[a-z=&%0-9]{0,30}") {
            if let Ok(uri) = format!("/v2/{path}?{query}").parse::<Uri>()
                && let Ok(Route { action: Action::Manifest { name, .. } | Action::Blob { name, .. }, .. }) =
                    Route::parse(&Method::GET, &uri)
            {
                prop_assert!(name.components().all(|part| part != ".." && !part.is_empty()));
            }
        }

        #[test]
        fn any_valid_name_and_tag_have_a_route(name in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}", tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}") {
            let route = get(&format!("/v2/{name}/manifests/{tag}")).unwrap();
            let expected = Action::Manifest { name: name.parse().unwrap(), reference: tag.parse().unwrap() };
            prop_assert_eq!(route.action, expected);
        }
    }
}
