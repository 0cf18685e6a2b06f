//! Where the checks put what they find: each finding with the place that the value came from.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::document::{KeyPath, Node};
use super::error::Problem;
use super::{duration, locate, size};

/// The most problems that are kept: each one's line costs a walk over the file.
const MAX_PROBLEMS: usize = 100;
/// The most characters of a value that a message repeats.
const MAX_SHOWN: usize = 80;

pub(super) struct Report<'a> {
    source: &'a str,
    text: &'a str,
    overrides: Vec<(KeyPath, String)>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Report<'a> {
    /// What says where the values came from, when the report is done.
    pub(super) fn places(self) -> Places {
        Places {
            source: self.source.to_owned(),
            text: self.text.to_owned(),
            overrides: self.overrides,
        }
    }

    /// A report on the file `source`, which holds `text`.
    pub(super) fn new(source: &'a str, text: &'a str) -> Self {
        Self {
            source,
            text,
            overrides: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// From now on, what is found at `path` is laid to an environment variable.
    pub(super) fn overridden(&mut self, path: KeyPath, variable: &str) {
        self.overrides.push((path, variable.to_owned()));
    }

    pub(super) fn problem(&mut self, path: &KeyPath, message: String) {
        self.problem_at(path, 0, message);
    }

    /// A problem with one occurrence (from 0) of a key that stands more than once.
    pub(super) fn problem_at(&mut self, path: &KeyPath, occurrence: usize, message: String) {
        if self.problems.len() < MAX_PROBLEMS {
            let (source, line) = self.place(path, occurrence);
            self.push(source, line, path, message);
        }
    }

    /// A problem at a known line of the file.
    pub(super) fn problem_on_line(&mut self, line: Option<usize>, message: String) {
        self.push(self.source.to_owned(), line, &KeyPath::default(), message);
    }

    /// A problem with the environment variable itself.
    pub(super) fn problem_in(&mut self, variable: &str, path: &KeyPath, message: String) {
        self.push(variable.to_owned(), None, path, message);
    }

    fn push(&mut self, source: String, line: Option<usize>, path: &KeyPath, message: String) {
        if self.problems.len() < MAX_PROBLEMS {
            let path = path.to_string();
            self.problems.push(Problem {
                source,
                line,
                path,
                message,
            });
        }
    }

    pub(super) fn warning(&mut self, path: &KeyPath, message: String) {
        let (source, line) = self.place(path, 0);
        let problem = Problem {
            source,
            line,
            path: path.to_string(),
            message,
        };
        self.warnings.push(problem.to_string());
    }

    /// The variable that set the value, else its line in the file, else the variable that set
    /// something in it; else the same of the map that it would be in.
    fn place(&self, path: &KeyPath, occurrence: usize) -> (String, Option<usize>) {
        let variable = |related: &dyn Fn(&KeyPath) -> bool| {
            let found = self.overrides.iter().rev().find(|(path, _)| related(path));
            found.map(|(_, variable)| (variable.clone(), None))
        };
        let in_file = |line| (self.source.to_owned(), line);
        let Some(parent) = path.parent() else {
            return in_file(None);
        };
        variable(&|set| path.starts_with(set))
            .or_else(|| Some(in_file(Some(locate::line_of(self.text, path, occurrence)?))))
            .or_else(|| variable(&|set| set.starts_with(path)))
            .unwrap_or_else(|| self.place(&parent, 0))
    }
}

/// Where the values of a configuration came from.
#[derive(Debug, Clone, Default)]
pub struct Places {
    source: String,
    text: String,
    overrides: Vec<(KeyPath, String)>,
}

impl Places {
    /// The place of a key, such as `proxy.upstreams[0].ca`: `config.yml:12`, or the environment
    /// variable that set it. Where it is nowhere, that of the map it would be in, or the file.
    pub fn of(&self, key: &str) -> String {
        let mut report = Report::new(&self.source, &self.text);
        report.overrides.clone_from(&self.overrides);
        match report.place(&KeyPath::parse(key), 0) {
            (source, Some(line)) => format!("{source}:{line}"),
            (source, None) => source,
        }
    }
}

/// A value as messages show it: quoted, and short. Not for secrets.
pub(super) fn shown(value: &str) -> String {
    let end = value.char_indices().nth(MAX_SHOWN).map(|(end, _)| end);
    match end.and_then(|end| value.get(..end)) {
        Some(start) => format!("{start:?}..."),
        None => format!("{value:?}"),
    }
}

/// A truth value in any of YAML 1.1's spellings; none for any other text.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A map of the configuration and where it stands; empty when it is absent. Values of a wrong
/// kind read as absent: `schema::validate` has reported them.
#[derive(Clone)]
pub(super) struct Section<'a> {
    node: &'a Node,
    pub(super) path: KeyPath,
}

