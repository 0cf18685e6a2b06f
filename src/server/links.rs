//! Where clients find what they asked for: the `Location` and `Link` fields.

use std::fmt::Display;

use crate::oci::{Page, RepoName};

/// Makes links.
#[derive(Debug, Clone)]
pub(super) struct Links {
    /// What links begin with: an origin, or nothing, and the path before `/v2/`.
    base: String,
}

impl Links {
    /// `base` is what links begin with.
    pub(super) const fn new(base: String) -> Self {
        Self { base }
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
