//! Reads the values of a map, each from its environment variable or else from the file. A wrong
//! value is reported, and the caller goes on with the default, so that all problems are found at
//! once.
//!
//! A reader names each key once: what it asks for is what is known, and the value that it returns
//! is what `millpond check` prints.

mod unsupported;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_yaml::Mapping;

use super::context::Context;
use super::yaml::{Node, Value, key_path};
use super::{duration, size};
use crate::oci::digits;

/// A map of the configuration; empty when it is absent.
pub(super) struct Section<'a> {
    entries: Vec<(String, Node)>,
    path: String,
    context: &'a Context,
    /// What is printed.
    effective: RefCell<Mapping>,
}

impl<'a> Section<'a> {
    /// Reads the map at a path. Returns what `read` does, and the values in effect.
    pub(super) fn read<T>(
        context: &'a Context,
        path: String,
        node: Option<Node>,
        read: impl FnOnce(&Self) -> T,
    ) -> (T, Mapping) {
        let section = Self {
            entries: context.entries(&path, node),
            path,
            context,
            effective: RefCell::default(),
        };
        let result = read(&section);
        context.keys.check(&section.path, &section.entries);
        (result, section.effective.into_inner())
    }

    /// The path of a key of the map; of the map itself when `key` is empty.
    pub(super) fn path(&self, key: &str) -> String {
        if key.is_empty() {
            self.path.clone()
        } else {
            key_path(&self.path, key)
        }
    }

    /// Where the map is written: `config.yml:12`.
    pub(super) fn place(&self) -> String {
        self.context.report.places.borrow().of(&self.path)
    }

    /// Reports a problem with a key (or with the map, when `key` is empty).
    pub(super) fn problem(&self, key: &str, message: String) {
        self.problem_at(&self.path(key), message);
    }

    /// Reports a problem with the value at a path.
    pub(super) fn problem_at(&self, path: &str, message: String) {
        self.context.report.problem(path, message);
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
    pub(super) fn warning(&self, key: &str, message: String) {
        self.context.report.warning(&self.path(key), message);
    }

    /// Warns about the value at a path.
    pub(super) fn warning_at(&self, path: &str, message: String) {
        self.context.report.warning(path, message);
    }

    /// Warns about the value of a key: "`path` `reason`".
    pub(super) fn doubt(&self, key: &str, reason: impl Display) {
        self.doubt_at(&self.path(key), reason);
    }

    /// Warns about the value at a path: "`path` `reason`".
    pub(super) fn doubt_at(&self, path: &str, reason: impl Display) {
        let message = format!("`{path}` {reason}");
        self.context.report.warning(path, message);
    }

    /// Prints this value for a key.
    pub(super) fn print(&self, key: &str, value: impl Into<serde_yaml::Value>) {
        self.effective.borrow_mut().insert(key.into(), value.into());
    }

    /// Prints nothing for a key.
    pub(super) fn print_nothing(&self, key: &str) {
        self.effective.borrow_mut().shift_remove(key);
    }

    fn written(&self, key: &str) -> Option<Node> {
        let entry = self.entries.iter().find(|(name, _)| name == key);
        entry.map(|(_, node)| node.clone())
    }

    fn node(&self, key: &'static str, is_scalar: bool) -> Option<Node> {
        self.context.keys.add(&self.path, key, true);
        self.context
            .node(&self.path(key), self.written(key), is_scalar)
    }

    /// Whether the map at a key is written, if only with an empty value.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.node(key, false).is_some() || !self.context.variables.below(&self.path(key)).is_empty()
    }

    /// The region that the environment names for all clients of Amazon's services.
    pub(super) fn aws_region(&self) -> Option<&str> {
        self.context.variables.aws_region()
    }

