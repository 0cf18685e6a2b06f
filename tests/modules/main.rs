//! Modules import in one direction only, and files don't import each other in a circle: this reads the
//! sources and reports every import that runs the other way. It holds the logged errors to their causes,
//! too.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

mod circles;
mod paths;
mod source;

use std::collections::BTreeSet;

use paths::File;
use source::{Source, code, is_within, read};

/// Each module uses modules before it and none after it.
const ORDER: [&str; 30] = [
    "oci",
    "error_chain",
    "kept_file",
    "clock",
    "tasks",
    "renewal",
    "workers",
    "metrics",
    "line_writer",
    "log_levels",
    "telemetry",
    "systemd",
    "config",
    "tls",
    "storage",
    "replicas",
    "upstream",
    "auth",
    "access",
    "cache",
    "bucket",
    "health",
    "download",
    "hosted",
    "mirror",
    "copy",
    "server",
    "admin",
    "app",
    "cli",
];

/// What only some may name: the words, and the files or directories that may.
const RESERVED: [(&str, &[&str], &[&str]); 5] = [
    (
        "the client of object stores",
        &["object_store"],
        &[
            "bucket/client",
            "bucket/http",
            "bucket/stores",
            "bucket/unfinished",
        ],
    ),
    // Everybody else asks the cache, which keeps files and index in step.
    (
        "the store",
        &["crate::storage"],
        // The names of objects are those of files.
        &["storage", "cache", "bucket/keys", "app", "cli"],
    ),
    (
        "the HTTP client",
        &["reqwest"],
        // Of the operator's checks.
        &["upstream", "health/probe", "bucket/http"],
    ),
    (
        "the HTTP server",
        &["hyper", "hyper_util", "h2"],
        // The proxies of the environment.
        &["server", "admin", "upstream/guard", "upstream/transport"],
    ),
    (
        "the file system",
        &["std::fs", "tokio::fs"],
        &[
            "storage/fs",
            "storage/disk",
            "storage/spool",
            "storage/stage",
            "storage/partials",
            "storage/content",
            "storage/modes",
            "storage/survey",
            "cache/state/journal",
            "cache/pins/file",
            "access/audit_file",
            "config",
            // Whether files have changed.
            "renewal",
            "tls/files",
            // A file that must not exist.
            "health/probe",
            // Credentials that rotate.
            "upstream/secret_files",
            "auth/files",
            // The file of a unix socket.
            "server/listener",
            // The configuration files of clients.
            "cli/client_config/files",
            // Bundles of images.
            "copy/bundle",
            // Lists of images.
            "cli/images",
            "cli/client_config/transaction",
            // Images in files, and what a copy remembers of its uploads.
            "copy/layout",
            "copy/docker_archive",
            "copy/spool",
            "copy/journal",
            // The deny list, the bytes of a month, the queue of uploads.
            "kept_file",
            // Keys of a bucket.
            "bucket/stores",
        ],
    ),
];

#[test]
fn imports_run_one_way() {
    let found = violations(&read());
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// A shorthand would log an error without its causes, such as "no space left on device".
#[test]
fn logged_errors_carry_their_causes() {
    let found = bare_errors(&read());
    assert!(
        found.is_empty(),
        "write error = %on_one_line(&error) in\n{}",
        found.join("\n")
    );
}

fn bare_errors(sources: &[Source]) -> Vec<String> {
    const LEVELS: [&str; 5] = ["trace!(", "debug!(", "info!(", "warn!(", "error!("];
    let mut found = Vec::new();
    for (name, code) in sources {
        for level in LEVELS {
            for call in code.split(&format!("tracing::{level}")).skip(1) {
                // Up to the end of the statement; texts in quotes are gone already.
                let fields = call.split(';').next().unwrap();
                let fields: String = fields.split_whitespace().collect();
                let is_bare = ["%error", "?error"]
                    .iter()
                    .any(|field| fields.contains(field));
                let named = fields.split("error=%").skip(1);
                if is_bare || { named }.any(|value| !value.starts_with("on_one_line(")) {
                    found.push(format!("src/{name}.rs: tracing::{level}{fields}"));
                }
            }
        }
    }
    found
}

#[test]
fn a_bare_error_is_found() {
    let source = |line: &str| {
        let text = format!("fn x() {{ {line} }}\n");
        code(&[("storage/x".to_owned(), text)])
    };
    for bare in [
        "tracing::warn!(%error, \"it failed\");",
        "tracing::debug!(path, ?error, \"it failed\");",
        "tracing::error!(error = %failure, \"it failed\");",
    ] {
        assert_eq!(bare_errors(&source(bare)).len(), 1, "{bare}");
    }
    for whole in [
        "tracing::warn!(error = %on_one_line(&error), \"%error\");",
        "tracing::info!(error = text, \"it failed\");",
    ] {
        assert_eq!(bare_errors(&source(whole)), [] as [&str; 0], "{whole}");
    }
}

fn violations(sources: &[Source]) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (name, code) in sources {
        // Roots only declare the modules and start the program.
        if matches!(name.as_str(), "lib" | "main") {
            continue;
        }
        let layer = name.split('/').next().unwrap();
        let Some(own) = rank(layer) else {
            found.insert(format!(
                "src/{name}.rs: {layer} has no place in the order of the modules"
            ));
            continue;
        };
        let file = File::parse(code);
        let paths = file.paths.iter().filter(|path| path[0] == "crate");
        for used in paths.filter_map(|path| path.get(1)) {
            match rank(used) {
                Some(rank) if rank <= own => {}
                Some(_) => {
                    found.insert(format!("src/{name}.rs: {layer} must not use {used}"));
                }
                None => {
                    found.insert(format!("src/{name}.rs: crate::{used} is no module"));
                }
            }
        }
        for (what, words, allowed) in RESERVED {
            let may = allowed.iter().any(|place| is_within(name, place));
            if !may && words.iter().any(|word| file.names(word)) {
                found.insert(format!("src/{name}.rs: {what} is not for {layer}"));
            }
        }
    }
    found.into_iter().collect()
}

