//! What the three kinds of bucket have in common: where objects are, in which parts they are uploaded,
//! and how secrets are read.

use url::Url;

use crate::config::credentials::HIDDEN;
use crate::config::http::web_url;
use crate::config::secret::Secret;
use crate::config::section::Section;
use crate::config::size;

const DEFAULT_CHUNK: u64 = 16 << 20;
/// The smallest part of a multipart upload that S3 accepts, except the last one.
const MIN_CHUNK: u64 = 5 << 20;
/// The longest `rootdirectory`, in bytes: the name of an object has at most 1,024, and the reference
/// registry's layout needs up to 450 of them.
const MAX_ROOT: usize = 512;
/// The longest text that becomes a part of a header, in bytes.
const MAX_TEXT: usize = 4096;

/// The doubt about a certificate that isn't checked.
pub(super) const UNVERIFIED: &str =
    "is true: requests are sent to a server whose certificate isn't checked";

/// What the names of all objects start with.
pub(super) fn root(section: &Section<'_>) -> String {
    let root = section.parsed("rootdirectory", |text| {
        let root = text.trim_matches('/');
        let is_plain = root.len() <= MAX_ROOT && root.split('/').all(is_component);
        (root.is_empty() || is_plain)
            .then(|| root.to_owned())
            .ok_or("write a path of letters, digits and . _ - = @ + :, such as registry/images")
    });
    let root = root.unwrap_or_default();
    section.print("rootdirectory", root.as_str());
    root
}

fn is_component(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-=@+:".contains(&byte);
    !matches!(text, "" | "." | "..") && text.bytes().all(plain)
}

/// The bytes of each part of an upload.
pub(super) fn chunk_size(section: &Section<'_>, max: u64) -> u64 {
    let chunk = section.size("chunksize", DEFAULT_CHUNK);
    if !(MIN_CHUNK..=max).contains(&chunk) {
        let [min, max] = [MIN_CHUNK, max].map(size::format);
        section.reject("chunksize", format!("must be from {min} to {max}"));
    }
    chunk
}

/// A text that isn't printed. It may become a part of a header.
pub(super) fn secret(section: &Section<'_>, key: &'static str) -> Option<Secret> {
    let text = section.text(key)?;
    section.print(key, HIDDEN);
    if !is_of_header(&text) {
        section.reject(
            key,
            "must be printable ASCII text without blanks and line breaks",
        );
    }
    Some(Secret::from(text))
}

/// Whether a text can be a part of a header.
pub(super) fn is_of_header(text: &str) -> bool {
    text.len() <= MAX_TEXT && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The URL of a service, with `scheme` if it is written without one. `keys` say where credentials
/// belong: messages repeat no URL that may hold some.
pub(super) fn endpoint(
    section: &Section<'_>,
    key: &'static str,
    scheme: &str,
    keys: &str,
) -> Option<Url> {
    if section.text(key)?.contains(['@', '?', '#']) {
        let reason = format!("holds more than an address; write credentials as {keys}");
        section.reject(key, reason);
        return None;
    }
    section.value(key, |text| {
        let has_scheme = text.contains("://");
        let whole = (!has_scheme).then(|| format!("{scheme}://{text}"));
        web_url(whole.as_deref().unwrap_or(text))
            .ok_or("write a URL such as https://objects.example:9000")
    })
}
