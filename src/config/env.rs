//! Environment variables over the file, as in the reference registry: `REGISTRY_HTTP_ADDR` sets
//! `http.addr`, `REGISTRY_PROXY_UPSTREAMS_0_NAME` the name of the first upstream.
//!
//! The value of a single value is taken as it is (or out of YAML quotes), so that a password may
//! hold any character. A map or a list is read as YAML.

use std::sync::Arc;

use super::report::Report;
use super::schema::{self, Keys, Shape};
use super::yaml::{Document, Node, Origin, Value, item_path, key_path};

/// The start of the names of all variables.
pub(super) const PREFIX: &str = "REGISTRY_";
/// Names the configuration file itself.
pub const PATH_VARIABLE: &str = "REGISTRY_CONFIGURATION_PATH";

/// Merges the variables into `root`. One that matches no key is a warning, not an error: in a
/// Kubernetes namespace with a service called `registry`, every container has some.
pub(super) fn apply(
    root: &mut Node,
    environment: impl Iterator<Item = (String, String)>,
    report: &Report,
) {
    let mut variables: Vec<(String, String)> = environment
        .filter(|(name, _)| name.starts_with(PREFIX) && name != PATH_VARIABLE)
        .collect();
    // A section before the keys in it, and list items in the order of their numbers.
    variables.sort_by(|(one, _), (other, _)| order(one).cmp(&order(other)));
    for (name, value) in &variables {
        let segments: Vec<&str> = name.split('_').skip(1).collect();
        let variable = Variable {
            name: name.as_str().into(),
            value,
        };
        match variable.set(root, &schema::ROOT, "", &segments) {
            Ok(()) => schema::expand_driver(root),
            Err(NotSet::Problem(message)) => report.problem_at((name, None), message),
            Err(NotSet::Unknown(hint)) => {
                let hint = hint
                    .map(|path| format!("; did you mean `{path}` ({})?", variable_of(&path)))
                    .unwrap_or_default();
                let message =
                    format!("this environment variable matches no configuration key{hint}");
                report.warning_in(name, &message);
            }
        }
    }
}

fn order(name: &str) -> Vec<(Option<usize>, &str)> {
    name.split('_')
        .map(|segment| (segment.parse().ok(), segment))
        .collect()
}

/// The name of the variable that sets the key at a path.
fn variable_of(path: &str) -> String {
    let name = path.replace(['.', '['], "_").replace(']', "");
    format!("{PREFIX}{}", name.to_ascii_uppercase())
}

/// Why a variable sets nothing.
enum NotSet {
    /// It matches no key; perhaps the key at this path was meant.
    Unknown(Option<String>),
    Problem(String),
}

struct Variable<'a> {
    name: Arc<str>,
    value: &'a str,
}

