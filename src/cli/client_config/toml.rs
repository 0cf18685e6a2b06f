//! Changes TOML documents and keeps their comments, their order and what it doesn't know.

use toml_edit::{Array, Document, DocumentMut, Item, Table, Value};

use super::edit::{Refused, line_at};

pub(super) fn parse(text: &str) -> Result<DocumentMut, Refused> {
    text.parse::<DocumentMut>().map_err(|error| {
        let line = error.span().map(|span| line_at(text, span.start));
        Refused::at(line, format!("not valid TOML: {}", error.message()))
    })
}

/// The text of a document: empty if nothing is in it.
pub(super) fn print(document: &DocumentMut) -> String {
    let text = document.to_string();
    if text.trim().is_empty() {
        return String::new();
    }
    text
}

/// An error about the key at `path`, with its line.
pub(super) fn refused(text: &str, path: &[&str], problem: &str) -> Refused {
    let document = Document::parse(text).ok();
    let mut item = document.as_ref().map(Document::as_item);
    for key in path {
        item = item.and_then(|item| item.get(key));
    }
    let line = item.and_then(Item::span);
    let line = line.map(|span| line_at(text, span.start));
    Refused::at(line, format!("`{}` {problem}", path.join(".")))
}

/// The table at `path`, which is added if it is missing. `text` is the document's, for errors.
pub(super) fn table<'a>(
    root: &'a mut Table,
    path: &[&str],
    text: &str,
) -> Result<&'a mut Table, Refused> {
    let mut table = root;
    for (depth, key) in path.iter().enumerate() {
        let is_last = depth + 1 == path.len();
        let item = table.entry(key).or_insert_with(|| {
            let mut added = Table::new();
            added.set_implicit(!is_last);
            Item::Table(added)
        });
        table = item.as_table_mut().ok_or_else(|| {
            let path = path.get(..=depth).unwrap_or(path);
            refused(text, path, "is no table with a header of its own, [...]")
        })?;
    }
    Ok(table)
}

/// Sets a key, unless it has that value; `indent` goes before a new one.
pub(super) fn set(table: &mut Table, key: &str, value: Value, indent: &str) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) if same(old, &value) => {}
        Some(old) => {
            let decor = old.decor().clone();
            *old = value;
            *old.decor_mut() = decor;
        }
        None => {
            table.insert(key, Item::Value(value));
            if let Some(mut key) = table.key_mut(key) {
                key.leaf_decor_mut().set_prefix(indent);
            }
        }
    }
}

/// Whether two values, without regard to how they are written, are the same.
pub(super) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::String(one), Value::String(other)) => one.value() == other.value(),
        (Value::Boolean(one), Value::Boolean(other)) => one.value() == other.value(),
        (Value::Integer(one), Value::Integer(other)) => one.value() == other.value(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        _ => false,
    }
}

/// Puts a string first in the list of strings at `path`, unless it is in it.
pub(super) fn put_first(
    root: &mut Table,
    path: &[&str],
    item: &str,
    text: &str,
) -> Result<(), Refused> {
    let Some((key, parents)) = path.split_last() else {
        return Ok(());
    };
    let table = table(root, parents, text)?;
    if !table.contains_key(key) {
        set(table, key, Value::from(Array::from_iter([item])), "  ");
        return Ok(());
    }
    let array = table.get_mut(key).and_then(Item::as_array_mut);
    let array = array.ok_or_else(|| refused(text, path, "isn't a list"))?;
    if array.iter().any(|old| old.as_str() == Some(item)) {
        return Ok(());
    }
    // The former first item follows in the way that the second one did.
    let second = array.get(1).map(|second| second.decor().clone());
    if let Some(first) = array.get_mut(0) {
        let own = first.decor().clone();
        match second {
            Some(second) => *first.decor_mut() = second,
            None if own.prefix().and_then(|prefix| prefix.as_str()) == Some("") => {
                first.decor_mut().set_prefix(" ");
            }
            None => {}
        }
        let mut added = Value::from(item);
        *added.decor_mut() = own;
        array.insert_formatted(0, added);
    } else {
        array.push(item);
    }
    Ok(())
}

/// Removes a string from the list `key`, and the list if nothing else is in it.
pub(super) fn take(table: &mut Table, key: &str, item: &str) {
    let Some(array) = table.get_mut(key).and_then(Item::as_array_mut) else {
        return;
    };
    let Some(index) = array.iter().position(|old| old.as_str() == Some(item)) else {
        return;
    };
    let removed = array.remove(index);
    if array.is_empty() {
        table.remove(key);
    } else if index == 0
        && let Some(first) = array.get_mut(0)
    {
        *first.decor_mut() = removed.decor().clone();
    }
}

/// Puts a table first among those of `parent`: clients try them in their order.
pub(super) fn insert_first(parent: &mut Table, key: &str, added: Table) {
    let keys: Vec<String> = parent.iter().map(|(key, _)| key.to_owned()).collect();
    let others = keys.iter().filter_map(|key| parent.remove_entry(key));
    let others: Vec<_> = others.collect();
    parent.insert(key, Item::Table(added));
    for (key, item) in others {
        parent.insert_formatted(&key, item);
    }
}
