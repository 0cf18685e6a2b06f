//! The paths in a file's code.

use std::collections::{BTreeMap, BTreeSet};

/// What a file says about others.
#[derive(Default)]
pub(crate) struct File {
    /// What each imported name stands for.
    pub(crate) imports: BTreeMap<String, Vec<String>>,
    /// Every path, imports included.
    pub(crate) paths: BTreeSet<Vec<String>>,
}

impl File {
    pub(crate) fn parse(code: &str) -> Self {
        let tokens = tokens(code);
        let mut file = Self::default();
        let mut rest = tokens.as_slice();
        while let [token, after @ ..] = rest {
            if *token == "use" {
                rest = file.tree(&[], after);
                continue;
            }
            // A path of another crate, or behind generics, has no name before the first sign.
            let first = if is_name(token) { token } else { "" };
            let mut path = vec![first.to_owned()];
            rest = after;
            while let ["::", name, more @ ..] = rest
                && is_name(name)
            {
                path.push((*name).to_owned());
                rest = more;
            }
            if path.len() > 1 {
                file.paths.insert(path);
            }
        }
        file
    }

    /// Takes note of a tree of imports below `path`; returns what follows it.
    fn tree<'t>(&mut self, path: &[String], mut tokens: &'t [&'t str]) -> &'t [&'t str] {
        let mut path = path.to_vec();
        loop {
            match tokens {
                ["{", rest @ ..] => {
                    tokens = rest;
                    while !matches!(tokens, ["}", ..] | []) {
                        tokens = self.tree(&path, tokens);
                        tokens = tokens.strip_prefix(&[","]).unwrap_or(tokens);
                    }
                    return tokens.get(1..).unwrap_or_default();
                }
                ["::", rest @ ..] => tokens = rest,
                ["*", rest @ ..] => {
                    self.paths.insert(path);
                    return rest;
                }
                ["as", name, rest @ ..] => {
                    self.import(name, path);
                    return rest;
                }
                [name, rest @ ..] if is_name(name) => {
                    if *name != "self" || path.is_empty() {
                        path.push((*name).to_owned());
                    }
                    tokens = rest;
                }
                _ => {
                    let name = path.last().cloned().unwrap_or_default();
                    self.import(&name, path);
                    return tokens;
                }
            }
        }
    }

    /// Whether a path is named as a whole, or something below it: `hyper` isn't in `hyperlink`, and
    /// `std::fs` is in `use std::{fs, io}`.
    pub(crate) fn names(&self, path: &str) -> bool {
        let wanted: Vec<_> = path.split("::").collect();
        self.paths.iter().any(|path| {
            let named = path.iter().filter(|name| !name.is_empty());
            named.take(wanted.len()).eq(&wanted)
        })
    }

    fn import(&mut self, name: &str, path: Vec<String>) {
        // `use<>` of a return type imports nothing.
        if path.is_empty() {
            return;
        }
        self.paths.insert(path.clone());
        self.imports.insert(name.to_owned(), path);
    }
}

/// Names, `::`, and single signs.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if is_part(first) {
            rest.find(|c| !is_part(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_name(token: &str) -> bool {
    token.starts_with(is_part)
}
