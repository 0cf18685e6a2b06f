//! Where a redirect may lead, and what else may be read from a URL that the other side chose.
//!
//! Redirects are followed here and not by the HTTP library, because each hop decides anew whether
//! the credentials go along: only to the origin (scheme, host and port) that they were meant for.

use http::StatusCode;
use http::header::{HeaderMap, LINK, LOCATION};
use url::Url;

/// Redirects followed for one request.
pub(super) const MAX_REDIRECTS: usize = 5;

/// Why a URL that the other side chose is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    #[error("more than {MAX_REDIRECTS} redirects")]
    TooMany,
    #[error("a redirect without a readable Location")]
    Location,
    #[error("neither http:// nor https://")]
    Scheme,
    #[error("it leads from https:// to http://")]
    Downgrade,
    #[error("it holds a user name or password")]
    UserInfo,
}

/// Whether this status sends the reader to `Location`.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether credentials for one may be sent to the other (RFC 6454: scheme, host and port).
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host() == b.host()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// The next hop from `from`.
pub(super) fn target(
    from: &Url,
    headers: &HeaderMap,
    plain_http: bool,
) -> Result<Url, RedirectError> {
    let location = headers.get(LOCATION).ok_or(RedirectError::Location)?;
    let location = location
        .to_str()
        .map_err(|_not_ascii| RedirectError::Location)?;
    let url = from
        .join(location)
        .map_err(|_malformed| RedirectError::Location)?;
    checked(from, url, plain_http)
}

/// `url`, named by the server at `from`, if it may be asked. `plain_http` permits to leave https. A
/// fragment is dropped: it isn't sent anyway.
pub(super) fn checked(from: &Url, mut url: Url, plain_http: bool) -> Result<Url, RedirectError> {
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(RedirectError::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(RedirectError::UserInfo);
    }
    if from.scheme() == "https" && url.scheme() == "http" && !plain_http {
        return Err(RedirectError::Downgrade);
    }
    url.set_fragment(None);
    Ok(url)
}

/// The target of `Link: <...>; rel="next"` (RFC 8288), resolved against the page's own URL.
pub(super) fn next_page(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let lines = headers.get_all(LINK).iter();
    let target = lines
        .filter_map(|line| line.to_str().ok())
        .find_map(next_in_line)?;
    from.join(target).ok()
}

fn next_in_line(line: &str) -> Option<&str> {
    let mut rest = line;
    loop {
        let (_, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        // The parameters end where the next link begins; none that registries send hold a `<`.
        let (parameters, _) = after.split_once('<').unwrap_or((after, ""));
        if parameters.split([';', ',']).any(is_rel_next) {
            return Some(target);
        }
        rest = after;
    }
}

fn is_rel_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    name.trim().eq_ignore_ascii_case("rel")
        && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn to(from: &str, location: &str, insecure: bool) -> Result<String, RedirectError> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, location.parse().unwrap());
        target(&url(from), &headers, insecure).map(String::from)
    }

    #[test]
    fn a_redirect_target_is_resolved_and_checked() {
        let from = "https://registry.example/v2/a/blobs/x?y";
        for (location, expected) in [
            (
                "https://cdn.example/b?sig=1#frag",
                "https://cdn.example/b?sig=1",
            ),
            ("/elsewhere", "https://registry.example/elsewhere"),
            ("//cdn.example:8443/b", "https://cdn.example:8443/b"),
            ("z?q", "https://registry.example/v2/a/blobs/z?q"),
        ] {
            assert_eq!(
                to(from, location, false).as_deref(),
                Ok(expected),
                "{location}"
            );
        }
        for (location, error) in [
            ("http://cdn.example/b", RedirectError::Downgrade),
            ("ftp://cdn.example/b", RedirectError::Scheme),
            ("file:///etc/passwd", RedirectError::Scheme),
            ("data:text/plain,x", RedirectError::Scheme),
            ("https://u@cdn.example/", RedirectError::UserInfo),
            ("https://:p@cdn.example/", RedirectError::UserInfo),
            ("https://[", RedirectError::Location),
        ] {
            assert_eq!(to(from, location, false), Err(error), "{location}");
        }
        assert!(to(from, "http://cdn.example/b", true).is_ok());
        assert!(to("http://a.example", "http://b.example", false).is_ok());
        assert_eq!(
            target(&url(from), &HeaderMap::new(), false),
            Err(RedirectError::Location)
        );
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let own = url("https://registry.example/v2/");
        for same in [
            "https://registry.example:443/other",
            "https://REGISTRY.example",
        ] {
            assert!(same_origin(&own, &url(same)), "{same}");
        }
        for other in [
            "http://registry.example",
            "http://registry.example:443",
            "https://registry.example:444",
            "https://registry.example.evil.example",
            "https://a.registry.example",
        ] {
            assert!(!same_origin(&own, &url(other)), "{other}");
        }
    }

    #[test]
    fn the_link_to_the_next_page_is_found() {
        let from = url("https://registry.example/v2/a/tags/list?n=2");
        let next = |line: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, line.parse().unwrap());
            next_page(&from, &headers).map(String::from)
        };
        let expected = Some("https://registry.example/v2/a/tags/list?last=b,c&n=2".to_owned());
        for line in [
            r#"</v2/a/tags/list?last=b,c&n=2>; rel="next""#,
            "<https://registry.example/v2/a/tags/list?last=b,c&n=2>;rel=next",
            r#"</first>; rel="first", </v2/a/tags/list?last=b,c&n=2>; title=x; Rel = "next""#,
        ] {
            assert_eq!(next(line), expected, "{line}");
        }
        for line in [
            "",
            "</x>",
            "</x>; rel=\"prev\"",
            "/x; rel=next",
            "<",
            "</x; rel=next",
        ] {
            assert_eq!(next(line), None, "{line}");
        }
    }
}
