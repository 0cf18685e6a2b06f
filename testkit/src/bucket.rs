//! What a scripted registry does as a bucket: the requests of S3 that a client of objects needs. Signatures
//! aren't checked.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use crate::content::digest;
use crate::registry::Seen;
use crate::reply::Reply;

/// Objects in one page of a list.
const PAGE: usize = 1000;

struct Object {
    bytes: Bytes,
    modified: SystemTime,
}

/// The objects of one bucket, in the path style.
pub(crate) struct Objects {
    name: String,
    content: BTreeMap<String, Object>,
    uploads: HashMap<String, (String, BTreeMap<usize, Bytes>)>,
    begun: usize,
    /// The bucket's clock: a wall time and when it was that.
    clock: (SystemTime, Instant),
}

impl Objects {
    pub(crate) fn new(name: &str) -> Self {
        let epoch = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        Self {
            name: name.to_owned(),
            content: BTreeMap::new(),
            uploads: HashMap::new(),
            begun: 0,
            clock: (epoch, Instant::now()),
        }
    }

    /// Moves the bucket's clock, in either direction.
    pub(crate) fn set_clock(&mut self, now: SystemTime) {
        self.clock = (now, Instant::now());
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.clock.0 + self.clock.1.elapsed()
    }

    pub(crate) fn get(&self, key: &str) -> Option<Bytes> {
        self.content.get(key).map(|object| object.bytes.clone())
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.content.keys().cloned().collect()
    }

    pub(crate) fn put(&mut self, key: &str, bytes: Bytes) {
        let modified = self.now();
        let object = Object { bytes, modified };
        self.content.insert(key.to_owned(), object);
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.content.remove(key);
    }

    pub(crate) fn answer(&mut self, seen: &Seen) -> Option<Reply> {
        let (method, uri) = seen.line.split_once(' ')?;
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let path = path.strip_prefix('/')?.strip_prefix(&*self.name)?;
        let key = decoded(path.trim_start_matches('/'));
        let query: HashMap<String, String> = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decoded(name), decoded(value)))
            .collect();
        let reply = match method {
            "GET" if query.contains_key("list-type") => self.list(&query),
            "GET" if query.contains_key("uploads") => self.list_uploads(),
            "GET" | "HEAD" => self.read(&key, seen),
            "PUT" | "POST" => self.write(&key, &query, seen),
            "DELETE" => {
                match query.get("uploadId") {
                    Some(id) => drop(self.uploads.remove(id)),
                    None => self.remove(&key),
                }
                Reply::new(204, "")
            }
            _ => panic!("{}", seen.line),
        };
        let date = httpdate::fmt_http_date(self.now());
        Some(reply.with("Date", date))
    }

    fn read(&self, key: &str, seen: &Seen) -> Reply {
        let Some(Object { bytes, modified }) = self.content.get(key) else {
            return Reply::new(404, "<Error><Code>NoSuchKey</Code></Error>");
        };
        let etag = etag(bytes);
        let reply = match seen.ranges(bytes.len()).as_deref() {
            _ if seen.header("if-none-match") == Some(&etag) => Reply::new(304, ""),
            None => Reply::of(200, bytes.clone()),
            Some([one]) => Reply::range(bytes, one.clone()),
            Some(_) => return Reply::new(416, "<Error><Code>InvalidRange</Code></Error>"),
        };
        let modified = httpdate::fmt_http_date(*modified);
        reply.with("Last-Modified", modified).with("ETag", etag)
    }

    fn write(&mut self, key: &str, query: &HashMap<String, String>, seen: &Seen) -> Reply {
        let bytes = Bytes::from(seen.bytes.clone());
        if query.contains_key("uploads") {
            self.begun += 1;
            let id = format!("upload{}", self.begun);
            self.uploads
                .insert(id.clone(), (key.to_owned(), BTreeMap::new()));
            let xml = format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            );
            return Reply::ok(xml);
        }
        if let Some(id) = query.get("uploadId") {
            let Some((_, parts)) = self.uploads.get_mut(id) else {
                return Reply::new(404, "<Error><Code>NoSuchUpload</Code></Error>");
            };
            if let Some(number) = query.get("partNumber") {
                let etag = etag(&bytes);
                parts.insert(number.parse().unwrap(), bytes);
                return Reply::ok("").with("ETag", etag);
            }
            let (key, parts) = self.uploads.remove(id).unwrap();
            let whole: Vec<u8> = parts.values().flatten().copied().collect();
            let etag = etag(&whole);
            self.put(&key, whole.into());
            let xml = format!(
                "<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
            );
            return Reply::ok(xml.replace('"', "&quot;"));
        }
        if let Some(from) = seen.header("x-amz-copy-source") {
            let from = decoded(from);
            let from = from.trim_start_matches('/').strip_prefix(&*self.name);
            let from = from.unwrap().trim_start_matches('/');
            let Some(bytes) = self.get(from) else {
                return Reply::new(404, "<Error><Code>NoSuchKey</Code></Error>");
            };
            self.put(key, bytes);
            return Reply::ok("<CopyObjectResult><ETag>\"x\"</ETag></CopyObjectResult>");
        }
        let etag = etag(&bytes);
        self.put(key, bytes);
        Reply::ok("").with("ETag", etag)
    }

    fn list(&self, query: &HashMap<String, String>) -> Reply {
        let prefix = query.get("prefix").map_or("", String::as_str);
        let after = ["continuation-token", "start-after"];
        let after = after.iter().find_map(|name| query.get(*name));
        let found = self.content.iter().filter(|(key, _)| {
            key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after.as_str())
        });
        let found: Vec<_> = found.take(PAGE + 1).collect();
        let mut xml = String::from("<ListBucketResult>");
        for (key, Object { bytes, modified }) in found.iter().take(PAGE) {
            let (size, etag) = (bytes.len(), etag(bytes).replace('"', "&quot;"));
            let modified = humantime::format_rfc3339_millis(*modified);
            write!(xml, "<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{modified}</LastModified><ETag>{etag}</ETag></Contents>").unwrap();
        }
        if found.len() > PAGE {
            let last = found[PAGE - 1].0;
            write!(xml, "<NextContinuationToken>{last}</NextContinuationToken>").unwrap();
        }
        write!(
            xml,
            "<IsTruncated>{}</IsTruncated></ListBucketResult>",
            found.len() > PAGE
        )
        .unwrap();
        Reply::ok(xml)
    }

    fn list_uploads(&self) -> Reply {
        let mut xml = String::from("<ListMultipartUploadsResult>");
        let begun = humantime::format_rfc3339_millis(self.clock.0);
        for (id, (key, _)) in &self.uploads {
            write!(xml, "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>{begun}</Initiated></Upload>").unwrap();
        }
        Reply::ok(xml + "</ListMultipartUploadsResult>")
    }
}

fn etag(bytes: &[u8]) -> String {
    let hex: String = digest(bytes)
        .chars()
        .skip("sha256:".len())
        .take(32)
        .collect();
    format!("\"{hex}\"")
}

/// Percent-encoding is undone.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex = [rest.next().unwrap(), rest.next().unwrap()];
            let hex = std::str::from_utf8(&hex).unwrap();
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}
