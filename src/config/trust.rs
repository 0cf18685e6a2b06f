//! What the operator trusts an upstream with: plain HTTP, a token service on another site, a scope
//! of its tokens, redirects to internal addresses.

use url::{Host, Url};

use super::HostPattern;
use super::report::{Report, Section, shown};

/// Longest scope, in bytes: it becomes a part of a URL.
const MAX_SCOPE: usize = 1024;

/// Whether credentials and redirects may use plain HTTP. Credentials for a plain HTTP upstream on
/// another machine need it.
pub(super) fn plain_http(
    section: &Section<'_>,
    url: &Url,
    has_credentials: bool,
    report: &mut Report<'_>,
) -> bool {
    let plain_http = section.bool("plainhttp", false, report);
    if has_credentials && url.scheme() == "http" && !is_loopback(url) {
        let (user, key) = (section.path.key("username"), section.path.key("plainhttp"));
        let host = url.host_str().unwrap_or_default();
        if plain_http {
            let message = format!("the credentials for {host} are sent over plain HTTP");
            report.warning(&user, message);
        } else {
            let message = format!(
                "the credentials for {host} would be sent over plain HTTP; use an https:// URL, or \
                 write `{key}: true` to permit it"
            );
            report.problem(&user, message);
        }
    }
    plain_http
}

/// The token service that is given the credentials although it is on another site.
pub(super) fn realm(
    section: &Section<'_>,
    plain_http: bool,
    report: &mut Report<'_>,
) -> Option<Url> {
    let text = section.text("realm")?;
    let path = section.path.key("realm");
    let url = Url::parse(text).ok().filter(|url| {
        let secret = !url.username().is_empty() || url.password().is_some();
        matches!(url.scheme(), "http" | "https") && url.has_host() && !secret
    });
    let Some(url) = url else {
        // The text isn't shown if it may hold a password.
        let value = if text.contains('@') {
            "a URL with an @".to_owned()
        } else {
            shown(text)
        };
        let message =
            format!("`{path}` is {value}; write a URL such as https://auth.example.com/token");
        report.problem(&path, message);
        return None;
    };
    if url.scheme() == "http" && !is_loopback(&url) && !plain_http {
        let key = section.path.key("plainhttp");
        let message = format!(
            "`{path}` is {}, and credentials would be sent there over plain HTTP; use an https:// \
             URL, or write `{key}: true` to permit it",
            shown(text)
        );
        report.problem(&path, message);
    }
    Some(url)
}

/// The scope of all tokens of an upstream.
pub(super) fn scope(section: &Section<'_>, report: &mut Report<'_>) -> Option<String> {
    let text = section.text("scope")?;
    let path = section.path.key("scope");
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if printable && !text.trim().is_empty() && text.len() <= MAX_SCOPE {
        return Some(text.to_owned());
    }
    let message = format!(
        "`{path}` is {}; write a scope such as repository:{{name}}:pull",
        shown(text)
    );
    report.problem(&path, message);
    None
}

/// Hosts that the upstream may lead to although their addresses are internal.
pub(super) fn redirects(section: &Section<'_>, report: &mut Report<'_>) -> Vec<HostPattern> {
    let mut patterns = Vec::new();
    for (path, text) in section.texts("redirects") {
        match text.parse() {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => {
                let value = shown(text);
                report.problem(&path, format!("`{path}` is {value}: {error}"));
            }
        }
    }
    patterns
}

/// Whether what is sent to a URL stays on this machine.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
