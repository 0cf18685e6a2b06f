//! Every key that a configuration file may have: millpond's, and those of the reference registry
//! (CNCF distribution 2.8 to 3.1); and the checks of keys and kinds of values.
//!
//! A key of the reference registry that millpond doesn't implement is ignored with a warning where
//! that is harmless, and refused where ignoring it would weaken what the operator asked for.

use super::report::Report;
use super::section::truth;
use super::yaml::{Node, Value, item_path, key_path};

/// The keys of a map.
pub(super) type Keys = &'static [(&'static str, Shape)];

/// The kind of a key's value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Scalar,
    /// A list of scalars.
    Scalars,
    Section(Keys),
    /// A list of maps.
    Sections(Keys),
    /// A map of free keys to scalars.
    Fields,
    /// A map of header names to lists of scalars.
    Headers,
    /// A key of the reference registry that has no effect here, and the reason.
    Ignored(&'static str),
    /// A key of the reference registry that can't be ignored, with the reason and the alternative.
    Refused(&'static str),
    /// The reference registry's plug-ins by kind, a list of maps each. They can't be ignored unless
    /// they are disabled.
    Middleware,
    /// A storage driver that isn't implemented. Naming it is enough, even without parameters.
    Driver,
}

use Shape::{
    Driver, Fields, Headers, Ignored, Middleware, Refused, Scalar, Scalars, Section, Sections,
};

pub(super) static ROOT: Shape = Section(&[
    ("version", Scalar),
    ("log", Section(LOG)),
    ("loglevel", Scalar),
    ("storage", Section(STORAGE)),
    ("http", Section(HTTP)),
    ("proxy", Section(PROXY)),
    (
        "auth",
        Refused(
            "it would be silently weaker to serve without authentication; remove the section and \
             put a reverse proxy that authenticates in front",
        ),
    ),
    ("middleware", Middleware),
    (
        "reporting",
        Ignored("errors go to the log and the metrics only"),
    ),
    ("notifications", Ignored("no events are sent")),
    ("redis", Ignored("nothing is cached in Redis")),
    ("health", Ignored("the health checks are built in")),
    ("catalog", Ignored("the size of a catalog page is built in")),
    (
        "tags",
        Section(&[("maxtags", Ignored("the size of a page of tags is built in"))]),
    ),
    (
        "validation",
        Ignored("it concerns pushes, which a mirror refuses"),
    ),
    (
        "policy",
        Ignored("it concerns pushes, which a mirror refuses"),
    ),
    (
        "compatibility",
        Ignored("manifests are served as the upstream has them"),
    ),
]);

const LOG: Keys = &[
    ("level", Scalar),
    ("formatter", Scalar),
    ("fields", Fields),
    ("accesslog", Section(&[("disabled", Scalar)])),
    ("hooks", Ignored("no mail is sent")),
    ("reportcaller", Ignored("log lines don't name source code")),
];

const STORAGE: Keys = &[
    (
        "filesystem",
        Section(&[
            ("rootdirectory", Scalar),
            ("mode", Scalar),
            (
                "maxthreads",
                Ignored("the number of threads is not limited by it"),
            ),
        ]),
    ),
    ("inmemory", Section(&[])),
    ("maxsize", Scalar),
    ("minfree", Scalar),
    ("scrub", Section(&[("interval", Scalar), ("rate", Scalar)])),
    ("cache", Ignored("descriptors are cached in its own way")),
    (
        "delete",
        Ignored("what a mirror holds goes when it expires or is purged"),
    ),
    (
        "maintenance",
        Ignored("a mirror takes no uploads that need purging"),
    ),
    (
        "redirect",
        Ignored("blobs are never redirected to the storage"),
    ),
    ("tag", Ignored("tags are looked up in its own way")),
    ("s3", Driver),
    ("s3aws", Driver),
    ("azure", Driver),
    ("gcs", Driver),
    ("swift", Driver),
    ("oss", Driver),
];

const HTTP: Keys = &[
    ("addr", Scalar),
    ("net", Scalar),
    ("prefix", Scalar),
    ("host", Scalar),
    ("relativeurls", Scalar),
    ("draintimeout", Scalar),
    ("headers", Headers),
    ("http2", Section(&[("disabled", Scalar)])),
    (
        "limits",
        Section(&[("connections", Scalar), ("peraddress", Scalar)]),
    ),
    (
        "debug",
        Section(&[
            ("addr", Scalar),
            (
                "prometheus",
                Section(&[("enabled", Scalar), ("path", Scalar)]),
            ),
        ]),
    ),
    (
        "h2c",
        Ignored("HTTP/2 without TLS is governed by `http.http2.disabled`"),
    ),
    (
        "secret",
        Ignored("there are no uploads whose state needs signing"),
    ),
    (
        "tls",
        Refused(
            "plain HTTP would be served instead; remove the section and put a reverse proxy that \
             terminates TLS in front",
        ),
    ),
];

pub(super) const PROXY: Keys = &[
    ("remoteurl", Scalar),
    ("username", Scalar),
    ("password", Scalar),
    ("ca", Scalar),
    ("insecure", Scalar),
    ("plainhttp", Scalar),
    ("realm", Scalar),
    ("scope", Scalar),
    ("redirects", Scalars),
    ("aliases", Scalars),
    ("ttl", Scalar),
    ("ttlmode", Scalar),
    ("ttls", Sections(&[("repository", Scalar), ("ttl", Scalar)])),
    ("pins", Scalars),
    ("tags", Section(&[("ttl", Scalar)])),
    ("connecttimeout", Scalar),
    ("headertimeout", Scalar),
    ("stalltimeout", Scalar),
    (
        "segments",
        Section(&[("minsize", Scalar), ("count", Scalar), ("perblob", Scalar)]),
    ),
    (
        "streams",
        Section(&[("total", Scalar), ("perupstream", Scalar)]),
    ),
    ("maxblobsize", Scalar),
    ("minspeed", Scalar),
    (
        "prefetch",
        Section(&[("downloads", Scalar), ("maxsize", Scalar)]),
    ),
    ("onabandon", Scalar),
    ("ranges", Scalar),
    (
        "rangerules",
        Sections(&[("repository", Scalar), ("ranges", Scalar)]),
    ),
    ("fillafter", Scalar),
    ("upstreams", Sections(UPSTREAM)),
    (
        "cachewritetimeout",
        Ignored("`proxy.stalltimeout` ends a download that makes no progress"),
    ),
    (
        "exec",
        Refused("no command is run for credentials; write `proxy.username` and `proxy.password`"),
    ),
];

const UPSTREAM: Keys = &[
    ("name", Scalar),
    ("remoteurl", Scalar),
    ("username", Scalar),
    ("password", Scalar),
    ("ca", Scalar),
    ("insecure", Scalar),
    ("plainhttp", Scalar),
    ("realm", Scalar),
    ("scope", Scalar),
    ("redirects", Scalars),
    ("aliases", Scalars),
    ("ttl", Scalar),
];

/// Replaces `storage: inmemory`, the short form, by a map of the driver's name without parameters.
pub(super) fn expand_driver(root: &mut Node) {
    let Value::Map(entries) = &mut root.value else {
        return;
    };
    for (key, node) in entries {
        if key == "storage"
            && let Value::Scalar(driver) = &mut node.value
        {
            let driver = std::mem::take(driver);
            node.value = Value::Map(vec![(driver, Node::null(node.origin.clone()))]);
        }
    }
}

/// Reports every key that isn't known, isn't implemented or holds the wrong kind of value.
pub(super) fn validate(node: &Node, shape: &Shape, path: &str, report: &Report) {
    let must_be = |kind: &str| report.problem(path, format!("`{path}` must be {kind}"));
    match (shape, &node.value) {
        (Driver, _) => report.problem(
            path,
            format!(
                "the storage driver `{path}` is not supported; use `storage.filesystem` (or \
                 `storage.inmemory` for tests)"
            ),
        ),
        (_, Value::Null) | (Scalar, Value::Scalar(_)) => {}
        (Ignored(_) | Refused(_) | Middleware, _) if node.is_empty() => {}
        (Ignored(reason), _) => {
            report.warning(path, &format!("`{path}` has no effect: {reason}"));
        }
        (Refused(reason), _) => {
            report.problem(path, format!("`{path}` is not supported: {reason}"));
        }
        (Middleware, _) if all_disabled(node) => {
            let message = format!("`{path}` has no effect: all its entries are disabled");
            report.warning(path, &message);
        }
        (Middleware, _) => {
            let message = format!(
                "`{path}` is not supported: what it would enforce or rewrite would be left out; \
                 remove its entries, or disable them"
            );
            report.problem(path, message);
        }
        (Section(keys), Value::Map(entries)) => validate_keys(entries, keys, path, report),
        (Sections(_) | Scalars, Value::List(items)) => {
            let inner = match shape {
                Sections(keys) => Section(keys),
                _ => Scalar,
            };
            for (index, item) in items.iter().enumerate() {
                let path = item_path(path, index);
                if item.value == Value::Null {
                    report.problem(&path, format!("`{path}` is empty; remove it"));
                }
                validate(item, &inner, &path, report);
            }
        }
        (Fields | Headers, Value::Map(entries)) => {
            let inner = if matches!(shape, Fields) {
                &Scalar
            } else {
                &Scalars
            };
            for (key, node) in entries {
                validate(node, inner, &key_path(path, key), report);
            }
        }
        (Scalar, _) => must_be("a single value"),
        (Scalars | Sections(_), _) => must_be("a list"),
        (Section(_) | Fields | Headers, _) => must_be("a map of keys"),
    }
}

/// Whether all plug-ins of all kinds are disabled.
fn all_disabled(middleware: &Node) -> bool {
    let is_disabled = |entry: &Node| match entry.get("disabled").map(|node| &node.value) {
        Some(Value::Scalar(text)) => truth(text) == Some(true),
        _ => entry.is_empty(),
    };
    let of_kind = |kind: &Node| match &kind.value {
        Value::List(entries) => entries.iter().all(is_disabled),
        _ => kind.is_empty(),
    };
    match &middleware.value {
        Value::Map(kinds) => kinds.iter().all(|(_, kind)| of_kind(kind)),
        _ => false,
    }
}

fn validate_keys(entries: &[(String, Node)], keys: Keys, path: &str, report: &Report) {
    for (key, node) in entries {
        let at = key_path(path, key);
        if let Some((_, shape)) = keys.iter().find(|(name, _)| name == key) {
            validate(node, shape, &at, report);
        } else {
            let hint = nearest(key, keys, path)
                .map(|known| format!("; did you mean `{known}`?"))
                .unwrap_or_default();
            report.problem(&at, format!("unknown key `{at}`{hint}"));
        }
    }
}

/// The longest unknown key that a suggestion is looked for, in bytes: the work grows with it.
const MAX_MISSPELT: usize = 64;

/// The path of the known key that an unknown one was probably meant to be: a sibling with a similar
/// name, else the same name elsewhere.
pub(super) fn nearest(key: &str, siblings: Keys, path: &str) -> Option<String> {
    if key.len() > MAX_MISSPELT {
        return None;
    }
    let key = key.to_ascii_lowercase();
    let similar = siblings
        .iter()
        .map(|(name, _)| (strsim::levenshtein(&key, name), *name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min();
    match similar {
        Some((_, name)) => Some(key_path(path, name)),
        None => elsewhere(&key, &ROOT, ""),
    }
}

/// The path of a key of that name outside of lists; outer ones count first.
fn elsewhere(key: &str, shape: &Shape, path: &str) -> Option<String> {
    let Section(keys) = shape else { return None };
    if keys.iter().any(|(name, _)| *name == key) {
        return Some(key_path(path, key));
    }
    let mut inner = keys.iter();
    inner.find_map(|(name, shape)| elsewhere(key, shape, &key_path(path, name)))
}

/// The paths of all keys that have an effect, with `[0]` for the items of a list: what the example
/// file must show.
#[cfg(test)]
pub(super) fn effective_keys() -> Vec<String> {
    fn collect(shape: &Shape, path: &str, all: &mut Vec<String>) {
        match shape {
            Section(keys) if !keys.is_empty() => keys
                .iter()
                .for_each(|(name, shape)| collect(shape, &key_path(path, name), all)),
            Sections(keys) => collect(&Section(keys), &item_path(path, 0), all),
            Ignored(_) | Refused(_) | Middleware | Driver => {}
            _ => all.push(path.to_owned()),
        }
    }
    let mut all = Vec::new();
    collect(&ROOT, "", &mut all);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions() {
        let Section(root) = ROOT else {
            panic!("the root is a section")
        };
        for (key, siblings, path, expected) in [
            ("htpp", root, "", Some("http")),
            ("remoteulr", PROXY, "proxy", Some("proxy.remoteurl")),
            ("remoteURL", PROXY, "proxy", Some("proxy.remoteurl")),
            (
                "rootdirectory",
                root,
                "",
                Some("storage.filesystem.rootdirectory"),
            ),
            ("wholly-unlike", PROXY, "proxy", None),
            (&"remoteurl".repeat(8), PROXY, "proxy", None),
        ] {
            let found = nearest(key, siblings, path);
            assert_eq!(found.as_deref(), expected, "{key}");
        }
    }
}
