//! Changes lists of strings in a JSON object, and leaves every other byte as it is.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::edit::{Refused, line_at};

/// An object's members, in their order, with their text.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// Where a value begins and ends in the text that it was read from.
fn span(text: &str, value: &RawValue) -> (usize, usize) {
    let start = value.get().as_ptr().addr() - text.as_ptr().addr();
    (start, start + value.get().len())
}

fn members(text: &str) -> Result<Vec<(String, &RawValue)>, Refused> {
    let read = serde_json::from_str::<Members<'_>>(text);
    let Members(members) = read.map_err(|error| {
        let line = Some(error.line()).filter(|line| *line > 0);
        Refused::at(line, format!("not valid JSON: {error}"))
    })?;
    for (index, (key, value)) in members.iter().enumerate() {
        if members.iter().take(index).any(|(other, _)| other == key) {
            let line = line_at(text, span(text, value).0);
            return Err(Refused::at(Some(line), format!("{key:?} is there twice")));
        }
    }
    Ok(members)
}

/// The items of a list of strings, with their text.
fn items<'a>(
    text: &'a str,
    key: &str,
    value: &'a RawValue,
) -> Result<Vec<(String, &'a RawValue)>, Refused> {
    let wrong = || {
        let line = line_at(text, span(text, value).0);
        Refused::at(Some(line), format!("{key:?} isn't a list of strings"))
    };
    let items = serde_json::from_str::<Vec<&RawValue>>(value.get());
    let items = items.ok().ok_or_else(wrong)?;
    let read = |item: &'a RawValue| Some((serde_json::from_str(item.get()).ok()?, item));
    { items.into_iter() }
        .map(|item| read(item).ok_or_else(wrong))
        .collect()
}

/// The text with one range replaced.
fn spliced(text: &str, (start, end): (usize, usize), new: &str) -> String {
    let before = text.get(..start).unwrap_or_default();
    let after = text.get(end..).unwrap_or_default();
    format!("{before}{new}{after}")
}

/// The white space between an opening bracket at `start` and what follows.
fn space_after(text: &str, start: usize) -> &str {
    let rest = text.get(start + 1..).unwrap_or_default();
    let length = rest.len() - rest.trim_start().len();
    rest.get(..length).unwrap_or_default()
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Puts an item first in the list `key` of the object; `is_it` says which items are the same.
pub(super) fn insert(
    text: &str,
    key: &str,
    item: &str,
    is_it: impl Fn(&str) -> bool,
) -> Result<String, Refused> {
    let text = if text.trim().is_empty() { "{}\n" } else { text };
    let members = members(text)?;
    let quoted_item = quoted(item);
    let Some((_, value)) = members.iter().find(|(name, _)| name == key) else {
        let member = format!("{}: [{quoted_item}]", quoted(key));
        let open = text.find('{').unwrap_or_default();
        let Some((_, last)) = members.last() else {
            let close = text.rfind('}').unwrap_or(open + 1);
            return Ok(spliced(text, (open + 1, close), &format!("\n  {member}\n")));
        };
        let space = Some(space_after(text, open)).filter(|space| !space.is_empty());
        let (_, end) = span(text, last);
        let added = format!(",{}{member}", space.unwrap_or(" "));
        return Ok(spliced(text, (end, end), &added));
    };
    let items = items(text, key, value)?;
    if items.iter().any(|(item, _)| is_it(item)) {
        return Ok(text.to_owned());
    }
    let (start, end) = span(text, value);
    let Some((_, first)) = items.first() else {
        return Ok(spliced(text, (start, end), &format!("[{quoted_item}]")));
    };
    let space = Some(space_after(text, start)).filter(|space| !space.is_empty());
    let (first, _) = span(text, first);
    let added = format!("{quoted_item},{}", space.unwrap_or(" "));
    Ok(spliced(text, (first, first), &added))
}

/// Removes the items that `is_it` names from the list `key` of the object, and the list if nothing else
/// is in it. Empty for an object without members.
pub(super) fn remove(
    text: &str,
    key: &str,
    is_it: impl Fn(&str) -> bool,
) -> Result<String, Refused> {
    let mut text = text.to_owned();
    loop {
        if text.trim().is_empty() {
            return Ok(text);
        }
        let members = members(&text)?;
        let Some(index) = members.iter().position(|(name, _)| name == key) else {
            return Ok(text);
        };
        let values: Vec<&RawValue> = members.iter().map(|(_, value)| *value).collect();
        let items = match values.get(index) {
            Some(value) => items(&text, key, value)?,
            None => return Ok(text),
        };
        let Some(found) = items.iter().position(|(item, _)| is_it(item)) else {
            return Ok(text);
        };
        text = if items.len() > 1 {
            let open = values.get(index).map_or(0, |value| span(&text, value).0);
            let items: Vec<&RawValue> = items.iter().map(|(_, item)| *item).collect();
            spliced(&text, cut(&text, open, &items, found), "")
        } else if values.len() > 1 {
            let open = text.find('{').unwrap_or_default();
            spliced(&text, cut(&text, open, &values, index), "")
        } else {
            String::new()
        };
    }
}

/// The range of one of several items or members, with the comma that separates it. `open` is the offset
/// of the bracket before the first one.
fn cut(text: &str, open: usize, items: &[&RawValue], index: usize) -> (usize, usize) {
    let end = |index: usize| items.get(index).map_or(open, |item| span(text, item).1);
    if let Some(before) = index.checked_sub(1) {
        return (end(before), end(index));
    }
    let rest = text.get(end(0)..).unwrap_or_default();
    let comma = end(0) + rest.find(',').unwrap_or_default();
    let start = open + 1 + space_after(text, open).len();
    (start, comma + 1 + space_after(text, comma).len())
}
