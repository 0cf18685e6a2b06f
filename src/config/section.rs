//! Reads the values of a map. A wrong value is reported, and the caller goes on with the default,
//! so that all problems are found at once.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::report::{Report, shown};
use super::yaml::{Node, Value, item_path, key_path};
use super::{duration, size};

/// A map of the configuration; empty when it is absent. A value of a wrong kind reads as absent:
/// `schema::validate` has reported it.
#[derive(Clone)]
pub(super) struct Section<'a> {
    node: Option<&'a Node>,
    path: String,
    report: &'a Report,
}

impl<'a> Section<'a> {
    pub(super) fn root(node: &'a Node, report: &'a Report) -> Self {
        Self {
            node: Some(node),
            path: String::new(),
            report,
        }
    }

    fn node(&self, key: &str) -> Option<&'a Node> {
        self.node?.get(key)
    }

    /// The path of a key of the map; of the map itself when `key` is empty.
    pub(super) fn path(&self, key: &str) -> String {
        if key.is_empty() {
            self.path.clone()
        } else {
            key_path(&self.path, key)
        }
    }

    /// Reports a problem with a key (or with the map, when `key` is empty).
    pub(super) fn problem(&self, key: &str, message: String) {
        self.report.problem(&self.path(key), message);
    }

    /// Reports a problem with the value of a key: "`path` `reason`".
    pub(super) fn reject(&self, key: &str, reason: impl Display) {
        self.problem(key, format!("`{}` {reason}", self.path(key)));
    }

    /// Reports that the map lacks a key: "`path` is missing; write `advice`".
    pub(super) fn missing(&self, key: &str, advice: impl Display) {
        let message = format!("`{}` is missing; write {advice}", self.path(key));
        self.problem("", message);
    }

    /// Warns about a key.
    pub(super) fn warning(&self, key: &str, message: &str) {
        self.report.warning(&self.path(key), message);
    }

    /// Warns about the value of a key: "`path` `reason`".
    pub(super) fn doubt(&self, key: &str, reason: impl Display) {
        self.doubt_at(&self.path(key), reason);
    }

    /// Warns about the value at a path: "`path` `reason`".
    pub(super) fn doubt_at(&self, path: &str, reason: impl Display) {
        self.report.warning(path, &format!("`{path}` {reason}"));
    }

    /// Whether the key is written, if only with an empty value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.node(key).is_some()
    }

    pub(super) fn section(&self, key: &str) -> Self {
        Self {
            node: self.node(key),
            path: self.path(key),
            report: self.report,
        }
    }

    /// The maps of a list.
    pub(super) fn sections(&self, key: &str) -> Vec<Self> {
        let items = self
            .items(key)
            .filter(|(_, node)| matches!(node.value, Value::Map(_)));
        let section = |(path, node)| Self {
            node: Some(node),
            path,
            report: self.report,
        };
        items.map(section).collect()
    }

    /// The items of a list, with their paths.
    fn items(&self, key: &str) -> impl Iterator<Item = (String, &'a Node)> {
        let items: &[Node] = match self.node(key).map(|node| &node.value) {
            Some(Value::List(items)) => items,
            _ => &[],
        };
        let path = self.path(key);
        let items = items.iter().enumerate();
        items.map(move |(index, node)| (item_path(&path, index), node))
    }

    /// The keys of a map that may have any.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        let entries: &[_] = match self.node.map(|node| &node.value) {
            Some(Value::Map(entries)) => entries,
            _ => &[],
        };
        entries.iter().map(|(key, _)| key.as_str())
    }

    /// A value as it was written; an empty one counts as absent, as in the reference registry.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match &self.node(key)?.value {
            Value::Scalar(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// What `parse` makes of the value of a key. A problem is reported as "`path` is "value";
    /// `error`".
    pub(super) fn value<T, E: Display>(
        &self,
        key: &str,
        parse: impl FnOnce(&'a str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key)?;
        parse(text)
            .map_err(|error| self.reject(key, format_args!("is {}; {error}", shown(text))))
            .ok()
    }

    /// What `parse` makes of each value of a list; problems as for [`value`](Self::value).
    pub(super) fn values<T, E: Display>(
        &self,
        key: &str,
        mut parse: impl FnMut(&'a str, &str) -> Result<T, E>,
    ) -> Vec<T> {
        let mut values = Vec::new();
        for (path, node) in self.items(key) {
            let Value::Scalar(text) = &node.value else {
                continue;
            };
            match parse(text, &path) {
                Ok(value) => values.push(value),
                Err(error) => {
                    let message = format!("`{path}` is {}; {error}", shown(text));
                    self.report.problem(&path, message);
                }
            }
        }
        values
    }

    /// One of several values that have names; `advice` names them all.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        advice: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        self.value(key, |text| {
            let choice = choices.iter().find(|(name, _)| *name == text);
            choice.map(|(_, value)| *value).ok_or(advice)
        })
    }

    pub(super) fn bool(&self, key: &str, default: bool) -> bool {
        let value = self.value(key, |text| truth(text).ok_or("write true or false"));
        value.unwrap_or(default)
    }

    pub(super) fn duration(&self, key: &str, default: Duration) -> Duration {
        let parse = |text| duration::parse(text).map_err(|error| format!("it {error}"));
        self.value(key, parse).unwrap_or(default)
    }

    /// A whole number within `range`.
    pub(super) fn number(&self, key: &str, range: RangeInclusive<usize>, default: usize) -> usize {
        let (from, to) = (range.start(), range.end());
        let parse = |text: &str| {
            let number = crate::oci::digits(text).filter(|number| range.contains(number));
            number.ok_or_else(|| format!("write a whole number from {from} to {to}"))
        };
        self.value(key, parse).unwrap_or(default)
    }

    /// A size in bytes.
    pub(super) fn size(&self, key: &str, default: u64) -> u64 {
        let parse = |text| size::bytes(text).map_err(|error| format!("it {error}"));
        self.value(key, parse).unwrap_or(default)
    }
}

/// A truth value in any of YAML 1.1's spellings, as the reference registry's parser reads them.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}