impl Variable<'_> {
    /// Sets what the segments name below `node`, which is at `path`. Changes nothing when it fails.
    fn set(
        &self,
        node: &mut Node,
        shape: &'static Shape,
        path: &str,
        segments: &[&str],
    ) -> Result<(), NotSet> {
        let Some((first, rest)) = segments.split_first() else {
            *node = self.read(shape)?;
            return Ok(());
        };
        // A free key; or something below a section that is ignored or refused as in a file.
        let free_key = || segments.join("_").to_ascii_lowercase();
        match shape {
            Shape::Section(keys) => self.set_known(node, keys, path, first, rest),
            Shape::Sections(keys) => {
                let (key, rest) = rest.split_first().ok_or(NotSet::Unknown(None))?;
                self.set_item(node, path, first, |item, path| {
                    self.set_known(item, keys, path, key, rest)
                })
            }
            Shape::Scalars if rest.is_empty() => self.set_item(node, path, first, |item, path| {
                self.set(item, &Shape::Scalar, path, &[])
            }),
            // Header names have dashes where names of variables can't.
            Shape::Headers => {
                let key = segments.join("-").to_ascii_lowercase();
                self.set_entry(node, &key, |node| {
                    self.set(node, &Shape::Scalars, path, &[])
                })
            }
            Shape::Fields
            | Shape::Ignored(_)
            | Shape::Refused(_)
            | Shape::Middleware
            | Shape::Driver => self.set_entry(node, &free_key(), |node| {
                self.set(node, &Shape::Scalar, path, &[])
            }),
            Shape::Scalar | Shape::Scalars => Err(NotSet::Unknown(None)),
        }
    }

    /// Sets a key that the schema must know, or something below it.
    fn set_known(
        &self,
        node: &mut Node,
        keys: Keys,
        path: &str,
        key: &str,
        rest: &[&str],
    ) -> Result<(), NotSet> {
        let known = keys.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
        let Some((name, shape)) = known else {
            return Err(NotSet::Unknown(schema::nearest(key, keys, path)));
        };
        let path = key_path(path, name);
        self.set_entry(node, name, |node| self.set(node, shape, &path, rest))
    }

    /// Sets the value of a key. Free keys (log fields, headers) may be written in any case in the
    /// file. Anything but a map is replaced by one.
    fn set_entry(
        &self,
        map: &mut Node,
        key: &str,
        set: impl FnOnce(&mut Node) -> Result<(), NotSet>,
    ) -> Result<(), NotSet> {
        let mut known = match &mut map.value {
            Value::Map(entries) => entries.iter_mut(),
            _ => [].iter_mut(),
        };
        if let Some((_, node)) = known.find(|(name, _)| name.eq_ignore_ascii_case(key)) {
            return set(node);
        }
        let mut node = self.null();
        set(&mut node)?;
        let entry = (key.to_owned(), node);
        match &mut map.value {
            Value::Map(entries) => entries.push(entry),
            value => *value = Value::Map(vec![entry]),
        }
        Ok(())
    }

    /// Sets an item of a list, or appends one. Anything but a list is replaced by one.
    fn set_item(
        &self,
        list: &mut Node,
        path: &str,
        index: &str,
        set: impl FnOnce(&mut Node, &str) -> Result<(), NotSet>,
    ) -> Result<(), NotSet> {
        let index: usize = crate::oci::digits(index).ok_or(NotSet::Unknown(None))?;
        let path = item_path(path, index);
        let mut items: Vec<Node> = match &mut list.value {
            Value::List(items) => std::mem::take(items),
            _ => Vec::new(),
        };
        let result = if let Some(item) = items.get_mut(index) {
            set(item, &path)
        } else {
            let mut item = self.null();
            set(&mut item, &path).and_then(|()| {
                if index > items.len() {
                    let message =
                        format!("`{path}` leaves a gap in the list; number the items from 0");
                    return Err(NotSet::Problem(message));
                }
                items.push(item);
                Ok(())
            })
        };
        if result.is_ok() || matches!(list.value, Value::List(_)) {
            list.value = Value::List(items);
        }
        result
    }

    fn null(&self) -> Node {
        Node::null(Origin::Variable(Arc::clone(&self.name)))
    }

    /// The variable's value as the kind of value that a key takes.
    fn read(&self, shape: &Shape) -> Result<Node, NotSet> {
        let as_written = || Node {
            value: Value::Scalar(self.value.to_owned()),
            ..self.null()
        };
        let parsed = Document::parse(self.value, Some(&self.name));
        match (shape, parsed) {
            (Shape::Scalar, Ok(Document { root, .. }))
                if self.value.starts_with(['"', '\''])
                    && matches!(root.value, Value::Scalar(_)) =>
            {
                Ok(root)
            }
            // An ignored or refused key is ignored or refused with any value.
            (Shape::Scalar, _)
            | (Shape::Ignored(_) | Shape::Refused(_) | Shape::Middleware, Err(_)) => {
                Ok(as_written())
            }
            (_, Ok(document)) => match document.duplicates.first() {
                None => Ok(document.root),
                Some((path, _)) => Err(NotSet::Problem(repeated(path))),
            },
            (_, Err(error)) => {
                let message = format!("the value is not valid YAML: {error}");
                Err(NotSet::Problem(message))
            }
        }
    }
}

/// The message about a key that its map has twice.
pub(super) fn repeated(path: &str) -> String {
    format!("the key `{path}` is repeated; keep one")
}
