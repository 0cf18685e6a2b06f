//! Where the checks put their findings, each with the place that its value came from.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::error::Problem;
use super::yaml::{Node, Origin};

/// The most problems that are reported.
const MAX_PROBLEMS: usize = 100;
/// The most characters of a value that a message repeats.
const MAX_SHOWN: usize = 80;

/// The findings so far.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) places: Places,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
}

impl Report {
    /// A report on the file that `source` names. Until `places` is set, it knows no lines.
    pub(super) fn new(source: &str) -> Self {
        Self {
            places: Places {
                source: source.to_owned(),
                origins: BTreeMap::new(),
            },
            problems: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// A problem with the value at `path`.
    pub(super) fn problem(&self, path: &str, message: String) {
        self.problem_at(self.places.find(path), message);
    }

    /// A problem at a place: the file or a variable, and a line of the file.
    pub(super) fn problem_at(&self, (source, line): (&str, Option<usize>), message: String) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MAX_PROBLEMS {
            let source = source.to_owned();
            problems.push(Problem {
                source,
                line,
                message,
            });
        }
    }

    /// A finding about the value at `path` that doesn't prevent the start.
    pub(super) fn warning(&self, path: &str, message: &str) {
        let place = self.places.of(path);
        self.warnings
            .borrow_mut()
            .push(format!("{place}: {message}"));
    }

    /// A warning about an environment variable.
    pub(super) fn warning_in(&self, variable: &str, message: &str) {
        self.warnings
            .borrow_mut()
            .push(format!("{variable}: {message}"));
    }

    /// The problems in the order of the file, those without a line last; the warnings; the places.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<String>, Places) {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        (problems, self.warnings.into_inner(), self.places)
    }
}

/// Where the values of a configuration came from.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The name of the file.
    source: String,
    /// By the path of the value.
    origins: BTreeMap<String, Origin>,
}

impl Places {
    /// The places of all values of the tree.
    pub(super) fn set(&mut self, root: &Node) {
        self.origins.clear();
        root.origins("", &mut self.origins);
    }

    /// The place of a key, such as `proxy.upstreams[0].ca`: `config.yml:12`, or the environment
    /// variable that set it. A missing key has the place of the map that it belongs to, or the
    /// file.
    pub fn of(&self, path: &str) -> String {
        match self.find(path) {
            (source, Some(line)) => format!("{source}:{line}"),
            (source, None) => source.to_owned(),
        }
    }

    /// Whether the path has a value.
    #[cfg(test)]
    pub(super) fn has(&self, path: &str) -> bool {
        self.origins.contains_key(path)
    }

    /// The file or variable, and the line in the file.
    pub(super) fn find(&self, path: &str) -> (&str, Option<usize>) {
        let mut known = Some(path);
        while let Some(path) = known {
            if let Some(origin) = self.origins.get(path) {
                return self.place(origin);
            }
            known = path.rsplit_once(['.', '[']).map(|(parent, _)| parent);
        }
        (&self.source, None)
    }

    pub(super) fn place<'a>(&'a self, origin: &'a Origin) -> (&'a str, Option<usize>) {
        match origin {
            Origin::Line(line) => (&self.source, Some(*line)),
            Origin::Variable(name) => (name, None),
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
