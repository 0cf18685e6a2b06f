//! Numbers of digits alone.

use std::str::FromStr;

/// The number that one or more ASCII digits are (`1*DIGIT` of RFC 9110). `None` for a sign, a blank,
/// and a number too large for the type: Rust's own parsers accept a sign.
pub fn digits<N: FromStr>(text: &str) -> Option<N> {
    let number = text.parse().ok()?;
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_are_a_number() {
        for (text, expected) in [
            ("0", Some(0)),
            ("007", Some(7)),
            ("65535", Some(65_535)),
            ("65536", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            (" 1", None),
            ("1 ", None),
            ("1.0", None),
            ("\u{664}", None),
        ] {
            assert_eq!(digits::<u16>(text), expected, "{text:?}");
        }
    }
}
