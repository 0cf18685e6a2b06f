//! Modules import in one direction only: this reads the sources and reports every import that
//! runs the other way.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module uses modules before it and none after it.
const ORDER: [&str; 16] = [
    "oci",
    "error_chain",
    "clock",
    "tasks",
    "workers",
    "metrics",
    "config",
    "storage",
    "upstream",
    "cache",
    "download",
    "mirror",
    "server",
    "admin",
    "app",
    "cli",
];

/// What only some may name: the words, and the files or directories that may.
const RESERVED: [(&str, &[&str], &[&str]); 4] = [
    // Everybody else asks the cache, which keeps files and index in step.
    (
        "the store",
        &["crate::storage"],
        &["storage", "cache", "app", "cli"],
    ),
    ("the HTTP client", &["reqwest"], &["upstream"]),
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
            "cache/state/journal",
            "config",
            // The file of a unix socket.
            "server/listener",
        ],
    ),
];

/// A source file: its path below `src`, without `.rs`, and its text.
type Source = (String, String);

#[test]
fn imports_run_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = read(&root);
    assert!(sources.len() > 40, "the sources were not found");
    let found = violations(&sources);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// A shorthand would log an error without its causes, such as "no space left on device".
#[test]
fn logged_errors_carry_their_causes() {
    let sources = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let found = bare_errors(&sources);
    assert!(
        found.is_empty(),
        "write error = %on_one_line(&error) in\n{}",
        found.join("\n")
    );
}

fn bare_errors(sources: &[Source]) -> Vec<String> {
    const LEVELS: [&str; 5] = ["trace!(", "debug!(", "info!(", "warn!(", "error!("];
    let mut found = Vec::new();
    for (name, text) in sources {
        let code = without_tests(&strip(text));
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
    let source = |line: &str| vec![("storage/x".to_owned(), format!("fn x() {{ {line} }}\n"))];
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

fn read(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut directories = vec![PathBuf::from(root)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().with_extension("");
                let name = name.to_str().unwrap().replace('\\', "/");
                sources.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    sources
}

fn violations(sources: &[Source]) -> Vec<String> {
    let stripped: Vec<_> = sources
        .iter()
        .map(|(name, text)| (name, strip(text)))
        .collect();
    let tests: BTreeSet<String> = stripped
        .iter()
        .flat_map(|(name, text)| test_modules(name, text))
        .collect();
    let mut found = BTreeSet::new();
    for (name, text) in &stripped {
        let exempt = tests.iter().any(|module| is_within(name, module));
        // Roots only declare the modules and start the program.
        if exempt || matches!(name.as_str(), "lib" | "main") {
            continue;
        }
        let code = without_tests(text);
        let layer = name.split('/').next().unwrap();
        let Some(own) = rank(layer) else {
            found.insert(format!(
                "src/{name}.rs: {layer} has no place in the order of the modules"
            ));
            continue;
        };
        for used in crate_paths(&code) {
            match rank(&used) {
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
            if !may && words.iter().any(|word| names(&code, word)) {
                found.insert(format!("src/{name}.rs: {what} is not for {layer}"));
            }
        }
    }
    found.into_iter().collect()
}

fn rank(layer: &str) -> Option<usize> {
    ORDER.iter().position(|known| *known == layer)
}

/// Whether a file is the module, or below it.
fn is_within(name: &str, module: &str) -> bool {
    let rest = name.strip_prefix(module);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The text without comments, and without what is in quotes.
fn strip(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let mut quoted = false;
        let mut previous = ' ';
        for (at, c) in line.char_indices() {
            if !quoted && line[at..].starts_with("//") {
                break;
            }
            // Neither '"' nor \" opens or closes anything.
            if c == '"' && previous != '\\' && !line[at..].starts_with("\"'") {
                quoted = !quoted;
            } else if !quoted {
                code.push(c);
            }
            previous = c;
        }
        code.push('\n');
    }
    code
}

/// `#[cfg(test)] mod x;`, with a path or not: the modules that are test code.
fn test_modules(name: &str, code: &str) -> Vec<String> {
    let directory = match name.rsplit_once('/') {
        Some((parent, "mod")) => parent.to_owned(),
        _ => name.to_owned(),
    };
    let mut modules = vec![format!("{directory}/tests")];
    for after in code.split("#[cfg(test)]").skip(1) {
        let declared = after.split([';', '{']).next().unwrap();
        if let Some(module) = declared
            .split_whitespace()
            .skip_while(|word| *word != "mod")
            .nth(1)
            && after[declared.len()..].starts_with(';')
        {
            modules.push(format!("{directory}/{module}"));
        }
    }
    modules
}

/// The code without modules, functions and imports that are marked as test code.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some((before, marked)) = rest.split_once("#[cfg(test)]") {
        kept.push_str(before);
        let mut depth = 0_usize;
        let end = marked.char_indices().find(|(_, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(c, '}' | ';')
        });
        rest = end.map_or("", |(at, c)| &marked[at + c.len_utf8()..]);
    }
    kept + rest
}

/// The first component of every path that starts at the crate, groups included.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$')) {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            used.extend(group_heads(group));
        } else {
            used.insert(word(rest));
        }
    }
    used
}

/// `a::{b, c}, d}` has the heads a and d.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let (mut depth, mut item) = (0_usize, String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(std::mem::take(&mut item)),
            _ => {}
        }
        if depth == 0 && c != ',' {
            item.push(c);
        }
    }
    heads.push(item);
    let heads = heads.iter().map(|head| word(head.trim()));
    heads
        .filter(|head| !head.is_empty() && head != "self")
        .collect()
}

fn word(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// Whether a path is named as a whole: `hyper` isn't in `hyperlink`, and `std::fs` is in
/// `use std::{fs, io}`.
fn names(code: &str, path: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let direct = code.match_indices(path).any(|(at, _)| {
        let after = &code[at + path.len()..];
        !code[..at].ends_with(part) && !after.starts_with(part)
    });
    let grouped = path.split_once("::").is_some_and(|(head, tail)| {
        let open = format!("{head}::{{");
        code.match_indices(&open).any(|(at, _)| {
            group_heads(&code[at + open.len()..])
                .iter()
                .any(|name| name == tail)
        })
    });
    direct || grouped
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
fn what_is_wrong_is_found() {
    for line in WRONG.trim().lines() {
        let (source, expected) = line.split_once(" => ").unwrap();
        let source = made_up(source);
        let expected = format!("src/{}.rs: {expected}", source.0);
        assert_eq!(violations(&[source]), [expected], "{line}");
    }
}

#[test]
fn what_is_right_is_left_alone() {
    let sources: Vec<_> = RIGHT.trim().lines().map(made_up).collect();
    assert_eq!(violations(&sources), Vec::<String>::new());
}
