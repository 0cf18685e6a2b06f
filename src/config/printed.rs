//! What is printed of a configuration, key by key, and what differs between two of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

use super::yaml::key_path;

/// Every key that has a value, with its value as text; secrets are hidden. Empty lists and maps are no
/// value. Items of a list of maps
/// that have names are told apart by these, so that one more item changes no other one's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Printed(BTreeMap<String, String>);

/// A key whose value differs. `None` is no value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub key: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

impl Printed {
    pub(super) fn of(effective: &Mapping) -> Self {
        let mut printed = Self::default();
        printed.add_map("", effective);
        printed
    }

    fn add_map(&mut self, path: &str, map: &Mapping) {
        for (key, value) in map {
            self.add(&key_path(path, &text(key)), value);
        }
    }

    fn add(&mut self, path: &str, value: &Value) {
        match value {
            Value::Mapping(map) => self.add_map(path, map),
            // The same as nothing.
            Value::Sequence(items) if items.is_empty() => {}
            Value::Sequence(items) if items.iter().any(Value::is_mapping) => {
                for (index, item) in items.iter().enumerate() {
                    let name = item.get("name").map(text);
                    let name = name.unwrap_or_else(|| index.to_string());
                    self.add(&format!("{path}[{name}]"), item);
                }
            }
            value => {
                self.0.insert(path.to_owned(), text(value));
            }
        }
    }

    /// The keys whose values aren't those of `before`, sorted.
    pub fn differences(&self, before: &Self) -> Vec<Difference> {
        let keys: BTreeSet<&String> = self.0.keys().chain(before.0.keys()).collect();
        let differences = keys.into_iter().map(|key| Difference {
            key: key.clone(),
            before: before.0.get(key).cloned(),
            after: self.0.get(key).cloned(),
        });
        differences
            .filter(|difference| difference.before != difference.after)
            .collect()
    }

    /// Takes back a difference.
    pub fn revert(&mut self, difference: &Difference) {
        match &difference.before {
            Some(before) => self.0.insert(difference.key.clone(), before.clone()),
            None => self.0.remove(&difference.key),
        };
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Sequence(items) => {
            let items: Vec<_> = items.iter().map(text).collect();
            format!("[{}]", items.join(", "))
        }
        other => serde_yaml::to_string(other).map_or_else(
            |error| format!("# {error}"),
            |text| text.trim_end().to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(text: &str) -> Printed {
        Printed::of(&serde_yaml::from_str(text).unwrap())
    }

    #[test]
    fn differences_are_named_by_their_keys() {
        let old = printed("a: {b: 1, c: [x, y]}\nu: [{name: n, v: 1}, {name: m, v: 2}]\nd: {}\n");
        let new = printed("a: {b: 2, c: [x]}\nu: [{name: m, v: 2}]\nd: {}\ne: true\n");
        let shown = |difference: &Difference| {
            let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
            let Difference { key, before, after } = difference;
            format!("{key} {} {}", value(before), value(after))
        };
        let differences = new.differences(&old);
        let texts: Vec<_> = differences.iter().map(shown).collect();
        let expected = [
            "a.b 1 2",
            "a.c [x, y] [x]",
            "e - true",
            "u[n].name n -",
            "u[n].v 1 -",
        ];
        assert_eq!(texts, expected);
        let mut reverted = new;
        for difference in &differences {
            reverted.revert(difference);
        }
        assert_eq!(reverted, old);
    }
}
