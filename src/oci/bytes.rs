//! Searches for an ASCII character. Every request makes several of them in its path, and those of `str`
//! cost ten times as much.

use memchr::{memchr, memrchr};

pub(super) fn contains(text: &str, character: u8) -> bool {
    memchr(character, text.as_bytes()).is_some()
}

/// Splits at the first occurrence of an ASCII character.
pub(super) fn split_once(text: &str, character: u8) -> Option<(&str, &str)> {
    split_at(text, memchr(character, text.as_bytes())?)
}

/// Splits at the last occurrence of an ASCII character.
pub(super) fn rsplit_once(text: &str, character: u8) -> Option<(&str, &str)> {
    split_at(text, memrchr(character, text.as_bytes())?)
}

/// What stands before and after the character of one byte at `at`.
fn split_at(text: &str, at: usize) -> Option<(&str, &str)> {
    Some((text.get(..at)?, text.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn splits_as_str_does(text in "[a/:é]{0,12}") {
            prop_assert_eq!(super::split_once(&text, b'/'), text.split_once('/'));
            prop_assert_eq!(super::rsplit_once(&text, b'/'), text.rsplit_once('/'));
            prop_assert_eq!(super::contains(&text, b':'), text.contains(':'));
        }
    }
}