    /// Reads the map at a key.
    pub(super) fn section<T>(&self, key: &'static str, read: impl FnOnce(&Self) -> T) -> T {
        let mut node = self.node(key, false);
        // The short form of a storage driver without parameters.
        if let ("storage", Some(Node { origin, value })) = (key, &mut node)
            && let Value::Scalar(driver) = value
        {
            let driver = std::mem::take(driver);
            *value = Value::Map(vec![(driver, Node::null(origin.clone()))]);
        }
        let (result, effective) = Self::read(self.context, self.path(key), node, read);
        if !effective.is_empty() {
            self.print(key, effective);
        }
        result
    }

    /// Reads each map of the list at a key.
    pub(super) fn sections<T>(
        &self,
        key: &'static str,
        mut read: impl FnMut(&Self) -> T,
    ) -> Vec<T> {
        let items = self
            .context
            .items(&self.path(key), self.node(key, false), false);
        let is_map = |(path, node): &(String, Node)| {
            let is_map = matches!(node.value, Value::Map(_));
            if !is_map {
                self.context.must_be(path, "a map of keys");
            }
            is_map
        };
        let items = items.into_iter().filter(is_map);
        let (results, effective): (Vec<T>, Vec<_>) = items
            .map(|(path, node)| Self::read(self.context, path, Some(node), &mut read))
            .unzip();
        self.print(key, effective);
        results
    }

    /// A value as it was written; an empty one counts as absent, as in the reference registry.
    pub(super) fn text(&self, key: &'static str) -> Option<String> {
        let text = self.context.text(&self.path(key), self.node(key, true));
        text.filter(|text| !text.is_empty())
    }

