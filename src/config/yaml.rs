//! A YAML text as a tree whose values know where they were written.
//!
//! The tree keeps every scalar as it was written, because YAML's own types destroy values: a
//! password `1e5` is not the number 100000, nor is version `0.10` the number 0.1. The reader of a
//! key decides what its scalar means.

use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The most values (scalars, lists and maps) of one text, those that aliases repeat included: a
/// small text can mean a very large tree.
const MAX_VALUES: usize = 10_000;
const TOO_MANY: &str = "more than 10000 values";
/// What this parser demands beyond `serde_yaml`'s.
const INDENT: &str = "lines inside brackets, braces and quotes must be indented deeper than their \
                      key, and a blank, not a tab, must follow a colon";
const BAD_KEY: &str = "a key that is not a single value";

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The file, in no particular line.
    File,
    /// A line of the file, from 1.
    Line(usize),
    /// An environment variable.
    Variable(Arc<str>),
}

/// A value. No `Debug`: it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// For a value in a map, the position of its key.
    pub(super) origin: Origin,
    pub(super) value: Value,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Scalar(String),
    List(Vec<Node>),
    /// In the order of the text. A repeated key keeps all its values; the first one is in effect.
    Map(Vec<(String, Node)>),
}

impl Node {
    pub(super) fn null(origin: Origin) -> Self {
        let value = Value::Null;
        Self { origin, value }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find_map(|(name, node)| (name == key).then_some(node)),
            _ => None,
        }
    }

    /// Whether it configures nothing: null, an empty text, or a collection of nothing else.
    pub(super) fn is_empty(&self) -> bool {
        match &self.value {
            Value::Null => true,
            Value::Scalar(text) => text.is_empty(),
            Value::List(items) => items.iter().all(Self::is_empty),
            Value::Map(entries) => entries.iter().all(|(_, node)| node.is_empty()),
        }
    }

    /// The number of values in it, itself included.
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Scalar(_) => 0,
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|(_, node)| node.size()).sum::<usize>(),
        }
    }
}

/// The path of a key in the map at `path`, such as `proxy.upstreams[0].name`.
pub(super) fn key_path(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The path of an item of the list at `path`.
pub(super) fn item_path(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// A parsed YAML text.
pub(super) struct Document {
    pub(super) root: Node,
    /// The paths of keys that repeat an earlier key of their map, and where the repetition is.
    pub(super) duplicates: Vec<(String, Origin)>,
}

/// Why a text is not a configuration's YAML.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct SyntaxError {
    pub(super) origin: Origin,
    message: String,
}

impl Document {
    /// Parses one YAML document; an empty text is null. The values come from the environment
    /// variable, if one is named, and otherwise from the lines of the text.
    pub(super) fn parse(text: &str, variable: Option<&Arc<str>>) -> Result<Self, SyntaxError> {
        // serde_yaml decides what is valid YAML, and how deeply it may be nested. But it gives
        // positions with errors only, and scalars only after it has guessed their types.
        let valid = Option::<IgnoredAny>::deserialize(serde_yaml::Deserializer::from_str(text));
        valid.map_err(|error| SyntaxError {
            origin: error
                .location()
                .map_or(Origin::File, |location| Origin::Line(location.line())),
            message: error.to_string(),
        })?;
        let mut builder = Builder::new(variable);
        // The parser adds a line break to a block scalar that the end of the text ends.
        let unended = (!text.ends_with('\n')).then(|| text.chars().count());
        for event in Parser::new_from_str(text) {
            let (mut event, span) = event.map_err(|error| SyntaxError {
                origin: Origin::Line(error.marker().line()),
                message: format!("{error}; {INDENT}"),
            })?;
            if let Event::Scalar(block, ScalarStyle::Literal | ScalarStyle::Folded, ..) = &mut event
                && unended.is_some_and(|end| span.end.index() >= end)
                && let Some(whole) = block.strip_suffix('\n')
            {
                *block = whole.to_owned().into();
            }
            let line = span.start.line();
            builder.event(event, line).map_err(|message| SyntaxError {
                origin: Origin::Line(line),
                message: format!("{message} at line {line}"),
            })?;
        }
        Ok(Self {
            root: builder.root,
            duplicates: builder.duplicates,
        })
    }
}

/// Builds the tree from the parser's events.
struct Builder<'a> {
    variable: Option<&'a Arc<str>>,
    root: Node,
    /// The lists and maps that are not complete, outermost first.
    open: Vec<Open>,
    /// Complete values that aliases may refer to, by the parser's number.
    anchors: HashMap<usize, Node>,
    values: usize,
    duplicates: Vec<(String, Origin)>,
}

