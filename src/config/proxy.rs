//! The `proxy` section: the upstreams, and how long what they say is believed. What is kept of
//! them is in `retention`, and how blobs are downloaded in `fetch`.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use crate::oci::RepoName;

use super::address;
use super::document::KeyPath;
use super::report::{Report, Section, shown};
use super::{Credentials, Proxy, Timeouts, Upstream, fetch, retention, trust};

/// The name that images on Docker Hub have.
const HUB_NAME: &str = "docker.io";
/// The host that answers for Docker Hub's images.
const HUB_HOST: &str = "registry-1.docker.io";
/// Hosts that mean Docker Hub, as aliases.
const HUB_ALIASES: [&str; 3] = [HUB_NAME, "index.docker.io", HUB_HOST];
/// The website, which people write for the registry.
const HUB_WEBSITE: &str = "hub.docker.com";

const DEFAULT_TAGS_TTL: Duration = Duration::from_mins(1);
const DEFAULT_CONNECT: Duration = Duration::from_secs(10);
const DEFAULT_HEADER: Duration = Duration::from_secs(30);
const DEFAULT_STALL: Duration = Duration::from_mins(1);

pub(super) fn read(proxy: &Section<'_>, from_file: bool, report: &mut Report<'_>) -> Proxy {
    if from_file && proxy.text("remoteurl").is_none() {
        let message = "`proxy.remoteurl` is not set: the default upstream is Docker Hub";
        report.warning(&proxy.path, message.to_owned());
    }
    let url = match proxy.text("remoteurl") {
        Some(text) => remote_url(text, &proxy.path.key("remoteurl"), report).unwrap_or_else(hub),
        None => hub(),
    };
    let name = if is_hub(&url) {
        HUB_NAME.to_owned()
    } else {
        authority(&url)
    };
    let default = upstream(proxy, name, url, report);
    let mut upstreams = Vec::new();
    let mut paths = vec![proxy.path.clone()];
    for section in proxy.sections("upstreams") {
        if let Some(upstream) = named(&section, report) {
            upstreams.push(upstream);
            paths.push(section.path);
        }
    }
    let all: Vec<_> = std::iter::once(&default)
        .chain(&upstreams)
        .zip(&paths)
        .collect();
    conflicts(&all, report);
    Proxy {
        ttl: retention::ttl(proxy, report),
        ttl_mode: retention::ttl_mode(proxy, report),
        ttl_rules: retention::ttl_rules(proxy, &default, report),
        pins: retention::pins(proxy, &default, report),
        range_rules: fetch::range_rules(proxy, &default, report),
        default,
        upstreams,
        tags_ttl: proxy
            .section("tags")
            .duration("ttl", DEFAULT_TAGS_TTL, report),
        timeouts: Timeouts {
            connect: timeout(proxy, "connecttimeout", DEFAULT_CONNECT, report),
            header: timeout(proxy, "headertimeout", DEFAULT_HEADER, report),
            stall: timeout(proxy, "stalltimeout", DEFAULT_STALL, report),
        },
        segments: fetch::segments(&proxy.section("segments"), report),
        streams: fetch::streams(&proxy.section("streams"), report),
        max_blob_size: fetch::max_blob_size(proxy, report),
        min_speed: fetch::min_speed(proxy, report),
        prefetch: fetch::prefetch(&proxy.section("prefetch"), report),
        on_abandon: fetch::on_abandon(proxy, report),
        ranges: fetch::ranges(proxy, report),
        fill_after: fetch::fill_after(proxy, report),
    }
}

/// A time limit; none at all would let a silent upstream hold clients for ever.
fn timeout(proxy: &Section<'_>, key: &str, default: Duration, report: &mut Report<'_>) -> Duration {
    let timeout = proxy.duration(key, default, report);
    if timeout.is_zero() {
        let path = proxy.path.key(key);
        report.problem(&path, format!("`{path}` must be more than 0"));
    }
    timeout
}

/// An item of `proxy.upstreams`.
fn named(section: &Section<'_>, report: &mut Report<'_>) -> Option<Upstream> {
    let name = name(section, report);
    let path = section.path.key("remoteurl");
    let url = if let Some(text) = section.text("remoteurl") {
        remote_url(text, &path, report)
    } else {
        let message = format!("`{path}` is missing; write the upstream's URL");
        report.problem(&section.path, message);
        None
    };
    // Even without a name or URL, the other keys are looked at.
    let usable = name.is_some() && url.is_some();
    let upstream = upstream(
        section,
        name.unwrap_or_default(),
        url.unwrap_or_else(hub),
        report,
    );
    usable.then_some(upstream)
}

fn name(section: &Section<'_>, report: &mut Report<'_>) -> Option<String> {
    let path = section.path.key("name");
    let Some(text) = section.text("name") else {
        let message = format!("`{path}` is missing; write one such as ghcr.io");
        report.problem(&section.path, message);
        return None;
    };
    match text.parse::<RepoName>() {
        Ok(name) if name.components().count() == 1 => {
            if !text.contains('.') {
                let message = format!(
                    "`{path}` has no dot: the default upstream's repositories under `{text}/` \
                     share their place in the store with this upstream's"
                );
                report.warning(&path, message);
            }
            Some(text.to_owned())
        }
        _ => {
            let message = format!(
                "`{path}` is {}; write lower-case letters and digits, separated by one of . _ - \
                 and without a slash or port, such as ghcr.io",
                shown(text)
            );
            report.problem(&path, message);
            None
        }
    }
}

