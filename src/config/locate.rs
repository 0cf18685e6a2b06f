//! Where in the text of a file a key stands.
//!
//! The YAML library gives positions with errors only. So a key's line is found by walking the text
//! once more, and failing on purpose at the key.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::document::{KeyPath, Step, scalars};

/// The line (from 1) of the key or list item at `path`; of its `occurrence` (from 0) when the key
/// stands more than once. `None` when `text` doesn't have it.
pub(super) fn line_of(text: &str, path: &KeyPath, occurrence: usize) -> Option<usize> {
    let locate = Locate {
        steps: path.steps(),
        occurrence,
    };
    let found = locate.deserialize(serde_yaml::Deserializer::from_str(text));
    Some(found.err()?.location()?.line())
}

/// Walks down to a path and fails there, so that the error carries the position. Without the path
/// in the text, it succeeds.
struct Locate<'a> {
    steps: &'a [Step],
    occurrence: usize,
}

impl Locate<'_> {
    /// Where a walk ends: at the place, or where the text has less than the path.
    fn scalar<E: serde::de::Error>(self) -> Result<(), E> {
        match self.steps {
            [] => Err(E::custom("found")),
            _ => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the place that is looked for")
    }

    scalars!(());

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar()
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let [Step::Index(index), rest @ ..] = self.steps else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return self.scalar();
        };
        for _ in 0..*index {
            list.next_element::<IgnoredAny>()?;
        }
        list.next_element_seed(Locate {
            steps: rest,
            occurrence: self.occurrence,
        })?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let [Step::Key(key), rest @ ..] = self.steps else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return self.scalar();
        };
        let last = rest.is_empty();
        let mut seen = 0;
        while let Some(matches) = map.next_key_seed(LocateKey {
            key,
            fail: last && seen == self.occurrence,
        })? {
            if !matches {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            seen += 1;
            if last {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Locate {
                    steps: rest,
                    occurrence: self.occurrence,
                })?;
            }
        }
        Ok(())
    }
}

/// Says whether a key is the one, or fails at it.
struct LocateKey<'a> {
    key: &'a str,
    fail: bool,
}

impl<'de> DeserializeSeed<'de> for LocateKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for LocateKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        match key == self.key {
            true if self.fail => Err(E::custom("found")),
            matches => Ok(matches),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text = "# comment\nhttp:\n  addr: x\n  'quoted': {flow: 1,\n    next: 2}\nlist:\n- a\n- name: b\n  url: c\nempty:\nhttp: 5\n";
        let root = KeyPath::default();
        for (path, line) in [
            (root.key("http"), Some(2)),
            (root.key("http").key("addr"), Some(3)),
            (root.key("http").key("quoted"), Some(4)),
            (root.key("http").key("quoted").key("next"), Some(5)),
            (root.key("list").index(0), Some(7)),
            (root.key("list").index(1), Some(8)),
            (root.key("list").index(1).key("url"), Some(9)),
            (root.key("empty"), Some(10)),
            (root.key("nowhere"), None),
            (root.key("list").index(7), None),
        ] {
            assert_eq!(line_of(text, &path, 0), line, "{path}");
        }
        assert_eq!(line_of(text, &root.key("http"), 1), Some(11));
    }
}
