//! The text of the state file and its journal.
//!
//! The file is the reference registry's (distribution, `registry/proxy/scheduler`): one JSON object
//! of `"<name>@<digest>": {"Key", "ExpiryData", "EntryType"}`. Ours adds `LastUsed` and `Created`,
//! which Go's decoder ignores, so that a TTL that is changed applies to what is cached already. An
//! entry without them is the reference registry's: its `ExpiryData` is kept as the earliest time at
//! which the entry may expire, and ours then has it as `Adopted` in the place of `Created`.
//! `Verified` is the size and the modification time with which a file was found to have its digest.
//! A line of the journal is the inner object, with `"Removed": true` for an entry that has gone.
//!
//! Nothing in the files is trusted: what can't be understood is skipped and counted.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::timestamp::Timestamp;
use crate::oci::Digest;
use crate::storage::{Link, LinkKind, Modified};

/// How an entry began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This mirror cached it, at this time.
    Created(Timestamp),
    /// The reference registry cached it, and wrote this expiry. When it was cached isn't known,
    /// because the file doesn't say which TTL that registry had.
    Adopted(Timestamp),
}

impl Origin {
    /// The origin of an entry that two records describe. An adopted expiry stays in force.
    pub(crate) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Created(one), Self::Created(other)) => Self::Created(one.min(other)),
            (Self::Adopted(one), Self::Adopted(other)) => Self::Adopted(one.max(other)),
            (adopted @ Self::Adopted(_), Self::Created(_))
            | (Self::Created(_), adopted @ Self::Adopted(_)) => adopted,
        }
    }

    /// When the entry was created. Of an adopted one that isn't known; its last use is the best
    /// guess.
    pub(crate) fn created(self, last_use: Timestamp) -> Timestamp {
        match self {
            Self::Created(time) => time,
            Self::Adopted(_) => last_use,
        }
    }
}

/// An entry as it is written.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) link: Link,
    pub(crate) origin: Origin,
    pub(crate) last_use: Timestamp,
    /// None is never.
    pub(crate) expiry: Option<Timestamp>,
    /// The size and the modification time with which its file was verified.
    pub(crate) verified: Option<(u64, Modified)>,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(rename = "Key", default)]
    key: &'a str,
    #[serde(rename = "ExpiryData", default)]
    expiry: &'a str,
    #[serde(rename = "EntryType")]
    kind: i64,
    #[serde(rename = "LastUsed")]
    last_use: Option<&'a str>,
    #[serde(rename = "Created")]
    created: Option<&'a str>,
    #[serde(rename = "Adopted")]
    adopted: Option<&'a str>,
    #[serde(rename = "Verified")]
    verified: Option<(u64, u64)>,
    #[serde(rename = "Removed", default)]
    removed: bool,
}

/// One entry, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) repo: &'a str,
    pub(crate) kind: LinkKind,
    pub(crate) digest: Digest,
    /// None when it has gone.
    pub(crate) known: Option<Known>,
}

/// What a file has of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) origin: Origin,
    /// None in what the reference registry wrote.
    pub(crate) last_use: Option<Timestamp>,
    /// The size and the modification time with which its file was verified.
    pub(crate) verified: Option<(u64, Modified)>,
}

/// Counts of what was read.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) entries: usize,
    /// Entries that weren't understood, and why the first one wasn't.
    pub(crate) skipped: usize,
    pub(crate) reason: Option<&'static str>,
    /// Entries whose times lie in the future.
    pub(crate) future: usize,
}

impl Tally {
    fn skip(&mut self, reason: &'static str) {
        self.skipped += 1;
        self.reason.get_or_insert(reason);
    }

    fn take<'a>(
        &mut self,
        key: &'a str,
        raw: &Raw<'_>,
        now: Timestamp,
        sink: &mut dyn FnMut(Line<'a>),
    ) {
        match line(key, raw, now) {
            Ok((line, future)) => {
                self.entries += 1;
                self.future += usize::from(future);
                sink(line);
            }
            Err(reason) => self.skip(reason),
        }
    }
}

/// Reads an entry; the flag tells that its times lay in the future and were set to `now`.
fn line<'a>(key: &'a str, raw: &Raw<'_>, now: Timestamp) -> Result<(Line<'a>, bool), &'static str> {
    let (repo, digest) = key.split_once('@').ok_or("its key is no name and digest")?;
    let digest = digest.parse().map_err(|_not_one| "its key has no digest")?;
    let kind = match raw.kind {
        0 => LinkKind::Layer,
        1 => LinkKind::Revision,
        _ => return Err("its type is unknown"),
    };
    let mut line = Line {
        repo,
        kind,
        digest,
        known: None,
    };
    if raw.removed {
        return Ok((line, false));
    }
    let expiry = Timestamp::parse(raw.expiry).ok_or("its expiry is no time")?;
    let last_use = raw.last_use.and_then(Timestamp::parse);
    let created = raw.created.and_then(Timestamp::parse).or(last_use);
    let adopted = raw.adopted.and_then(Timestamp::parse);
    let origin = match (adopted, created) {
        (Some(expiry), _) => Origin::Adopted(expiry),
        (None, Some(created)) => Origin::Created(created.min(now)),
        (None, None) => Origin::Adopted(expiry),
    };
    let verified = raw.verified;
    line.known = Some(Known {
        origin,
        last_use: last_use.or(created).map(|time| time.min(now)),
        verified: verified.map(|(size, modified)| (size, Modified::from_bits(modified))),
    });
    Ok((line, last_use.max(created).is_some_and(|time| time > now)))
}

