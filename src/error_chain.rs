//! Errors on one line, with their causes.

use std::borrow::Cow;
use std::error::Error;

/// The most characters of a text that are quoted.
const MAX_QUOTED: usize = 256;

/// The one way to log an error: `error = %on_one_line(&error)`. `tests/modules/` refuses others.
///
/// What an error says, then what its causes add. A cause whose words are in the text already, as a
/// message that names its source has them, isn't said again.
pub fn on_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    match printable(&text) {
        Cow::Owned(printable) => printable,
        Cow::Borrowed(_) => text,
    }
}

/// A text that may name what others have chosen, such as files of an archive: what would control a terminal
/// is replaced by its escape. Lines and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    let controls = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(controls) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if controls(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// The beginning of a text that others have chosen, on one line and in quotation marks.
pub fn quoted(text: &str) -> String {
    let short: String = text.chars().take(MAX_QUOTED).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("outer")]
        Outer(#[source] Box<Failure>),
        #[error("named: {0}")]
        Named(#[source] Box<Failure>),
        #[error("inner")]
        Inner,
    }

    #[test]
    fn the_operating_systems_cause_is_shown() {
        use crate::storage::StoreError;
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = StoreError::Io {
            operation: "write",
            path: "/x".into(),
            source: full,
        };
        assert_eq!(
            on_one_line(&error),
            "the store couldn't write /x: no storage space"
        );
    }

    #[test]
    fn nothing_controls_the_terminal() {
        let error = std::io::Error::other("a\u{1b}]0;b\u{7}\u{9b}2J\r\nc\té");
        assert_eq!(on_one_line(&error), "a\\u{1b}]0;b\\u{7}\\u{9b}2J\\r\nc\té");
        assert_eq!(quoted("a\u{1b}\nb"), r#""a\u{1b}\nb""#);
        assert_eq!(quoted(&"a".repeat(1000)).len(), MAX_QUOTED + 2);
    }

    #[test]
    fn causes_are_shown_once() {
        let inner = || Box::new(Failure::Inner);
        assert_eq!(on_one_line(&Failure::Inner), "inner");
        assert_eq!(on_one_line(&Failure::Outer(inner())), "outer: inner");
        assert_eq!(on_one_line(&Failure::Named(inner())), "named: inner");
        assert_eq!(
            on_one_line(&Failure::Outer(Box::new(Failure::Named(inner())))),
            "outer: named: inner"
        );
    }
}
