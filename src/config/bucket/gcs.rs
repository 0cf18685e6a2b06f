//! `storage.gcs`: Google Cloud Storage.

use std::path::PathBuf;

use serde_yaml::Mapping;

use super::common::{chunk_size, root};
use crate::config::credentials::{HIDDEN, file};
use crate::config::secret::Secret;
use crate::config::section::Section;

/// The largest part of an upload.
const MAX_CHUNK: u64 = 5 << 30;
/// The keys of a service account's JSON document that matter.
const KEYS: [&str; 3] = ["client_email", "private_key", "private_key_id"];

/// A bucket in Google Cloud Storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gcs {
    pub bucket: String,
    /// Without a key, the application default credentials: `GOOGLE_APPLICATION_CREDENTIALS`, those of
    /// `gcloud auth application-default login`, or the instance's.
    pub key: Option<GcsKey>,
    /// What the names of all objects start with: without a slash at either end, and often empty.
    pub root: String,
    /// The bytes of each part of an upload, 5 MiB to 5 GiB.
    pub chunk_size: u64,
}

/// The key of a service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GcsKey {
    /// Readable when the configuration was loaded.
    File(PathBuf),
    /// The JSON document that such a file has.
    Json(Secret),
}

/// Reads the section. None where a key is missing or wrong, which is reported.
pub(super) fn read(section: &Section<'_>) -> Option<Gcs> {
    section.ignore(&[
        (
            "maxconcurrency",
            "the number of requests isn't limited by it",
        ),
        ("disablekeepalives", "connections are used again"),
        ("useragent", "requests have millpond's own"),
    ]);
    if section.text("bucket").is_none() {
        section.missing("bucket", "the bucket's name");
    }
    let bucket = section.value("bucket", |text| {
        is_bucket(text).then(|| text.to_owned()).ok_or(
            "write the bucket's name: 3 to 222 lower-case letters, digits and . _ -, with a letter or \
             digit at both ends, such as images",
        )
    });
    let key = key(section);
    let root = root(section);
    let chunk_size = chunk_size(section, MAX_CHUNK);
    Some(Gcs {
        bucket: bucket?,
        key,
        root,
        chunk_size,
    })
}

/// Source: <https://cloud.google.com/storage/docs/buckets#naming>.
fn is_bucket(text: &str) -> bool {
    let is_edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let parts = || text.split('.');
    (3..=222).contains(&text.len())
        && text.chars().all(|c| is_edge(c) || "._-".contains(c))
        && text.starts_with(is_edge)
        && text.ends_with(is_edge)
        && parts().all(|part| (1..=63).contains(&part.len()))
        && text.parse::<std::net::Ipv4Addr>().is_err()
}

fn key(section: &Section<'_>) -> Option<GcsKey> {
    let from_file = file(section, "keyfile").map(GcsKey::File);
    let written = credentials(section);
    if section.text("keyfile").is_some() && section.has("credentials") {
        let file = section.path("keyfile");
        let reason = format!("and `{file}` are two sources of credentials; keep one");
        section.reject("credentials", reason);
    }
    from_file.or(written)
}

/// A service account's document, as a map.
fn credentials(section: &Section<'_>) -> Option<GcsKey> {
    let texts = section.texts("credentials");
    let printed: Mapping = texts
        .iter()
        .map(|(name, text)| {
            let is_public = matches!(name.as_str(), "type" | "client_email" | "project_id");
            let shown = if is_public { text } else { HIDDEN };
            (name.as_str().into(), shown.into())
        })
        .collect();
    if printed.is_empty() {
        section.print_nothing("credentials");
        return None;
    }
    section.print("credentials", printed);
    if let Some(kind) = texts.get("type")
        && kind != "service_account"
    {
        let reason = "isn't the key of a service account; for other credentials, set \
                      GOOGLE_APPLICATION_CREDENTIALS to their file";
        section.reject("credentials", reason);
        return None;
    }
    let mut document = serde_json::Map::new();
    for key in KEYS {
        if let Some(text) = texts.get(key) {
            document.insert(key.to_owned(), text.as_str().into());
        } else {
            let reason = format!("lacks `{key}`; write the keys of a service account's JSON file");
            section.reject("credentials", reason);
        }
    }
    let json = serde_json::Value::Object(document).to_string();
    Some(GcsKey::Json(Secret::from(json)))
}