/// Reads the snapshot. After an error, what came before it has been handed out.
pub(crate) fn read_snapshot<'a>(
    bytes: &'a [u8],
    now: Timestamp,
    sink: &mut dyn FnMut(Line<'a>),
) -> (Tally, Result<(), serde_json::Error>) {
    // Fast, for files in which everything is as expected.
    let mut tally = Tally::default();
    let read = each(bytes, |key: &'a str, raw: Raw<'a>| {
        tally.take(key, &raw, now, sink);
    });
    if read.is_ok() {
        return (tally, read);
    }
    // Once more, entry by entry; handing one out twice does no harm.
    let mut tally = Tally::default();
    let read = each(bytes, |key: Text<'a>, raw: &'a RawValue| match key.0 {
        Cow::Borrowed(key) => match serde_json::from_str::<Raw<'a>>(raw.get()) {
            Ok(raw) => tally.take(key, &raw, now, sink),
            Err(_) => tally.skip("it has other fields"),
        },
        Cow::Owned(_) => tally.skip("its key is no name and digest"),
    });
    (tally, read)
}

/// Reads the journal's lines, up to a torn last one. True when there is such a one.
pub(crate) fn read_journal<'a>(
    bytes: &'a [u8],
    now: Timestamp,
    sink: &mut dyn FnMut(Line<'a>),
) -> (Tally, bool) {
    let mut tally = Tally::default();
    let mut torn = false;
    for text in bytes.split_inclusive(|byte| *byte == b'\n') {
        let whole = text.ends_with(b"\n");
        match serde_json::from_slice::<Raw<'a>>(text) {
            Ok(raw) => tally.take(raw.key, &raw, now, sink),
            Err(_) if !whole => torn = true,
            Err(_) if text.trim_ascii().is_empty() => {}
            Err(_) => tally.skip("it is no JSON of ours"),
        }
    }
    (tally, torn)
}

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Each<K, V, F>(F, PhantomData<fn(K, V)>);

impl<'a, K: Deserialize<'a>, V: Deserialize<'a>, F: FnMut(K, V)> Visitor<'a> for Each<K, V, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of entries")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry()? {
            (self.0)(key, value);
        }
        Ok(())
    }
}

fn each<'a, K: Deserialize<'a>, V: Deserialize<'a>>(
    bytes: &'a [u8],
    take: impl FnMut(K, V),
) -> Result<(), serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    reader.deserialize_map(Each(take, PhantomData))?;
    reader.end()
}

/// Writing to memory can't fail.
macro_rules! put {
    ($out:expr, $($text:tt)*) => {
        write!($out, $($text)*).unwrap_or_default()
    };
}

const fn entry_type(kind: LinkKind) -> u8 {
    match kind {
        LinkKind::Layer => 0,
        LinkKind::Revision => 1,
    }
}

fn put_record(out: &mut Vec<u8>, key: &str, record: &Record) {
    let (field, time) = match record.origin {
        Origin::Created(time) => ("Created", time),
        Origin::Adopted(expiry) => ("Adopted", expiry),
    };
    put!(
        out,
        r#"{{"Key":"{key}","ExpiryData":"{}","EntryType":{},"LastUsed":"{}","{field}":"{}""#,
        Timestamp::write(record.expiry),
        entry_type(record.link.kind),
        Timestamp::write(Some(record.last_use)),
        Timestamp::write(Some(time)),
    );
    if let Some((size, modified)) = record.verified {
        put!(out, r#","Verified":[{size},{}]"#, modified.to_bits());
    }
    out.push(b'}');
}

fn key(link: &Link) -> String {
    format!("{}@{}", link.repo, link.digest)
}

/// An entry of the snapshot, on a line of its own.
pub(crate) fn write_entry(out: &mut Vec<u8>, record: &Record, first: bool) {
    let key = key(&record.link);
    let separator = if first { "\n" } else { ",\n" };
    put!(out, r#"{separator}"{key}":"#);
    put_record(out, &key, record);
}

/// A line of the journal for an entry that was added or used.
pub(crate) fn write_put(out: &mut Vec<u8>, record: &Record) {
    put_record(out, &key(&record.link), record);
    out.push(b'\n');
}

/// A line of the journal for an entry that has gone.
pub(crate) fn write_removed(out: &mut Vec<u8>, link: &Link) {
    let (key, kind) = (key(link), entry_type(link.kind));
    put!(
        out,
        "{{\"Key\":\"{key}\",\"EntryType\":{kind},\"Removed\":true}}\n"
    );
}
