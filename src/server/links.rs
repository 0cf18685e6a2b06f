//! Where clients find what they asked for: the `Location` and `Link` fields.

use std::fmt::Display;

use crate::oci::{Page, RepoName};

/// Makes links.
#[derive(Debug, Clone)]
pub(super) struct Links {
    /// What links begin with: an origin, or nothing, and the path before `/v2/`.
    base: String,
    /// The path before `/v2/`: empty, or `/x` without a slash at the end.
    prefix: String,
}

impl Links {
    /// `origin` is the scheme and host that links begin with, or nothing; `prefix` the path before `/v2/`.
    pub(super) fn new(origin: &str, prefix: String) -> Self {
        let base = format!("{origin}{prefix}");
        Self { base, prefix }
    }

    /// The value of a `Location` or `Link` field of another replica, as it leads to this one. None for what
    /// isn't an address of the API.
    pub(super) fn led_here(&self, field: &str) -> Option<String> {
        if let Some(rest) = field.strip_prefix('<') {
            let (address, parameters) = rest.split_once('>')?;
            return Some(format!("<{}>{parameters}", self.led_here(address)?));
        }
        let path = match field.split_once("://") {
            Some((_, rest)) => rest.split_once('/')?.1,
            None => field.strip_prefix('/')?,
        };
        // All replicas have the same path before `/v2/`.
        let path = match self.prefix.strip_prefix('/') {
            Some(prefix) => path.strip_prefix(prefix)?.strip_prefix('/')?,
            None => path,
        };
        path.starts_with("v2/")
            .then(|| format!("{}/{path}", self.base))
    }

    /// What a repository has: `manifests`, `blobs` or `blobs/uploads`, and its name there.
    pub(super) fn to(&self, name: &RepoName, what: &str, item: impl Display) -> String {
        format!("{}/v2/{name}/{what}/{item}", self.base)
    }

    /// The page after `last` of a list.
    pub(super) fn next_page(
        &self,
        path: &str,
        page: &Page,
        listed: usize,
        last: &str,
        ns: Option<&str>,
    ) -> String {
        let n = page.n.unwrap_or(listed).to_string();
        self.page(path, &[("last", Some(last)), ("n", Some(&n)), ("ns", ns)])
    }

    /// A page with these parameters.
    pub(super) fn page(&self, path: &str, parameters: &[(&str, Option<&str>)]) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in parameters {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        format!("{}/v2/{path}?{}", self.base, query.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_another_replica_lead_here() {
        let upload = "/v2/ci/v2/app/blobs/uploads/1?a=b";
        for (origin, prefix, field, expected) in [
            ("", "", upload, Some("/v2/ci/v2/app/blobs/uploads/1?a=b")),
            (
                "",
                "",
                "http://10.0.0.1:5000/v2/a/blobs/uploads/1",
                Some("/v2/a/blobs/uploads/1"),
            ),
            (
                "https://registry.example",
                "",
                "http://10.0.0.1:5000/v2/a/blobs/uploads/1",
                Some("https://registry.example/v2/a/blobs/uploads/1"),
            ),
            ("", "/x", "/x/v2/a/manifests/1", Some("/x/v2/a/manifests/1")),
            (
                "https://a",
                "/x",
                "https://b/x/v2/a/manifests/1",
                Some("https://a/x/v2/a/manifests/1"),
            ),
            (
                "https://a",
                "",
                "</v2/ci/app/tags/list?last=b&n=2>; rel=\"next\"",
                Some("<https://a/v2/ci/app/tags/list?last=b&n=2>; rel=\"next\""),
            ),
            ("", "/x", "/v2/a/manifests/1", None),
            ("", "", "http://10.0.0.1/elsewhere", None),
            ("", "", "v2/a/manifests/1", None),
        ] {
            let led = Links::new(origin, prefix.to_owned()).led_here(field);
            assert_eq!(led.as_deref(), expected, "{field}");
        }
    }
}