    /// What `parse` makes of the value of a key, which isn't printed.
    pub(super) fn parsed<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.context.parse(&self.path(key), &self.text(key)?, parse)
    }

    /// What `parse` makes of the value of a key.
    pub(super) fn value<T: Display, E: Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.parsed(key, parse)?;
        self.print(key, value.to_string());
        Some(value)
    }

    /// What `parse` makes of each value of a list, whose path it is told.
    pub(super) fn values<T: Display, E: Display>(
        &self,
        key: &'static str,
        parse: impl FnMut(&str, &str) -> Result<T, E>,
    ) -> Vec<T> {
        let values = self.list(&self.path(key), self.node(key, false), parse);
        let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
        self.print(key, texts);
        values
    }

    /// What `parse` makes of a single value, or of each value of a list; and whether it is a list.
    pub(super) fn one_or_more<T: Display, E: Display>(
        &self,
        key: &'static str,
        mut parse: impl FnMut(&str) -> Result<T, E>,
    ) -> (Vec<T>, bool) {
        let path = self.path(key);
        let node = self.node(key, false);
        if let Some(Value::Scalar(text)) = node.as_ref().map(|node| &node.value) {
            let value = Some(text).filter(|text| !text.is_empty());
            let value = value.and_then(|text| self.context.parse(&path, text, parse));
            if let Some(value) = &value {
                self.print(key, value.to_string());
            }
            return (value.into_iter().collect(), false);
        }
        let values = self.list(&path, node, |text, _| parse(text));
        let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
        self.print(key, texts);
        (values, true)
    }

    fn list<T, E: Display>(
        &self,
        path: &str,
        node: Option<Node>,
        mut parse: impl FnMut(&str, &str) -> Result<T, E>,
    ) -> Vec<T> {
        let mut values = Vec::new();
        for (path, node) in self.context.items(path, node, true) {
            if let Some(text) = self.context.text(&path, Some(node)) {
                values.extend(self.context.parse(&path, &text, |text| parse(text, &path)));
            }
        }
        values
    }

    /// The entries, with their paths, of a map that may have any keys. A variable has `separator`
    /// in its key for each `_` in its name.
    fn free(
        &self,
        key: &'static str,
        separator: &str,
        are_scalars: bool,
    ) -> Vec<(String, String, Node)> {
        let (context, path) = (self.context, self.path(key));
        let mut entries = context.entries(&path, self.node(key, false));
        for (rest, variable) in context.variables.below(&path) {
            let node = variable.node(are_scalars, &context.report);
            let name = rest.replace('_', separator).to_ascii_lowercase();
            let mut known = entries.iter_mut();
            match known.find(|(known, _)| known.eq_ignore_ascii_case(&name)) {
                Some((_, known)) => *known = node,
                None => entries.push((name, node)),
            }
        }
        let with_path = |(name, node): (String, Node)| {
            let path = key_path(&path, &name);
            context.report.set_origin(&path, node.origin.clone());
            (name, path, node)
        };
        entries.into_iter().map(with_path).collect()
    }

    /// The texts of a map that may have any keys.
    pub(super) fn texts(&self, key: &'static str) -> BTreeMap<String, String> {
        self.texts_with(key, "_")
    }

    /// The same with what stands in a key for each `_` in a variable's name.
    pub(super) fn texts_with(
        &self,
        key: &'static str,
        separator: &str,
    ) -> BTreeMap<String, String> {
        let entries = self.free(key, separator, true).into_iter();
        let texts: BTreeMap<_, _> = entries
            .filter_map(|(name, path, node)| {
                let text = self.context.text(&path, Some(node))?;
                (!text.is_empty()).then_some((name, text))
            })
            .collect();
        let printed = texts.iter();
        let printed = printed.map(|(name, text)| (name.as_str().into(), text.as_str().into()));
        self.print(key, printed.collect::<Mapping>());
        texts
    }

    /// The lists of a map that may have any keys, of what `parse` makes of their values.
    pub(super) fn lists<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<(String, Vec<T>)> {
        let entries = self.free(key, "-", false).into_iter();
        entries
            .map(|(name, path, node)| {
                let list = self.list(&path, Some(node), |text, _| parse(text));
                (name, list)
            })
            .collect()
    }

    /// One of several values that have names, in lower case; `advice` names them all.
    pub(super) fn choice<T: Copy + PartialEq>(
        &self,
        key: &'static str,
        advice: &str,
        choices: &[(&str, T)],
        default: T,
    ) -> T {
        let choice = self.parsed(key, |text| {
            let choice = choices.iter().find(|(name, _)| *name == text);
            choice.map(|(_, value)| *value).ok_or(advice)
        });
        let choice = choice.unwrap_or(default);
        if let Some((name, _)) = choices.iter().find(|(_, value)| *value == choice) {
            self.print(key, *name);
        }
        choice
    }

    pub(super) fn bool(&self, key: &'static str, default: bool) -> bool {
        let value = self.parsed(key, |text| truth(text).ok_or("write true or false"));
        let value = value.unwrap_or(default);
        self.print(key, value);
        value
    }

    pub(super) fn duration(&self, key: &'static str, default: Duration) -> Duration {
        let parse = |text: &str| duration::parse(text).map_err(|error| format!("it {error}"));
        let duration = self.parsed(key, parse).unwrap_or(default);
        self.print(key, duration::format(duration));
        duration
    }

    /// A whole number within `range`.
    pub(super) fn number(
        &self,
        key: &'static str,
        range: RangeInclusive<usize>,
        default: usize,
    ) -> usize {
        let (from, to) = (range.start(), range.end());
        let parse = |text: &str| {
            let number = digits(text).filter(|number| range.contains(number));
            number.ok_or_else(|| format!("write a whole number from {from} to {to}"))
        };
        let number = self.parsed(key, parse).unwrap_or(default);
        self.print(key, number);
        number
    }

    /// A size in bytes.
    pub(super) fn size(&self, key: &'static str, default: u64) -> u64 {
        let parse = |text: &str| size::bytes(text).map_err(|error| format!("it {error}"));
        let size = self.parsed(key, parse).unwrap_or(default);
        self.print(key, size::format(size));
        size
    }
}

/// A truth value in any of YAML 1.1's spellings, as the reference registry's parser reads them.
fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}
