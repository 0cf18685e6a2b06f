//! The known key that an unknown one was probably meant to be.

use super::document::KeyPath;
use super::schema::{Keys, ROOT, Shape};

/// The known key that `key` was probably meant to be: a sibling that is spelled alike, else the
/// same word at another place.
pub(super) fn nearest(key: &str, siblings: Keys, path: &KeyPath) -> Option<KeyPath> {
    let key = key.to_ascii_lowercase();
    let alike = siblings
        .iter()
        .map(|(name, _)| (distance(&key, name), *name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min();
    if let Some((_, name)) = alike {
        return Some(path.key(name));
    }
    all_keys()
        .into_iter()
        .find(|(name, _)| *name == key)
        .map(|(_, path)| path)
}

/// Every key outside lists, outer ones first, with its own name.
fn all_keys() -> Vec<(&'static str, KeyPath)> {
    fn collect(shape: &'static Shape, path: &KeyPath, all: &mut Vec<(&'static str, KeyPath)>) {
        if let Shape::Section(keys) = shape {
            all.extend(keys.iter().map(|(name, _)| (*name, path.key(name))));
            for (name, shape) in *keys {
                collect(shape, &path.key(name), all);
            }
        }
    }
    let mut all = Vec::new();
    collect(&ROOT, &KeyPath::default(), &mut all);
    all
}

/// Longest text that suggestions are looked for, in bytes: the work grows with its length.
const MAX_MISSPELT: usize = 64;

/// Levenshtein's edit distance: insertions, deletions and replacements of bytes.
fn distance(from: &str, to: &str) -> usize {
    if from.len() > MAX_MISSPELT {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (position, byte) in from.bytes().enumerate() {
        let mut left = position + 1;
        let mut diagonal = position;
        let mut next = Vec::with_capacity(row.len());
        next.push(left);
        for (above, other) in row.iter().skip(1).zip(to.bytes()) {
            left = (diagonal + usize::from(byte != other))
                .min(left + 1)
                .min(above + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema::PROXY;

    #[test]
    fn distances() {
        for (from, to, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("remoteulr", "remoteurl", 2),
            ("adr", "addr", 1),
            ("kitten", "sitting", 3),
            ("same", "same", 0),
        ] {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn suggestions() {
        let top = KeyPath::default();
        let Shape::Section(root) = &ROOT else {
            panic!("the root is a section")
        };
        for (key, siblings, path, expected) in [
            ("htpp", *root, top.clone(), Some("http")),
            (
                "remoteulr",
                PROXY,
                top.key("proxy"),
                Some("proxy.remoteurl"),
            ),
            (
                "remoteURL",
                PROXY,
                top.key("proxy"),
                Some("proxy.remoteurl"),
            ),
            (
                "rootdirectory",
                *root,
                top.clone(),
                Some("storage.filesystem.rootdirectory"),
            ),
            ("wholly-unlike", PROXY, top.key("proxy"), None),
        ] {
            let found = nearest(key, siblings, &path).map(|path| path.to_string());
            assert_eq!(found.as_deref(), expected, "{key}");
        }
    }
}
