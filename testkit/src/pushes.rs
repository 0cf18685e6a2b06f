//! What a scripted registry does with pushes (distribution-spec, "Pushing"): it keeps uploads, verifies
//! digests, and refuses manifests whose parts it lacks.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::Value;

use crate::content::digest;
use crate::registry::{Content, Contents, Seen};
use crate::reply::Reply;

/// Pushes, and what has come of them.
#[derive(Default)]
pub(crate) struct Pushes {
    /// Whether manifests with a subject are listed as referrers.
    pub(crate) lists: bool,
    /// The next upload keeps so many bytes of a PATCH, and hangs up.
    pub(crate) cut: Option<usize>,
    uploads: HashMap<String, Vec<u8>>,
    begun: usize,
}

impl Pushes {
    /// The answer to a request that pushes, or asks for an upload.
    pub(crate) fn answer(&mut self, contents: &mut Contents, seen: &Seen) -> Option<Reply> {
        let (method, uri) = seen.line.split_once(' ')?;
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        if let Some((repo, upload)) = path.split_once("/blobs/uploads/") {
            return match method {
                "POST" => Some(self.begin(contents, repo, query)),
                "GET" => Some(self.progress(path, 204)),
                "PATCH" => Some(self.append(path, seen)),
                "PUT" => Some(self.finish(contents, (repo, path), query, seen)),
                _ => panic!("{method} {upload}"),
            };
        }
        let (repo, reference) = path.split_once("/manifests/")?;
        (method == "PUT").then(|| self.manifest(contents, repo, reference, seen))
    }

    fn begin(&mut self, contents: &mut Contents, repo: &str, query: &str) -> Reply {
        let pairs: HashMap<_, _> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        if let (Some(mounted), Some(from)) = (pairs.get("mount"), pairs.get("from")) {
            let (mounted, from) = (mounted.replace("%3A", ":"), from.replace("%2F", "/"));
            let found = contents.get(&format!("/v2/{from}/blobs/{mounted}"));
            if let Some(bytes) = found.map(|content| content.bytes.clone()) {
                contents.insert(
                    format!("{repo}/blobs/{mounted}"),
                    Content::blob(bytes, &mounted),
                );
                return Reply::new(201, "");
            }
        }
        self.begun += 1;
        let path = format!("{repo}/blobs/uploads/{}", self.begun);
        self.uploads.insert(path.clone(), Vec::new());
        self.progress(&path, 202)
    }

    /// Says how much of an upload there is.
    fn progress(&self, path: &str, status: u16) -> Reply {
        let Some(upload) = self.uploads.get(path) else {
            return Reply::error(404);
        };
        let last = upload.len().saturating_sub(1);
        Reply::new(status, "")
            .with("Location", format!("{path}?state={}", upload.len()))
            .with("Range", format!("0-{last}"))
    }

    fn append(&mut self, path: &str, seen: &Seen) -> Reply {
        let Some(upload) = self.uploads.get_mut(path) else {
            return Reply::error(404);
        };
        if let Some(range) = seen.header("content-range") {
            let (first, _) = range.split_once('-').unwrap();
            if first != upload.len().to_string() {
                return Reply::error(416);
            }
        }
        if let Some(cut) = self.cut.take() {
            upload.extend(&seen.bytes[..cut]);
            return Reply::hang_up();
        }
        upload.extend(&seen.bytes);
        self.progress(path, 202)
    }

    fn finish(
        &mut self,
        contents: &mut Contents,
        (repo, path): (&str, &str),
        query: &str,
        seen: &Seen,
    ) -> Reply {
        let Some(mut upload) = self.uploads.remove(path) else {
            return Reply::error(404);
        };
        upload.extend(&seen.bytes);
        let named = query.rsplit("digest=").next().unwrap().replace("%3A", ":");
        if digest(&upload) != named {
            return Reply::error(400);
        }
        contents.insert(
            format!("{repo}/blobs/{named}"),
            Content::blob(upload.into(), &named),
        );
        Reply::new(201, "")
    }

    fn manifest(&self, contents: &mut Contents, repo: &str, reference: &str, seen: &Seen) -> Reply {
        let bytes = Bytes::from(seen.bytes.clone());
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        let list = |key: &str| value[key].as_array().cloned().unwrap_or_default();
        let blobs = list("layers").into_iter().chain([value["config"].clone()]);
        let blobs = blobs.map(|blob| ("blobs", blob));
        let parts = blobs.chain(
            list("manifests")
                .into_iter()
                .map(|part| ("manifests", part)),
        );
        let is_listing = reference.starts_with("sha256-");
        for (kind, part) in parts.filter(|(_, part)| part.is_object()) {
            let part = part["digest"].as_str().unwrap();
            if !is_listing && !contents.contains_key(&format!("{repo}/{kind}/{part}")) {
                return Reply::error(400);
            }
        }
        let own = digest(&bytes);
        for name in [reference, &own] {
            let kind = seen.header("content-type").unwrap();
            let content = Content::manifest(bytes.clone(), kind, &own);
            contents.insert(format!("{repo}/manifests/{name}"), content);
        }
        let reply = Reply::new(201, "");
        match value["subject"]["digest"].as_str().filter(|_| self.lists) {
            Some(subject) => reply.with("OCI-Subject", subject),
            None => reply,
        }
    }
}