impl<'a> Section<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self {
            node,
            path: KeyPath::default(),
        }
    }

    fn node(&self, key: &str) -> &'a Node {
        self.node.get(key).unwrap_or(&Node::Null)
    }

    /// Whether the key is written, if only with an empty value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.node.get(key).is_some()
    }

    pub(super) fn section(&self, key: &str) -> Self {
        Self {
            node: self.node(key),
            path: self.path.key(key),
        }
    }

    /// The maps of a list.
    pub(super) fn sections(&self, key: &str) -> Vec<Self> {
        let path = self.path.key(key);
        self.items(key)
            .iter()
            .enumerate()
            .filter(|(_, node)| matches!(node, Node::Map(_)))
            .map(|(index, node)| Self {
                node,
                path: path.index(index),
            })
            .collect()
    }

    fn items(&self, key: &str) -> &'a [Node] {
        match self.node(key) {
            Node::List(items) => items,
            _ => &[],
        }
    }

    /// The keys of a map that may have any.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        let entries: &[_] = match self.node {
            Node::Map(entries) => entries,
            _ => &[],
        };
        entries.iter().map(|(key, _)| key.as_str())
    }

    /// A value as it was written; an empty one is none, as in the reference registry.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match self.node(key) {
            Node::Scalar(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// The values of a list, with their paths.
    pub(super) fn texts(&self, key: &str) -> Vec<(KeyPath, &'a str)> {
        let path = self.path.key(key);
        let texts = self.items(key).iter().enumerate();
        let texts = texts.filter_map(|(index, node)| match node {
            Node::Scalar(text) => Some((path.index(index), text.as_str())),
            _ => None,
        });
        texts.collect()
    }

    /// A truth value in any of YAML 1.1's spellings, which the reference registry's parser takes.
    pub(super) fn bool(&self, key: &str, default: bool, report: &mut Report<'_>) -> bool {
        let Some(text) = self.text(key) else {
            return default;
        };
        truth(text).unwrap_or_else(|| {
            let path = self.path.key(key);
            let value = shown(text);
            report.problem(&path, format!("`{path}` is {value}; write true or false"));
            default
        })
    }

    pub(super) fn duration(
        &self,
        key: &str,
        default: Duration,
        report: &mut Report<'_>,
    ) -> Duration {
        let Some(text) = self.text(key) else {
            return default;
        };
        duration::parse(text).unwrap_or_else(|error| {
            let path = self.path.key(key);
            report.problem(&path, format!("`{path}` is {}; it {error}", shown(text)));
            default
        })
    }

    /// A whole number within `range`.
    pub(super) fn number(
        &self,
        key: &str,
        range: &RangeInclusive<usize>,
        default: usize,
        report: &mut Report<'_>,
    ) -> usize {
        let Some(text) = self.text(key) else {
            return default;
        };
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number
            .filter(|number| range.contains(number))
            .unwrap_or_else(|| {
                let (from, to) = (range.start(), range.end());
                let path = self.path.key(key);
                let value = shown(text);
                let message =
                    format!("`{path}` is {value}; write a whole number from {from} to {to}");
                report.problem(&path, message);
                default
            })
    }

    /// A size in bytes.
    pub(super) fn size(&self, key: &str, default: u64, report: &mut Report<'_>) -> u64 {
        let Some(text) = self.text(key) else {
            return default;
        };
        size::bytes(text).unwrap_or_else(|error| {
            let path = self.path.key(key);
            report.problem(&path, format!("`{path}` is {}; it {error}", shown(text)));
            default
        })
    }
}
