//! Environment variables over the file, as in the reference registry: `REGISTRY_HTTP_ADDR` sets
//! `http.addr`, `REGISTRY_PROXY_UPSTREAMS_0_NAME` the name of the first upstream.
//!
//! The value of a single value is taken as it is (or out of YAML quotes), so that a password may
//! hold any character. A map or a list is read as YAML.

use super::document::{Document, KeyPath, Node, Step};
use super::nearest::nearest;
use super::report::Report;
use super::schema::{self, Shape};

/// What the names of all variables start with.
pub(super) const PREFIX: &str = "REGISTRY_";
/// Names the configuration file itself.
pub const PATH_VARIABLE: &str = "REGISTRY_CONFIGURATION_PATH";

/// Merges the variables into `root`. One that matches no key is a warning, not an error: in a
/// Kubernetes namespace with a service called `registry`, every container has some.
pub(super) fn apply(
    root: &mut Node,
    environment: impl Iterator<Item = (String, String)>,
    report: &mut Report<'_>,
) {
    let mut variables: Vec<(String, String)> = environment
        .filter(|(name, _)| name.starts_with(PREFIX) && name != PATH_VARIABLE)
        .collect();
    // A section before the keys in it, and list items in the order of their numbers.
    variables.sort_by(|(one, _), (other, _)| order(one).cmp(&order(other)));
    for (name, value) in &variables {
        let path = name.strip_prefix(PREFIX).unwrap_or(name);
        let segments: Vec<&str> = path.split('_').collect();
        match target(&schema::ROOT, &segments, KeyPath::default()) {
            Ok(target) => {
                set(root, target, name, value, report);
                schema::expand_driver(root);
            }
            Err(hint) => {
                let hint = hint
                    .map(|path| format!("; did you mean `{path}` ({})?", variable(&path)))
                    .unwrap_or_default();
                report.warnings.push(format!(
                    "{name}: this environment variable matches no configuration key{hint}"
                ));
            }
        }
    }
}

fn order(name: &str) -> Vec<(Option<usize>, &str)> {
    name.split('_')
        .map(|segment| (segment.parse().ok(), segment))
        .collect()
}

/// The name of the variable that sets a key.
fn variable(path: &KeyPath) -> String {
    let mut name = PREFIX.trim_end_matches('_').to_owned();
    for step in path.steps() {
        name.push('_');
        match step {
            Step::Key(key) => name.push_str(&key.to_ascii_uppercase()),
            Step::Index(index) => name.push_str(&index.to_string()),
        }
    }
    name
}

struct Target {
    path: KeyPath,
    shape: &'static Shape,
}

/// The key that the segments name; else, perhaps, the one that was meant.
fn target(
    shape: &'static Shape,
    segments: &[&str],
    path: KeyPath,
) -> Result<Target, Option<KeyPath>> {
    let Some((first, rest)) = segments.split_first() else {
        return Ok(Target { path, shape });
    };
    let index = || first.parse::<usize>().map_err(|_not_a_number| None);
    match shape {
        Shape::Section(keys) => {
            let known = keys.iter().find(|(key, _)| key.eq_ignore_ascii_case(first));
            match known {
                Some((key, shape)) => target(shape, rest, path.key(key)),
                None => Err(nearest(first, keys, &path)),
            }
        }
        Shape::Sections(keys) => {
            let path = path.index(index()?);
            match rest.split_first() {
                None => Err(None),
                Some((key, rest)) => {
                    match keys.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)) {
                        Some((name, shape)) => target(shape, rest, path.key(name)),
                        None => Err(nearest(key, keys, &path)),
                    }
                }
            }
        }
        Shape::Scalars if rest.is_empty() => Ok(Target {
            path: path.index(index()?),
            shape: &Shape::Scalar,
        }),
        // Header names have dashes where names of variables can't.
        Shape::Headers => Ok(Target {
            path: path.key(&segments.join("-").to_ascii_lowercase()),
            shape: &Shape::Scalars,
        }),
        // A free key; or something below a section that is then ignored or refused as in a file.
        Shape::Fields
        | Shape::Ignored(_)
        | Shape::Refused(_)
        | Shape::Middleware
        | Shape::Driver => Ok(Target {
            path: path.key(&segments.join("_").to_ascii_lowercase()),
            shape: &Shape::Scalar,
        }),
        Shape::Scalar | Shape::Scalars => Err(None),
    }
}

fn set(root: &mut Node, target: Target, name: &str, value: &str, report: &mut Report<'_>) {
    let node = match target.shape {
        Shape::Scalar => scalar(value),
        _ => match Document::parse(value) {
            Ok(document) => {
                for path in document.duplicates {
                    let message = format!("the key `{path}` stands twice; keep one");
                    report.problem_in(name, &target.path, message);
                }
                document.root
            }
            // It has no effect or is refused, whatever it says.
            Err(_)
                if matches!(
                    target.shape,
                    Shape::Ignored(_) | Shape::Refused(_) | Shape::Middleware
                ) =>
            {
                Node::Scalar(value.to_owned())
            }
            Err(error) => {
                let message = format!("the value is not valid YAML: {error}");
                return report.problem_in(name, &target.path, message);
            }
        },
    };
    if place(root, target.path.steps(), node) {
        report.overridden(target.path, name);
    } else {
        let message = format!(
            "`{}` leaves a gap in the list; number the items from 0",
            target.path
        );
        report.problem_in(name, &target.path, message);
    }
}

fn scalar(value: &str) -> Node {
    if value.starts_with(['"', '\''])
        && let Ok(Document {
            root: Node::Scalar(text),
            ..
        }) = Document::parse(value)
    {
        return Node::Scalar(text);
    }
    Node::Scalar(value.to_owned())
}

/// Puts `node` at the place, making the maps and lists on the way. False when that would leave a
/// gap in a list.
fn place(at: &mut Node, steps: &[Step], node: Node) -> bool {
    let Some((step, rest)) = steps.split_first() else {
        *at = node;
        return true;
    };
    match step {
        Step::Key(key) => {
            if !matches!(at, Node::Map(_)) {
                *at = Node::Map(Vec::new());
            }
            let Node::Map(entries) = at else { return false };
            // Free keys (log fields, headers) may be written in any case in the file.
            let known = entries
                .iter_mut()
                .find(|(name, _)| name.eq_ignore_ascii_case(key));
            if let Some((_, known)) = known {
                return place(known, rest, node);
            }
            let mut made = Node::Null;
            let fits = place(&mut made, rest, node);
            entries.push((key.clone(), made));
            fits
        }
        Step::Index(index) => {
            if !matches!(at, Node::List(_)) {
                *at = Node::List(Vec::new());
            }
            let Node::List(items) = at else { return false };
            if *index == items.len() {
                items.push(Node::Null);
            }
            items
                .get_mut(*index)
                .is_some_and(|item| place(item, rest, node))
        }
    }
}
