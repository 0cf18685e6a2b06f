//! Durations as operators write them: Go's (`168h`, `1h30m`, `1.5h`), which the reference
//! registry's files use, and humantime's (`7days`, `1h 30m`).
//!
//! A bare number is refused, except 0: in a reference registry's file it means nanoseconds, and
//! whoever writes one hardly ever means those.

use std::time::Duration;

/// The longest duration accepted: 100 years of 365.25 days. Longer ones are typing errors, and would overflow
/// dates later.
pub(super) const MAX: Duration = Duration::from_hours(100 * 8_766);

/// Why a text is not a duration. The messages end a sentence that starts with the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum DurationError {
    #[error("must not be negative")]
    Negative,
    #[error("needs a unit, such as 60s, 10m or 168h")]
    NoUnit,
    #[error("must be at most 100 years")]
    TooLong,
    #[error("must be a duration, such as 500ms, 60s, 1h30m or 7days")]
    Syntax,
}

/// Reads a duration; fractions of a nanosecond are rounded.
pub(super) fn parse(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    let text = text.strip_prefix('+').unwrap_or(text);
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    if !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        let zero = text.bytes().all(|byte| byte == b'0');
        return zero.then_some(Duration::ZERO).ok_or(DurationError::NoUnit);
    }
    let duration = match go(text) {
        Err(DurationError::Syntax) => human(text)?,
        other => other?,
    };
    if duration > MAX {
        return Err(DurationError::TooLong);
    }
    Ok(duration)
}

fn human(text: &str) -> Result<Duration, DurationError> {
    humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::NumberOverflow => DurationError::TooLong,
        _ => DurationError::Syntax,
    })
}

/// Go's form: one or more of a decimal number with a unit, without spaces. humantime lacks a part of
/// it: `.5s`, `1.s`, and fractions that are no whole number of the next unit, such as `0.333h`.
fn go(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() || text.is_empty() {
        let (number, after) = split_while(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = split_while(after, |c| !c.is_ascii_digit() && c != '.');
        let seconds = match unit {
            "ns" => 1e-9,
            // Go takes both signs for micro: U+00B5 and U+03BC.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return Err(DurationError::Syntax),
        };
        let number: f64 = number.parse().or(Err(DurationError::Syntax))?;
        let part = Duration::try_from_secs_f64(number * seconds);
        total = part
            .ok()
            .and_then(|part| total.checked_add(part))
            .ok_or(DurationError::TooLong)?;
        rest = after;
    }
    Ok(total)
}

fn split_while(text: &str, mut belongs: impl FnMut(char) -> bool) -> (&str, &str) {
    let end = text
        .find(|character| !belongs(character))
        .unwrap_or(text.len());
    text.split_at(end)
}

/// Writes a duration in Go's form: `168h`, `1h30m`, `1m30.5s`, `0s`. [`parse`] reads it back.
pub(super) fn format(duration: Duration) -> String {
    let total = duration.as_secs();
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    let part = |value, unit| match value {
        0 => String::new(),
        _ => format!("{value}{unit}"),
    };
    let seconds = match duration.subsec_nanos() {
        0 if total == 0 => "0s".to_owned(),
        0 => part(seconds, "s"),
        nanoseconds => {
            let fraction = format!("{nanoseconds:09}");
            format!("{seconds}.{}s", fraction.trim_end_matches('0'))
        }
    };
    part(hours, "h") + &part(minutes, "m") + &seconds
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepted() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("00", 0),
            ("168h", 604_800_000),
            ("7days", 604_800_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("+1h", 3_600_000),
            ("500ms", 500),
            ("1m30.5s", 90_500),
            (".5s", 500),
            ("1.s", 1_000),
            ("2000us", 2),
            ("2000\u{b5}s", 2),
            ("3000000ns", 3),
            ("2 weeks", 1_209_600_000),
            (" 60s ", 60_000),
        ] {
            assert_eq!(
                parse(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text:?}"
            );
        }
        assert_eq!(
            parse("1.123456789123456789123s").unwrap().as_nanos(),
            1_123_456_789
        );
        assert_eq!(parse("876600h"), Ok(MAX));
    }

    #[test]
    fn refused() {
        for (text, error) in [
            ("", DurationError::Syntax),
            ("h", DurationError::Syntax),
            (".s", DurationError::Syntax),
            ("1..5s", DurationError::Syntax),
            ("1 fortnight", DurationError::Syntax),
            ("soon", DurationError::Syntax),
            ("-1h", DurationError::Negative),
            ("-0.5s", DurationError::Negative),
            ("60", DurationError::NoUnit),
            ("1.5", DurationError::NoUnit),
            ("604800000000000", DurationError::NoUnit),
            ("876601h", DurationError::TooLong),
            ("101years", DurationError::TooLong),
            (
                "99999999999999999999999999999999999999999h",
                DurationError::TooLong,
            ),
            (
                "340282366920938463463374607431768211455h",
                DurationError::TooLong,
            ),
            ("99999999999999999999999years", DurationError::TooLong),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn written_durations_are_read_back(
            seconds in 0..MAX.as_secs(),
            nanoseconds in prop_oneof![Just(0), Just(500_000_000), 0..1_000_000_000u32],
        ) {
            let duration = Duration::new(seconds, nanoseconds);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in "[-+0-9.hmsunµ ]{0,30}") {
            if let Ok(duration) = parse(&text) {
                prop_assert!(duration <= MAX);
            }
        }
    }
}
