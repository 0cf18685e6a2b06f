//! The operator's user name and password for an upstream.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};

/// User name and password. They go to the upstream's own origin and to a token service that belongs
/// to it or that the operator named, and to nobody else.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub username: String,
    pub password: SecretString,
}

impl Credentials {
    /// The `Authorization` header (RFC 7617). `None` when the user name holds a colon, which the
    /// other side would take for the separator.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        if self.username.contains(':') {
            return None;
        }
        let pair = format!("{}:{}", self.username, self.password.expose_secret());
        let encoded = format!("Basic {}", BASE64_STANDARD.encode(pair));
        let mut header = HeaderValue::try_from(encoded).ok()?;
        header.set_sensitive(true);
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_and_silence_about_it() {
        let credentials = Credentials {
            username: "Aladdin".into(),
            password: "open sesame".into(),
        };
        let header = credentials.header().unwrap();
        assert_eq!(header, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        let shown = format!("{credentials:?} {header:?}");
        assert!(
            !shown.contains("sesame") && !shown.contains("QWxh"),
            "{shown}"
        );
        let colon = Credentials {
            username: "a:b".into(),
            password: "c".into(),
        };
        assert!(colon.header().is_none());
    }
}
