//! Every key that a configuration file may have: ours, and those of the reference registry
//! (CNCF distribution 2.8 to 3.1).
//!
//! A key of the reference registry that millpond doesn't implement is ignored with a warning where
//! that is harmless, and refused where ignoring it would weaken what the operator asked for.

use super::document::{KeyPath, Node};
use super::nearest::nearest;
use super::report::Report;

/// The keys of a map.
pub(super) type Keys = &'static [(&'static str, Shape)];

/// What may stand at a key.
#[derive(Debug)]
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
    /// A key of the reference registry without effect here, and what isn't done.
    Ignored(&'static str),
    /// A key of the reference registry that can't be ignored, and what to do instead.
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

/// `storage: inmemory` is short for a map of the driver's name without parameters.
pub(super) fn expand_driver(root: &mut Node) {
    let Node::Map(entries) = root else { return };
    for (key, node) in entries {
        if key == "storage"
            && let Node::Scalar(driver) = node
        {
            *node = Node::Map(vec![(std::mem::take(driver), Node::Null)]);
        }
    }
}

/// Reports every key that isn't known, isn't implemented or holds the wrong kind of value.
pub(super) fn validate(node: &Node, shape: &Shape, path: &KeyPath, report: &mut Report<'_>) {
    match (shape, node) {
        (Driver, _) => report.problem(
            path,
            format!(
                "the storage driver `{path}` is not supported; use `storage.filesystem` (or \
                 `storage.inmemory` for tests)"
            ),
        ),
        (_, Node::Null) | (Scalar, Node::Scalar(_)) => {}
        (Ignored(reason), node) if !node.is_empty() => {
            report.warning(path, format!("`{path}` has no effect: {reason}"));
        }
        (Refused(reason), node) if !node.is_empty() => {
            report.problem(path, format!("`{path}` is not supported: {reason}"));
        }
        (Middleware, node) if !node.is_empty() => middleware(node, path, report),
        (Ignored(_) | Refused(_) | Middleware, _) => {}
        (Section(keys), Node::Map(entries)) => validate_keys(entries, keys, path, report),
        (Sections(keys), Node::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                let path = path.index(index);
                match item {
                    Node::Map(entries) => validate_keys(entries, keys, &path, report),
                    _ => report.problem(&path, format!("`{path}` must be a map of keys")),
                }
            }
        }
        (Scalars, Node::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                let path = path.index(index);
                if !matches!(item, Node::Scalar(_)) {
                    report.problem(&path, format!("`{path}` must be a single value"));
                }
            }
        }
        (Fields | Headers, Node::Map(entries)) => {
            let inner = if matches!(shape, Fields) {
                &Scalar
            } else {
                &Scalars
            };
            for (key, node) in entries {
                validate(node, inner, &path.key(key), report);
            }
        }
        (Scalar, _) => report.problem(path, format!("`{path}` must be a single value")),
        (Scalars | Sections(_), _) => report.problem(path, format!("`{path}` must be a list")),
        (Section(_) | Fields | Headers, _) => {
            report.problem(path, format!("`{path}` must be a map of keys"));
        }
    }
}

fn middleware(node: &Node, path: &KeyPath, report: &mut Report<'_>) {
    let of_kind = |node: &Node| match node {
        Node::List(entries) => entries
            .iter()
            .all(|entry| entry.is_empty() || is_disabled(entry)),
        other => other.is_empty(),
    };
    let all_disabled = match node {
        Node::Map(kinds) => kinds.iter().all(|(_, entries)| of_kind(entries)),
        _ => false,
    };
    if all_disabled {
        let message = format!("`{path}` has no effect: all its entries are disabled");
        report.warning(path, message);
    } else {
        let message = format!(
            "`{path}` is not supported: what it would enforce or rewrite would be left out; \
             remove its entries, or disable them"
        );
        report.problem(path, message);
    }
}

fn is_disabled(entry: &Node) -> bool {
    matches!(entry.get("disabled"), Some(Node::Scalar(text)) if super::report::truth(text) == Some(true))
}

fn validate_keys(entries: &[(String, Node)], keys: Keys, path: &KeyPath, report: &mut Report<'_>) {
    for (key, node) in entries {
        let at = path.key(key);
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

/// The paths of all keys that have an effect, with `[0]` for the items of a list: what the example
/// file must show.
#[cfg(test)]
pub(super) fn effective_keys() -> Vec<KeyPath> {
    fn collect(shape: &Shape, path: &KeyPath, all: &mut Vec<KeyPath>) {
        match shape {
            Section(keys) if !keys.is_empty() => {
                keys.iter()
                    .for_each(|(name, shape)| collect(shape, &path.key(name), all));
            }
            Sections(keys) => {
                let path = path.index(0);
                keys.iter()
                    .for_each(|(name, shape)| collect(shape, &path.key(name), all));
            }
            Ignored(_) | Refused(_) | Middleware | Driver => {}
            _ => all.push(path.clone()),
        }
    }
    let mut all = Vec::new();
    collect(&ROOT, &KeyPath::default(), &mut all);
    all
}
