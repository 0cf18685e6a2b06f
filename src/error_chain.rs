//! Errors on one line, with their causes.

use std::error::Error;

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
    text
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