/// What the default upstream and the named ones have in common.
fn upstream(section: &Section<'_>, name: String, url: Url, report: &mut Report<'_>) -> Upstream {
    let credentials = credentials(section, report);
    let insecure = section.bool("insecure", false, report);
    if insecure && url.scheme() == "https" && credentials.is_some() {
        let host = authority(&url);
        let message = format!(
            "the credentials for {host} are sent to a server whose certificate isn't checked"
        );
        report.warning(&section.path.key("username"), message);
    }
    let plain_http = trust::plain_http(section, &url, credentials.is_some(), report);
    let mut aliases = vec![name.clone(), authority(&url)];
    if is_hub(&url) {
        aliases.extend(HUB_ALIASES.map(str::to_owned));
    }
    for (path, text) in section.texts("aliases") {
        if let Some(alias) = address::alias(text) {
            aliases.push(alias);
        } else {
            let message = format!("`{path}` is {}; write host or host:port", shown(text));
            report.problem(&path, message);
        }
    }
    aliases.sort();
    aliases.dedup();
    Upstream {
        is_docker_hub: aliases.iter().any(|alias| alias == HUB_NAME),
        name,
        url,
        credentials,
        ca: authorities(section, report),
        insecure,
        plain_http,
        realm: trust::realm(section, plain_http, report),
        scope: trust::scope(section, report),
        redirects: trust::redirects(section, report),
        aliases,
    }
}

fn credentials(section: &Section<'_>, report: &mut Report<'_>) -> Option<Credentials> {
    let (given, missing) = match (section.text("username"), section.text("password")) {
        (Some(username), Some(password)) => {
            return Some(Credentials {
                username: username.to_owned(),
                password: SecretString::from(password),
            });
        }
        (Some(_), None) => ("username", "password"),
        (None, Some(_)) => ("password", "username"),
        (None, None) => return None,
    };
    let path = section.path.key(given);
    let missing = section.path.key(missing);
    report.problem(
        &path,
        format!("`{path}` is set, but `{missing}` isn't; write both or none"),
    );
    None
}

/// The file of certificate authorities; opened once, so that a wrong path shows at the start.
fn authorities(section: &Section<'_>, report: &mut Report<'_>) -> Option<PathBuf> {
    let file = PathBuf::from(section.text("ca")?);
    let opened = std::fs::File::open(&file).and_then(|file| file.metadata());
    let wrong = match opened {
        Ok(metadata) if metadata.is_file() => return Some(file),
        Ok(_) => "it is not a file".to_owned(),
        Err(error) => error.to_string(),
    };
    let path = section.path.key("ca");
    let value = shown(&file.to_string_lossy());
    report.problem(
        &path,
        format!("`{path}` is {value}, which can't be read: {wrong}"),
    );
    None
}

/// The URL of a registry. Messages don't repeat one that holds a password.
fn remote_url(text: &str, path: &KeyPath, report: &mut Report<'_>) -> Option<Url> {
    let mut problem = |message: String| {
        report.problem(path, message);
        None
    };
    if text.contains('@') {
        let message = format!(
            "`{path}` contains an @; write the credentials as `username` and `password` beside it"
        );
        return problem(message);
    }
    let value = shown(text);
    let url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => {
            return problem(format!(
                "`{path}` is {value}; write a URL such as https://registry-1.docker.io"
            ));
        }
    };
    if is_hub(&url) {
        return Some(hub());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        let message = format!("`{path}` is {value}; write only the scheme, host and port");
        return problem(message);
    }
    Some(url)
}

#[expect(
    clippy::expect_used,
    reason = "a constant, which every test of defaults parses"
)]
fn hub() -> Url {
    Url::parse(&format!("https://{HUB_HOST}")).expect("a valid URL")
}

/// Whether a URL means Docker Hub, whatever path is behind it (`/v1/` is seen often).
fn is_hub(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    url.port().is_none() && (HUB_ALIASES.contains(&host) || host == HUB_WEBSITE)
}

/// `host[:port]`; a scheme's own port is left out.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// No two upstreams may answer to one name: it would be chance which of them is asked.
fn conflicts(all: &[(&Upstream, &KeyPath)], report: &mut Report<'_>) {
    for (position, (later, path)) in all.iter().enumerate() {
        for (earlier, other) in all.iter().take(position) {
            if later.name == earlier.name {
                let name = &later.name;
                let message = format!("`{other}` and `{path}` are both named `{name}`");
                report.problem(path, message);
                continue;
            }
            let shared = later
                .aliases
                .iter()
                .find(|alias| earlier.aliases.contains(alias));
            if let Some(alias) = shared {
                let message = format!(
                    "the upstreams `{}` and `{}` both answer to `{alias}`; give it to one",
                    earlier.name, later.name
                );
                report.problem(path, message);
            }
        }
    }
}
