//! A YAML text as a tree of keys and texts.
//!
//! The tree keeps every scalar as it was written, because YAML's own guesses destroy values: a
//! password `1e5` is not the number 100000, nor is version `0.10` the number 0.1. What a scalar
//! means is decided by whoever reads the key.

use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

/// The most values (scalars, lists and maps) that a text may have, those that YAML's aliases repeat
/// included: a small text can mean a very large tree.
const MAX_VALUES: usize = 10_000;

/// A value of the file. No `Debug`: it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Node {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries
                .iter()
                .find_map(|(name, node)| (name == key).then_some(node)),
            _ => None,
        }
    }

    /// Whether it says nothing: null, an empty text, or a collection of nothing else.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Scalar(text) => text.is_empty(),
            Self::List(items) => items.iter().all(Self::is_empty),
            Self::Map(entries) => entries.iter().all(|(_, node)| node.is_empty()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// The way from the top of a document to a value: `proxy.upstreams[0].name`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeyPath(Vec<Step>);

impl KeyPath {
    pub(super) fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// Reads a path as it is shown; no key of it may hold a dot or a bracket.
    pub(super) fn parse(text: &str) -> Self {
        let mut path = Self::default();
        for step in text.split(['.', '[']) {
            path = match step.strip_suffix(']').map(str::parse) {
                Some(Ok(index)) => path.index(index),
                _ => path.key(step),
            };
        }
        path
    }

    /// The path without its last step.
    pub(super) fn parent(&self) -> Option<Self> {
        let (_, steps) = self.0.split_last()?;
        Some(Self(steps.to_vec()))
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.0
    }

    pub(super) fn starts_with(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A parsed YAML text.
pub(super) struct Document {
    pub(super) root: Node,
    /// Keys that stand twice in one map; the tree has the first value.
    pub(super) duplicates: Vec<KeyPath>,
}

impl Document {
    /// Parses one YAML document. An empty text is `Null`.
    pub(super) fn parse(text: &str) -> Result<Self, serde_yaml::Error> {
        let mut seen = Seen {
            values: 0,
            duplicates: Vec::new(),
        };
        let outline = Outline {
            path: KeyPath::default(),
            seen: &mut seen,
        };
        let mut root = outline.deserialize(serde_yaml::Deserializer::from_str(text))?;
        Fill(&mut root).deserialize(serde_yaml::Deserializer::from_str(text))?;
        Ok(Self {
            root,
            duplicates: seen.duplicates,
        })
    }
}

/// First walk: the shape of the tree, with empty scalars.
struct Outline<'a> {
    path: KeyPath,
    seen: &'a mut Seen,
}

struct Seen {
    values: usize,
    duplicates: Vec<KeyPath>,
}

impl<'de> DeserializeSeed<'de> for Outline<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.seen.values += 1;
        if self.seen.values > MAX_VALUES {
            return Err(D::Error::custom(format!("more than {MAX_VALUES} values")));
        }
        deserializer.deserialize_any(self)
    }
}

/// Visits every kind of scalar alike.
macro_rules! scalars {
    ($value:ty, $($visit:ident: $type:ty),*) => {
        $(fn $visit<E: serde::de::Error>(self, _: $type) -> Result<$value, E> {
            self.scalar()
        })*
    };
    ($value:ty) => {
        scalars!($value, visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128,
            visit_u128: u128, visit_f64: f64, visit_str: &str);
    };
}

pub(super) use scalars;

impl Outline<'_> {
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "as the macro calls it"
    )]
    fn scalar<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(String::new()))
    }
}

impl<'de> Visitor<'de> for Outline<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a map without YAML tags")
    }

    scalars!(Node);

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(Outline {
            path: self.path.index(items.len()),
            seen: self.seen,
        })? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = self.path.key(&key);
            if entries.iter().any(|(name, _)| *name == key) {
                self.seen.duplicates.push(path.clone());
            }
            let node = map.next_value_seed(Outline {
                path,
                seen: self.seen,
            })?;
            entries.push((key, node));
        }
        Ok(Node::Map(entries))
    }
}

/// Second walk: puts the text of each scalar into the tree.
struct Fill<'a>(&'a mut Node);

impl<'de> DeserializeSeed<'de> for Fill<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0 {
            Node::Null => IgnoredAny::deserialize(deserializer).map(drop),
            Node::Scalar(text) => {
                *text = String::deserialize(deserializer)?;
                Ok(())
            }
            Node::List(_) => deserializer.deserialize_seq(self),
            Node::Map(_) => deserializer.deserialize_map(self),
        }
    }
}

impl<'de> Visitor<'de> for Fill<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the first walk saw")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if let Node::List(items) = self.0 {
            for item in items {
                list.next_element_seed(Fill(item))?;
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Node::Map(entries) = self.0 {
            for (_, node) in entries {
                map.next_key::<IgnoredAny>()?;
                map.next_value_seed(Fill(node))?;
            }
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(text: &str) -> Node {
        Node::Scalar(text.to_owned())
    }

    #[test]
    fn scalars_stay_as_written() {
        let text = "a: 1e5\nb: 0.10\nc: 'true'\nd: True\ne: 007\nf: ~\ng:\nh: 'null'\ni: 99999999999999999999999\nj: |\n  x\n";
        let root = Document::parse(text)
            .unwrap_or_else(|error| panic!("{error}"))
            .root;
        for (key, expected) in [
            ("a", "1e5"),
            ("b", "0.10"),
            ("c", "true"),
            ("d", "True"),
            ("e", "007"),
            ("h", "null"),
            ("i", "99999999999999999999999"),
            ("j", "x\n"),
        ] {
            assert!(root.get(key) == Some(&scalar(expected)), "{key}");
        }
        assert!(root.get("f") == Some(&Node::Null) && root.get("g") == Some(&Node::Null));
        for empty in ["", "# nothing\n", "---\n"] {
            assert!(Document::parse(empty).is_ok_and(|document| document.root == Node::Null));
        }
    }

    #[test]
    fn anchors_are_followed() {
        let text = "a: &x {k: 1e1}\nb: *x\nc: [1, *x]\n";
        let root = Document::parse(text)
            .unwrap_or_else(|error| panic!("{error}"))
            .root;
        assert!(root.get("b") == root.get("a"));
        assert!(root.get("b").and_then(|b| b.get("k")) == Some(&scalar("1e1")));
    }

    #[test]
    fn duplicates_and_tags() {
        let document = Document::parse("a: 1\nb: {c: 1, c: 2}\na: 2\n");
        let document = document.unwrap_or_else(|error| panic!("{error}"));
        let paths: Vec<String> = document
            .duplicates
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(paths, ["b.c", "a"]);
        assert!(Document::parse("a: !secret b\n").is_err());
        assert!(Document::parse("a: 1\n---\nb: 2\n").is_err());
    }

    #[test]
    fn the_tree_is_bounded() {
        let list = |items: usize| format!("[{}]", vec!["x"; items].join(","));
        assert!(Document::parse(&list(MAX_VALUES - 1)).is_ok());
        assert!(Document::parse(&list(MAX_VALUES)).is_err());
        let repeated = format!("a: &a {}\nb: [{}]\n", list(100), vec!["*a"; 100].join(","));
        assert!(Document::parse(&repeated).is_err());
    }
}
