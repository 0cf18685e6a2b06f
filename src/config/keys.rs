//! The keys that a configuration may have: those that the readers ask for.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::env::Variables;
use super::report::Report;
use super::yaml::{Node, Origin, item_path, key_path};

/// The longest unknown key that a suggestion is looked for, in bytes: the work grows with it.
const MAX_MISSPELT: usize = 64;

/// The keys that were asked for, and the written ones that nobody asked for.
#[derive(Default)]
pub(super) struct Keys {
    /// The keys of each map that was read, by its path, and whether they have an effect.
    known: RefCell<BTreeMap<String, Vec<(&'static str, bool)>>>,
    /// The path of the map, the key and its place.
    unknown: RefCell<Vec<(String, String, Origin)>>,
}

impl Keys {
    /// Adds a key of the map at a path; ignored and refused ones have no effect.
    pub(super) fn add(&self, path: &str, key: &'static str, has_effect: bool) {
        let mut known = self.known.borrow_mut();
        let keys = known.entry(path.to_owned()).or_default();
        if !keys.iter().any(|(name, _)| *name == key) {
            keys.push((key, has_effect));
        }
    }

    /// Compares the entries of the map at a path with the keys that were asked for.
    pub(super) fn check(&self, path: &str, entries: &[(String, Node)]) {
        let mut known = self.known.borrow_mut();
        let keys = known.entry(path.to_owned()).or_default();
        for (key, node) in entries {
            if !keys.iter().any(|(name, _)| name == key) {
                let unknown = (path.to_owned(), key.clone(), node.origin.clone());
                self.unknown.borrow_mut().push(unknown);
            }
        }
    }

    /// Reports the written keys, and the variables, that nobody asked for.
    pub(super) fn report_unknown(&self, variables: &Variables, report: &Report) {
        for (path, key, origin) in self.unknown.borrow().iter() {
            let at = key_path(path, key);
            let hint = self
                .nearest(key, path)
                .map(|known| format!("; did you mean `{known}`?"))
                .unwrap_or_default();
            report.problem_at(origin, format!("unknown key `{at}`{hint}"));
        }
        variables.warn_of_unread(report, |name| self.nearest_to_variable(name));
    }

    /// The path of the known key that an unknown one of the map at `path` was probably meant to be:
    /// a sibling with a similar name, else the same name elsewhere.
    fn nearest(&self, key: &str, path: &str) -> Option<String> {
        if key.len() > MAX_MISSPELT {
            return None;
        }
        let key = key.to_ascii_lowercase();
        let known = self.known.borrow();
        let siblings = known.get(path).into_iter().flatten();
        let similar = siblings
            .map(|(name, _)| (strsim::levenshtein(&key, name), *name))
            .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
            .min();
        if let Some((_, name)) = similar {
            return Some(key_path(path, name));
        }
        // Outside of lists; outer ones count first.
        let has_key = |keys: &[(&str, _)]| keys.iter().any(|(name, _)| *name == key);
        let maps = known
            .iter()
            .filter(|(path, keys)| !path.contains('[') && has_key(keys));
        let outermost = maps.min_by_key(|(path, _)| (!path.is_empty(), path.matches('.').count()));
        outermost.map(|(path, _)| key_path(path, &key))
    }

    /// The path of the key that a variable, by its name after the prefix, was probably meant for.
    fn nearest_to_variable(&self, name: &str) -> Option<String> {
        let mut path = String::new();
        for segment in name.split('_') {
            let known = self.known.borrow();
            let Some(keys) = known.get(&path) else {
                path = item_path(&path, crate::oci::digits(segment)?);
                continue;
            };
            let key = keys
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(segment));
            let Some((key, _)) = key else {
                return self.nearest(segment, &path);
            };
            path = key_path(&path, key);
        }
        None
    }

    /// The paths of all keys that have an effect: what the example file must show.
    #[cfg(test)]
    pub(super) fn effective(&self) -> Vec<String> {
        let known = self.known.borrow();
        let paths = known.iter().flat_map(|(path, keys)| {
            let effective = keys.iter().filter(|(_, has_effect)| *has_effect);
            effective.map(|(key, _)| key_path(path, key))
        });
        paths.collect()
    }
}
