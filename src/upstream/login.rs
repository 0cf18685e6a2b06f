//! The account of a caller at an upstream.

use std::fmt;

use http::HeaderValue;

/// A user name and a password that a caller sent, as the `Authorization` header (RFC 7617) that
/// presents them to an upstream.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Sensitive.
    header: HeaderValue,
}

impl Login {
    /// `header` is the value of the caller's `Authorization` header, of the scheme Basic.
    pub fn new(mut header: HeaderValue) -> Self {
        header.set_sensitive(true);
        Self { header }
    }

    pub fn header(&self) -> &HeaderValue {
        &self.header
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}