struct Open {
    path: String,
    node: Node,
    anchor: usize,
    /// The key of a map whose value comes next.
    key: Option<(String, Origin)>,
}

type Added = Result<(), &'static str>;

impl<'a> Builder<'a> {
    fn new(variable: Option<&'a Arc<str>>) -> Self {
        let origin = variable.map_or(Origin::Line(1), |name| Origin::Variable(Arc::clone(name)));
        Self {
            variable,
            root: Node::null(origin),
            open: Vec::new(),
            anchors: HashMap::new(),
            values: 0,
            duplicates: Vec::new(),
        }
    }

    fn event(&mut self, event: Event<'_>, line: usize) -> Added {
        // YAML's own tags, such as `!!str`, are permitted; a scalar is a text with each of them.
        if let Event::Scalar(.., Some(tag))
        | Event::SequenceStart(_, Some(tag))
        | Event::MappingStart(_, Some(tag)) = &event
            && !tag.is_yaml_core_schema()
        {
            return Err("a tag, which has no meaning here,");
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = style != ScalarStyle::Plain || tag.is_some();
                let value = match text.as_ref() {
                    "" | "~" | "null" | "Null" | "NULL" if !is_text => Value::Null,
                    _ => Value::Scalar(text.into_owned()),
                };
                self.count(usize::from(!self.expects_key()))?;
                let node = self.node(value, line);
                self.add(node, anchor)
            }
            Event::SequenceStart(anchor, _) => self.start(Value::List(Vec::new()), anchor, line),
            Event::MappingStart(anchor, _) => self.start(Value::Map(Vec::new()), anchor, line),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.add(open.node, open.anchor),
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor);
                let value = node.ok_or("an alias of a value that contains it")?;
                let (size, value) = (value.size(), value.value.clone());
                self.count(size)?;
                let node = self.node(value, line);
                self.add(node, 0)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn node(&self, value: Value, line: usize) -> Node {
        let variable = self.variable.cloned();
        let origin = variable.map_or(Origin::Line(line), Origin::Variable);
        Node { origin, value }
    }

    fn count(&mut self, values: usize) -> Added {
        self.values += values;
        if self.values > MAX_VALUES {
            return Err(TOO_MANY);
        }
        Ok(())
    }

    /// Whether the next value is a key of a map.
    fn expects_key(&self) -> bool {
        let open = self.open.last();
        open.is_some_and(|open| open.key.is_none() && matches!(open.node.value, Value::Map(_)))
    }

    fn start(&mut self, value: Value, anchor: usize, line: usize) -> Added {
        self.count(1)?;
        let path = match self.open.last() {
            None => String::new(),
            Some(Open {
                path, node, key, ..
            }) => match (&node.value, key) {
                (Value::List(items), _) => item_path(path, items.len()),
                (_, Some((key, _))) => key_path(path, key),
                (_, None) => return Err(BAD_KEY),
            },
        };
        let node = self.node(value, line);
        self.open.push(Open {
            path,
            node,
            anchor,
            key: None,
        });
        Ok(())
    }

    /// Adds a complete value to the list or map that it is in; in a map, every other one is a key.
    fn add(&mut self, mut node: Node, anchor: usize) -> Added {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = node;
            return Ok(());
        };
        match (&mut open.node.value, open.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(entries), Some((key, origin))) => {
                node.origin = origin;
                entries.push((key, node));
            }
            (Value::Map(entries), None) => {
                let Value::Scalar(key) = node.value else {
                    return Err(BAD_KEY);
                };
                if entries.iter().any(|(name, _)| *name == key) {
                    let path = key_path(&open.path, &key);
                    self.duplicates.push((path, node.origin.clone()));
                }
                open.key = Some((key, node.origin));
            }
            (Value::Null | Value::Scalar(_), _) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Document {
        Document::parse(text, None).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    fn text_at<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
        match &node.get(key)?.value {
            Value::Scalar(text) => Some(text),
            _ => None,
        }
    }

    #[test]
    fn scalars_stay_as_written() {
        let text = "a: 1e5\nb: 0.10\nc: 'true'\nd: True\ne: 007\nf: ~\ng:\nh: 'null'\ni: 99999999999999999999999\nj: |\n  x\nk: !!str null\n";
        let root = parse(text).root;
        for (key, expected) in [
            ("a", "1e5"),
            ("b", "0.10"),
            ("c", "true"),
            ("d", "True"),
            ("e", "007"),
            ("h", "null"),
            ("i", "99999999999999999999999"),
            ("j", "x\n"),
            ("k", "null"),
        ] {
            assert_eq!(text_at(&root, key), Some(expected), "{key}");
        }
        for key in ["f", "g"] {
            assert!(root.get(key).is_some_and(|node| node.value == Value::Null));
        }
        for empty in ["", "# nothing\n", "---\n"] {
            assert!(parse(empty).root.value == Value::Null, "{empty:?}");
        }
    }

