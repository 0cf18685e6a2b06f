//! What callers may do.
//!
//! What must never happen: a request for a denied name reaches an upstream.

mod error;

use crate::auth::Caller;
use crate::oci::{Reference, RepoName};

pub use error::Denied;

/// What a caller wants to do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Read a manifest, a blob or referrers.
    Pull,
    /// List tags.
    List,
}

/// What a caller wants to access.
#[derive(Debug, Clone, Copy)]
pub struct Resource<'a> {
    /// The name of the upstream.
    pub upstream: &'a str,
    /// The repository's name in the store: that of a named upstream comes before it.
    pub repository: &'a RepoName,
    /// The tag or the digest, where the request names one.
    pub reference: Option<&'a Reference>,
}

/// The rules.
#[derive(Debug, Default)]
pub struct Access {
    /// Whether only callers who say who they are may do anything.
    pub closed: bool,
}

impl Access {
    /// Decides whether a caller may do something.
    pub fn decide(
        &self,
        caller: &Caller,
        _resource: &Resource<'_>,
        _permission: Permission,
    ) -> Result<(), Denied> {
        if self.closed && caller.is_anonymous() {
            return Err(Denied::Anonymous);
        }
        Ok(())
    }
}
