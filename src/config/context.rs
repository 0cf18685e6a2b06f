//! What all sections share, and the values at paths: of an environment variable, or else of the file.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::env::Variables;
use super::keys::Keys;
use super::report::{Report, shown};
use super::yaml::{Node, Value, item_path};
use crate::oci::digits;

/// What all sections share.
pub(super) struct Context {
    pub(super) report: Report,
    pub(super) variables: Variables,
    pub(super) keys: Keys,
}

impl Context {
    pub(super) fn new(report: Report, variables: Variables) -> Self {
        Self {
            report,
            variables,
            keys: Keys::default(),
        }
    }

    /// The value at a path: that of its variable, else the written one.
    pub(super) fn node(&self, path: &str, written: Option<Node>, is_scalar: bool) -> Option<Node> {
        let node = match self.variables.at(path) {
            Some(variable) => Some(variable.node(is_scalar, &self.report)),
            None => written,
        }?;
        self.report.set_origin(path, node.origin.clone());
        Some(node)
    }

    pub(super) fn must_be(&self, path: &str, kind: &str) {
        let message = format!("`{path}` must be {kind}");
        self.report.problem(path, message);
    }

    /// The text of a value at a path that must be a single one.
    pub(super) fn text(&self, path: &str, node: Option<Node>) -> Option<String> {
        match node?.value {
            Value::Null => None,
            Value::Scalar(text) => Some(text),
            Value::List(_) | Value::Map(_) => {
                self.must_be(path, "a single value");
                None
            }
        }
    }

    /// The entries of a value at a path that must be a map.
    pub(super) fn entries(&self, path: &str, node: Option<Node>) -> Vec<(String, Node)> {
        match node.map(|node| node.value) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Map(entries)) => entries,
            Some(Value::Scalar(_) | Value::List(_)) => {
                self.must_be(path, "a map of keys");
                Vec::new()
            }
        }
    }

    /// The items of a value at a path that must be a list, with their paths. Variables override
    /// items and append others.
    pub(super) fn items(
        &self,
        path: &str,
        node: Option<Node>,
        are_scalars: bool,
    ) -> Vec<(String, Node)> {
        let mut items = match node.map(|node| node.value) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::List(items)) => items,
            Some(Value::Scalar(_) | Value::Map(_)) => {
                self.must_be(path, "a list");
                Vec::new()
            }
        };
        let mut numbered = BTreeMap::new();
        for (rest, variable) in self.variables.below(path) {
            let (number, key) = rest.split_once('_').unwrap_or((rest, ""));
            if let Some(number) = digits::<usize>(number)
                && (key.is_empty() || !are_scalars)
            {
                numbered.entry(number).or_insert(variable);
            }
        }
        for (number, variable) in numbered {
            if number > items.len() {
                let item = item_path(path, number);
                let gap = format!("`{item}` leaves a gap in the list; number the items from 0");
                self.report.problem_at(&variable.origin(), gap);
            } else if number == items.len() {
                let (origin, value) = (variable.origin(), Value::Map(Vec::new()));
                items.push(Node { origin, value });
            }
        }
        let items = items.into_iter().enumerate().filter_map(|(index, item)| {
            let path = item_path(path, index);
            let node = self.node(&path, Some(item), are_scalars)?;
            if node.value == Value::Null {
                let message = format!("`{path}` is empty; remove it");
                self.report.problem(&path, message);
                return None;
            }
            Some((path, node))
        });
        items.collect()
    }

    /// What `parse` makes of the text at a path. A problem is reported as "`path` is "text";
    /// `error`".
    pub(super) fn parse<'t, T, E: Display>(
        &self,
        path: &str,
        text: &'t str,
        parse: impl FnOnce(&'t str) -> Result<T, E>,
    ) -> Option<T> {
        parse(text)
            .map_err(|error| {
                let message = format!("`{path}` is {}; {error}", shown(text));
                self.report.problem(path, message);
            })
            .ok()
    }
}
