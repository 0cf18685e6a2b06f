//! The `Authorization` header (RFC 9110, section 11.6.2), parsed strictly.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};

use super::AuthError;

/// The longest header, in bytes.
pub(super) const MAX_AUTHORIZATION: usize = 16 * 1024;

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a request has to say who sends it.
#[derive(Debug)]
pub(super) enum Authorization<'a> {
    /// Nothing, or an empty user with an empty password: so skopeo says that it has none.
    None,
    Basic(Basic),
    /// A token of the bytes that RFC 6750 permits.
    Bearer(&'a str),
}

/// A user name and a password (RFC 7617).
pub(super) struct Basic {
    pub(super) user: String,
    password: SecretString,
}

impl Basic {
    pub(super) fn new(user: String, password: String) -> Self {
        Self {
            user,
            password: password.into(),
        }
    }

    pub(super) fn password(&self) -> &str {
        self.password.expose_secret()
    }

    /// The header that presents them to another server: the same one however the client spelt it.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let pair = format!("{}:{}", self.user, self.password());
        HeaderValue::try_from(format!("Basic {}", BASE64.encode(pair))).ok()
    }
}

impl fmt::Debug for Basic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Basic")
    }
}

impl<'a> Authorization<'a> {
    pub(super) fn parse(headers: &'a HeaderMap) -> Result<Self, AuthError> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            return Ok(Self::None);
        };
        if values.next().is_some() {
            return Err(AuthError::Malformed(
                "the request has two Authorization headers",
            ));
        }
        if value.len() > MAX_AUTHORIZATION {
            return Err(AuthError::Malformed("the Authorization header is too long"));
        }
        let malformed = || AuthError::Malformed("the Authorization header is malformed");
        let text = value.to_str().map_err(|_not_ascii| malformed())?;
        let (scheme, rest) = text.split_once(' ').ok_or_else(malformed)?;
        let rest = rest.trim_matches(' ');
        if scheme.eq_ignore_ascii_case("bearer") {
            return is_token(rest)
                .then_some(Self::Bearer(rest))
                .ok_or_else(malformed);
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(AuthError::Refused);
        }
        let pair = BASE64.decode(rest).map_err(|_not_base64| malformed())?;
        let pair = String::from_utf8(pair).map_err(|_not_utf8| malformed())?;
        let (user, password) = pair.split_once(':').ok_or_else(malformed)?;
        if pair.chars().any(char::is_control) {
            return Err(malformed());
        }
        if pair == ":" {
            return Ok(Self::None);
        }
        Ok(Self::Basic(Basic::new(
            user.to_owned(),
            password.to_owned(),
        )))
    }
}

/// RFC 6750, section 2.1.
fn is_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    !body.is_empty() && body.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is parsed: `-` for nothing, `user:password`, `token TOKEN`, or the error.
    fn parsed(values: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        match Authorization::parse(&headers) {
            Ok(Authorization::None) => "-".to_owned(),
            Ok(Authorization::Basic(basic)) => format!("{}:{}", basic.user, basic.password()),
            Ok(Authorization::Bearer(token)) => format!("token {token}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn headers_are_parsed_strictly() {
        const MALFORMED: &str = "the Authorization header is malformed";
        const REFUSED: &str = "the request needs credentials, and those it has aren't valid";
        for (value, expected) in [
            ("Basic dTpw", "u:p"),
            ("basic  dTpw", "u:p"),
            ("Basic dTpwOnE=", "u:p:q"),
            ("Basic dTpwOnE", "u:p:q"),
            ("Basic Og==", "-"),
            ("Basic OnA=", ":p"),
            ("Bearer a.b-c_d~e+f/g==", "token a.b-c_d~e+f/g=="),
            ("bearer abc", "token abc"),
            ("Basic", MALFORMED),
            ("Basic ", MALFORMED),
            ("Basic d", MALFORMED),
            ("Basic dTpw dTpw", MALFORMED),
            ("Basic dXA=", MALFORMED),
            ("Basic /zo=", MALFORMED),
            ("Basic dToK", MALFORMED),
            ("Bearer ", MALFORMED),
            ("Bearer =", MALFORMED),
            ("Bearer a b", MALFORMED),
            ("Bearer a,b", MALFORMED),
            ("dTpw", MALFORMED),
            ("Negotiate abc", REFUSED),
        ] {
            assert_eq!(parsed(&[value.as_bytes()]), expected, "{value}");
        }
        assert_eq!(parsed(&[]), "-");
        assert_eq!(parsed(&[b"Bearer \xff"]), MALFORMED);
        let twice: [&[u8]; 2] = [b"Bearer a", b"Bearer a"];
        assert_eq!(parsed(&twice), "the request has two Authorization headers");
        let long = format!("Bearer {}", "a".repeat(MAX_AUTHORIZATION));
        assert_eq!(
            parsed(&[long.as_bytes()]),
            "the Authorization header is too long"
        );
    }

    #[test]
    fn what_is_shown_of_a_password_is_nothing() {
        let basic = Basic::new("u".to_owned(), "hunter2".to_owned());
        assert_eq!(format!("{basic:?}"), "Basic");
        assert_eq!(basic.header().unwrap(), "Basic dTpodW50ZXIy");
    }

    proptest! {
        #[test]
        fn any_pair_is_read_back(user in "[^:\\p{Cc}]{1,20}", password in "\\P{Cc}{0,30}") {
            let pair = format!("{user}:{password}");
            let header = format!("Basic {}", BASE64.encode(&pair));
            prop_assert_eq!(parsed(&[header.as_bytes()]), pair);
        }

        #[test]
        fn no_header_makes_it_panic(value in proptest::collection::vec(32_u8..127, 0..60)) {
            parsed(&[&value]);
        }
    }
}