    #[test]
    fn line_ends_directives_and_flow() {
        for text in [
            "a: b\r\nc: 1e5\r\n",
            "%YAML 1.1\n---\na: b\nc: 1e5\n...\n",
            "{\"a\":\"b\",\"c\":1e5}",
            "a: b # c\nc:\n  1e5",
            "a: b\nc: |\n  1e5",
            "c: >-\n  1e5\na: |-\n  b",
        ] {
            let root = parse(text).root;
            let texts = [text_at(&root, "a"), text_at(&root, "c")];
            assert_eq!(texts, [Some("b"), Some("1e5")], "{text:?}");
        }
    }

    #[test]
    fn anchors_are_followed() {
        let root = parse("a: &x {k: 1e1}\nb: *x\nc: [1, *x]\nd: &y e\n*y : f\n").root;
        let value = |key: &str| root.get(key).map(|node| &node.value);
        assert!(value("b") == value("a"));
        let b = root.get("b").unwrap();
        assert_eq!(
            (text_at(b, "k"), &b.origin),
            (Some("1e1"), &Origin::Line(2))
        );
        assert_eq!(text_at(&root, "e"), Some("f"));
    }

    #[test]
    fn duplicates_and_tags() {
        let document = parse("a: 1\nb: {c: 1, c: 2}\na: 2\n");
        let expected = [("b.c", 2), ("a", 3)];
        let expected = expected.map(|(path, line)| (path.to_owned(), Origin::Line(line)));
        assert_eq!(document.duplicates, expected);
        for text in [
            "a: !secret b\n",
            "a: 1\n---\nb: 2\n",
            "{a: 1}: b\n",
            "? [a]\n: b\n",
            "a: &x [*x]\n",
            "a: *x\n",
        ] {
            assert!(Document::parse(text, None).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_tree_is_bounded() {
        let is_ok = |text: &str| Document::parse(text, None).is_ok();
        let list = |items: usize| format!("[{}]", vec!["x"; items].join(","));
        assert!(is_ok(&list(MAX_VALUES - 1)));
        assert!(!is_ok(&list(MAX_VALUES)));
        let repeated = format!("a: &a {}\nb: [{}]\n", list(100), vec!["*a"; 100].join(","));
        assert!(!is_ok(&repeated));
        assert!(!is_ok(&"[".repeat(100_000)));
        let nested = |depth: usize| is_ok(&("[".repeat(depth) + &"]".repeat(depth)));
        assert!(nested(50) && !nested(5_000));
    }

    /// Adds the origins of all values below `path`, by their paths.
    fn add_origins(node: &Node, path: &str, origins: &mut HashMap<String, Origin>) {
        let inner: Vec<(String, &Node)> = match &node.value {
            Value::Null | Value::Scalar(_) => return,
            Value::List(items) => (0..)
                .zip(items)
                .map(|(n, item)| (item_path(path, n), item))
                .collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| (key_path(path, key), node))
                .collect(),
        };
        for (path, node) in inner {
            add_origins(node, &path, origins);
            origins.entry(path).or_insert_with(|| node.origin.clone());
        }
    }

    #[test]
    fn lines() {
        let text = "# comment\nhttp:\n  addr: x\n  'quoted': {flow: 1,\n    next: 2}\nlist:\n- a\n- name: b\n  url: c\n-\n  - d\nempty:\nhttp: 5\n";
        let mut origins = HashMap::new();
        add_origins(&parse(text).root, "", &mut origins);
        for (path, line) in [
            ("http", Some(2)),
            ("http.addr", Some(3)),
            ("http.quoted", Some(4)),
            ("http.quoted.next", Some(5)),
            ("list[0]", Some(7)),
            ("list[1]", Some(8)),
            ("list[1].url", Some(9)),
            ("list[2][0]", Some(11)),
            ("empty", Some(12)),
            ("nowhere", None),
            ("list[7]", None),
        ] {
            assert_eq!(origins.get(path), line.map(Origin::Line).as_ref(), "{path}");
        }
        let variable = Arc::from("NAME");
        let root = Document::parse("a: b", Some(&variable))
            .unwrap_or_else(|error| panic!("{error}"))
            .root;
        let origin = Origin::Variable(variable);
        assert!(root.origin == origin && root.get("a").is_some_and(|node| node.origin == origin));
    }
}