fn rank(layer: &str) -> Option<usize> {
    ORDER.iter().position(|known| *known == layer)
}

/// `file: code => what is said`; `\n` in the code is a line's end.
const WRONG: &str = r#"
oci/name: use crate::cache::Cache; => oci must not use cache
mirror/tags: use crate::storage::Store; => the store is not for mirror
storage/mod: use crate::{oci::Digest, download::{self, Downloader}}; => storage must not use download
mirror/tags: fn f() { crate::server::error::chain() } => mirror must not use server
metrics: pub(in crate::app) fn f() {} => metrics must not use app
mirror/mod: use reqwest::Client; => the HTTP client is not for mirror
server/body: type C = ::reqwest::Client; => the HTTP client is not for server
download/task: use hyper_util::rt::TokioIo; => the HTTP server is not for download
mirror/lists: use std::{io, fs}; => the file system is not for mirror
server/body: use tokio::fs::File; => the file system is not for server
storage/memory: fn f() { std::fs::read(p) } => the file system is not for storage
storage/fsck: use std::fs; => the file system is not for storage
pantry/mod: => pantry has no place in the order of the modules
oci/mod: use crate::pantry::X; => crate::pantry is no module
oci/a: #[cfg(test)]\nmod tests { use crate::app; }\nuse crate::app; => oci must not use app
oci/b: const S: &str = "//"; use crate::app; => oci must not use app
oci/c: const C: char = '"'; use crate::app; => oci must not use app
storage/mod: pub mod contract; use crate::app; => storage must not use app
"#;

/// `file: code`
const RIGHT: &str = r#"
storage/mod: use crate::oci::Digest; use crate::storage::Link;
cli/mod: use crate::{app::App, config::{self, Config}};
upstream/transport: use reqwest::Client;
server/listener: fn f() { std::fs::remove_file(p) } use hyper::body::Incoming;
config/mod: use std::fs::File;
storage/fs/walk: use std::fs;
oci/a: // use crate::app;\n/// [`crate::app`]\nconst S: &str = "crate::app reqwest";
oci/b: use std::os::unix::fs::FileTypeExt as _; let hyperlink = 1; mycrate::app();
oci/c: #[cfg(test)]\nmod tests {\n use crate::app; fn f() { std::fs::read(p) }\n}
oci/d: #[cfg(test)]\nmod tests;
oci/d/tests: use crate::app;
oci/mod: #[cfg(test)]\npub mod contract;
oci/contract: use crate::app;
main: use crate::cli; use reqwest::Client;
"#;

fn made_up(line: &str) -> Source {
    let (name, text) = line.split_once(':').unwrap();
    (name.to_owned(), text.replace("\\n", "\n"))
}

#[test]
fn forbidden_imports_are_found() {
    for line in WRONG.trim().lines() {
        let (source, expected) = line.split_once(" => ").unwrap();
        let source = made_up(source);
        let expected = format!("src/{}.rs: {expected}", source.0);
        assert_eq!(violations(&code(&[source])), [expected], "{line}");
    }
}

#[test]
fn allowed_imports_are_not_reported() {
    let sources: Vec<_> = RIGHT.trim().lines().map(made_up).collect();
    assert_eq!(violations(&code(&sources)), Vec::<String>::new());
}
