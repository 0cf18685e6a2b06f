//! Changes YAML documents and keeps what it doesn't know, but not comments and anchors.

use serde_yaml::{Mapping, Value};

use super::edit::Refused;

/// An empty document has no keys.
pub(super) fn parse(text: &str) -> Result<Mapping, Refused> {
    let value = serde_yaml::from_str::<Value>(text).map_err(|error| {
        let line = error.location().map(|location| location.line());
        Refused::at(line, format!("not valid YAML: {error}"))
    })?;
    match value {
        Value::Null => Ok(Mapping::new()),
        Value::Mapping(mapping) => Ok(mapping),
        _ => Err(Refused::at(Some(1), "not a YAML mapping")),
    }
}

/// An error about a key, with the first line that has such a key.
pub(super) fn refused(text: &str, key: &str, problem: &str) -> Refused {
    let is_it = |line: &str| {
        let line = line.trim_start().trim_start_matches(['"', '\'']);
        let rest = line.strip_prefix(key);
        rest.is_some_and(|rest| {
            rest.trim_start_matches(['"', '\''])
                .trim_start()
                .starts_with(':')
        })
    };
    let line = text.lines().position(is_it).map(|index| index + 1);
    Refused::at(line, format!("`{key}` {problem}"))
}

/// The mapping at `path`, which is added if it is missing.
pub(super) fn mapping<'a>(
    root: &'a mut Mapping,
    path: &[&str],
    text: &str,
) -> Result<&'a mut Mapping, Refused> {
    let mut mapping = root;
    for key in path {
        let value = mapping.entry(Value::from(*key)).or_insert(Value::Null);
        if value.is_null() {
            *value = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(found) = value else {
            return Err(refused(text, key, "isn't a mapping"));
        };
        mapping = found;
    }
    Ok(mapping)
}

/// The text of a changed document: `text` itself if it still says the same, empty if nothing is left.
pub(super) fn print(text: &str, document: &Mapping) -> Result<String, Refused> {
    if parse(text)? == *document {
        return Ok(text.to_owned());
    }
    if document.is_empty() {
        return Ok(String::new());
    }
    serde_yaml::to_string(document)
        .map_err(|error| Refused::at(None, format!("can't be written: {error}")))
}

/// Whether a document has comments: a `#` at the start of a line or after white space. May take a text
/// with such a character for one.
pub(super) fn has_comments(text: &str) -> bool {
    let mut before = ' ';
    text.chars().any(|character| {
        let is_comment = character == '#' && before.is_whitespace();
        before = character;
        is_comment
    })
}
