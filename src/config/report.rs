//! Where the checks put their findings, each with the place that its value came from.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::error::Problem;
use super::yaml::Origin;

/// The most problems that are reported.
const MAX_PROBLEMS: usize = 100;
/// The most characters of a value that a message repeats.
const MAX_SHOWN: usize = 80;

/// The findings so far.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) places: RefCell<Places>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl Report {
    /// A report on the file that `source` names.
    pub(super) fn new(source: &str) -> Self {
        Self {
            places: RefCell::new(Places {
                source: source.to_owned(),
                origins: BTreeMap::new(),
            }),
            problems: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// Notes where the value at `path` was written.
    pub(super) fn set_origin(&self, path: &str, origin: Origin) {
        let mut places = self.places.borrow_mut();
        places.origins.insert(path.to_owned(), origin);
    }

    /// A problem with the value at `path`.
    pub(super) fn problem(&self, path: &str, message: String) {
        let origin = self.places.borrow().find(path);
        self.problem_at(&origin, message);
    }

    /// A problem with what was written there. The readers of one value all find the same one, which
    /// counts once.
    pub(super) fn problem_at(&self, origin: &Origin, message: String) {
        let problem = self.places.borrow().finding(origin, message);
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MAX_PROBLEMS && !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// A finding about the value at `path` that doesn't prevent the start.
    pub(super) fn warning(&self, path: &str, message: String) {
        let origin = self.places.borrow().find(path);
        self.warning_at(&origin, message);
    }

    /// A finding about what was written there that doesn't prevent the start.
    pub(super) fn warning_at(&self, origin: &Origin, message: String) {
        let warning = self.places.borrow().finding(origin, message);
        self.warnings.borrow_mut().push(warning);
    }

    /// The problems and the warnings, each in the order of the file with those without a line last;
    /// the places.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<String>, Places) {
        let sorted = |mut findings: Vec<Problem>| {
            findings.sort_by_key(|finding| finding.line.unwrap_or(usize::MAX));
            findings
        };
        let warnings = sorted(self.warnings.into_inner());
        (
            sorted(self.problems.into_inner()),
            warnings.iter().map(ToString::to_string).collect(),
            self.places.into_inner(),
        )
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
    /// The place of a key, such as `proxy.upstreams[0].ca`: `config.yml:12`, or the environment
    /// variable that set it. A missing key has the place of the map that it belongs to, or the
    /// file.
    pub fn of(&self, path: &str) -> String {
        self.place(&self.find(path))
    }

    /// Whether the path has a value.
    #[cfg(test)]
    pub(super) fn has(&self, path: &str) -> bool {
        self.origins.contains_key(path)
    }

    fn find(&self, path: &str) -> Origin {
        let mut known = Some(path);
        while let Some(path) = known {
            if let Some(origin) = self.origins.get(path) {
                return origin.clone();
            }
            known = path.rsplit_once(['.', '[']).map(|(parent, _)| parent);
        }
        Origin::File
    }

    fn place(&self, origin: &Origin) -> String {
        match origin {
            Origin::File => self.source.clone(),
            Origin::Line(line) => format!("{}:{line}", self.source),
            Origin::Variable(name) => name.to_string(),
        }
    }

    fn finding(&self, origin: &Origin, message: String) -> Problem {
        let line = match origin {
            Origin::Line(line) => Some(*line),
            Origin::File | Origin::Variable(_) => None,
        };
        Problem {
            place: self.place(origin),
            line,
            message,
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
