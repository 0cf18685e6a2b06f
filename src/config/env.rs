//! Environment variables over the file, as in the reference registry: `REGISTRY_HTTP_ADDR` sets
//! `http.addr`, `REGISTRY_PROXY_UPSTREAMS_0_NAME` the name of the first upstream.
//!
//! A single value is taken as it is (or out of YAML quotes), so that a password may hold any
//! character. A map or a list is read as YAML.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::report::Report;
use super::yaml::{Document, Node, Origin, SyntaxError, Value};

/// The start of the names of all variables.
pub(super) const PREFIX: &str = "REGISTRY_";
/// Names the configuration file itself.
pub const PATH_VARIABLE: &str = "REGISTRY_CONFIGURATION_PATH";

/// Name the region for all clients of Amazon's services; the first one that is set counts.
pub(super) const AWS_REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];

/// The variables that the configuration is read from.
#[derive(Default)]
pub(super) struct Variables {
    /// By what follows the prefix in their names, in capitals.
    ours: BTreeMap<String, Variable>,
    aws_region: Option<String>,
}

/// No `Debug`: it may hold a password.
pub(super) struct Variable {
    name: Arc<str>,
    value: String,
    is_read: Cell<bool>,
}

impl Variables {
    pub(super) fn new(environment: impl Iterator<Item = (String, String)>) -> Self {
        let mut regions = [None, None];
        let ours = environment.filter(|(name, _)| name != PATH_VARIABLE);
        let ours = ours.filter_map(|(name, value)| {
            for (known, region) in AWS_REGIONS.iter().zip(&mut regions) {
                if name == *known && !value.is_empty() {
                    *region = Some(value.clone());
                }
            }
            let key = name.strip_prefix(PREFIX)?.to_ascii_uppercase();
            let variable = Variable {
                name: name.into(),
                value,
                is_read: Cell::new(false),
            };
            Some((key, variable))
        });
        Self {
            ours: ours.collect(),
            aws_region: regions.into_iter().flatten().next(),
        }
    }

    pub(super) fn aws_region(&self) -> Option<&str> {
        self.aws_region.as_deref()
    }

    /// The variable that sets the value at a path.
    pub(super) fn at(&self, path: &str) -> Option<&Variable> {
        self.ours.get(&segments_of(path))
    }

    /// The variables of values below a path, by the rest of their names.
    pub(super) fn below(&self, path: &str) -> Vec<(&str, &Variable)> {
        let start = segments_of(path) + "_";
        let after = self.ours.range(start.clone()..);
        after
            .map_while(|(name, variable)| Some((name.strip_prefix(&start)?, variable)))
            .collect()
    }

    /// Warns of the variables that no key has. They are no errors: in a Kubernetes namespace with a
    /// service called `registry`, every container has some. `nearest` finds the path of the key
    /// that one was probably meant for.
    pub(super) fn warn_of_unread(&self, report: &Report, nearest: impl Fn(&str) -> Option<String>) {
        let unread = self
            .ours
            .iter()
            .filter(|(_, variable)| !variable.is_read.get());
        for (key, variable) in unread {
            let hint = nearest(key).map(|path| {
                let name = segments_of(&path);
                format!("; did you mean `{path}` ({PREFIX}{name})?")
            });
            let hint = hint.unwrap_or_default();
            let message = format!("this environment variable matches no configuration key{hint}");
            report.warning_at(&variable.origin(), message);
        }
    }
}

/// The name, after the prefix, of the variable that sets the value at a path.
fn segments_of(path: &str) -> String {
    let name = path.replace(['.', '['], "_").replace(']', "");
    name.to_ascii_uppercase()
}

impl Variable {
    pub(super) fn origin(&self) -> Origin {
        Origin::Variable(Arc::clone(&self.name))
    }

    fn document(&self) -> Result<Document, SyntaxError> {
        self.is_read.set(true);
        Document::parse(&self.value, Some(&self.name))
    }

    /// The value as one text.
    pub(super) fn scalar(&self) -> Node {
        self.is_read.set(true);
        if self.value.starts_with(['"', '\''])
            && let Ok(Document { root, .. }) = self.document()
            && matches!(root.value, Value::Scalar(_))
        {
            return root;
        }
        Node {
            origin: self.origin(),
            value: Value::Scalar(self.value.clone()),
        }
    }

    /// The value as YAML if it is valid, else as one text.
    pub(super) fn any(&self) -> Node {
        self.document()
            .map_or_else(|_| self.scalar(), |document| document.root)
    }

    /// The value as one text, or else as YAML; null if that isn't valid, which is reported.
    pub(super) fn node(&self, is_scalar: bool, report: &Report) -> Node {
        if is_scalar {
            return self.scalar();
        }
        let problem = match self.document() {
            Ok(Document { root, duplicates }) => match duplicates.first() {
                None => return root,
                Some((path, _)) => repeated(path),
            },
            Err(error) => format!("the value is not valid YAML: {error}"),
        };
        report.problem_at(&self.origin(), problem);
        Node::null(self.origin())
    }
}

/// The message about a key that its map has twice.
pub(super) fn repeated(path: &str) -> String {
    format!("the key `{path}` is repeated; keep one")
}
