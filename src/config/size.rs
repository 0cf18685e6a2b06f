//! Sizes as operators write them: a number of bytes, or a decimal number with a binary (`KiB`,
//! `MiB`, `GiB`, `TiB`) or decimal (`KB`, `MB`, `GB`, `TB`) unit in any case; and limits, which may
//! also be percentages of a file system.
//!
//! `G` and `Gi` are refused: half of the tools take the first for 1000^3 and half for 1024^3.

use std::fmt;
use std::ops::RangeInclusive;

use bytesize::ByteSize;

use crate::oci::digits;

/// The largest size accepted, in bytes (1 EiB). Larger ones are typing errors.
pub(super) const MAX: u64 = 1 << 60;

/// Largest first, a binary unit before the decimal one.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
];

/// A bound on what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeLimit {
    /// At most 2^60.
    Bytes(u64),
    /// Of the size of the data directory's file system; at most 100.
    Percent(u8),
}

impl fmt::Display for SizeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&format(*bytes)),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Why a text is not a size or limit. The messages end a sentence that starts with the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SizeError {
    #[error("must not be negative")]
    Negative,
    #[error("must be at most {}", format(MAX))]
    TooLarge,
    #[error("must be a size, such as 500MB, 20MiB or 1.5GiB, or a number of bytes")]
    Syntax,
    #[error(
        "must be a size, such as 200GiB or 1.5TB, or a whole percentage of the file system, such \
         as 80%"
    )]
    LimitSyntax,
    #[error("must be a percentage from {0}% to {1}%")]
    Percent(u8, u8),
}

/// Reads a size in bytes; fractions of a byte are cut off.
pub(super) fn bytes(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err(SizeError::Negative);
    }
    // bytesize accepts more than can be meant: `G`, `Gi`, `5.`, and fractions of a byte.
    let (number, unit) = text.split_at(text.find(|c| !is_of_number(c)).unwrap_or(text.len()));
    let unit = unit.trim_start();
    let known = |(name, _): &(&str, u64)| name.eq_ignore_ascii_case(unit);
    let is_whole = number.bytes().all(|byte| byte.is_ascii_digit());
    let is_plain = number.starts_with(|c| c != '.') && !number.ends_with('.');
    if !is_plain || !(UNITS.iter().any(known) || (unit.is_empty() && is_whole)) {
        return Err(SizeError::Syntax);
    }
    let size = text.parse::<ByteSize>().or(Err(if unit.is_empty() {
        SizeError::TooLarge
    } else {
        SizeError::Syntax
    }))?;
    Some(size.as_u64())
        .filter(|bytes| *bytes <= MAX)
        .ok_or(SizeError::TooLarge)
}

fn is_of_number(c: char) -> bool {
    c.is_ascii_digit() || c == '.'
}

/// Reads a size, or a whole percentage within `percents`.
pub(super) fn limit(text: &str, percents: RangeInclusive<u8>) -> Result<SizeLimit, SizeError> {
    let Some(percent) = text.trim().strip_suffix('%') else {
        return match bytes(text) {
            Err(SizeError::Syntax) => Err(SizeError::LimitSyntax),
            other => other.map(SizeLimit::Bytes),
        };
    };
    let percent = percent.trim_end();
    if percent.starts_with('-') {
        return Err(SizeError::Negative);
    }
    let percent: u64 = digits(percent).ok_or(SizeError::LimitSyntax)?;
    u8::try_from(percent)
        .ok()
        .filter(|percent| percents.contains(percent))
        .map(SizeLimit::Percent)
        .ok_or(SizeError::Percent(*percents.start(), *percents.end()))
}

/// Writes a size in the largest unit that it is a whole number of: `200GiB`, `500MB`, `1025`.
/// [`bytes()`] reads it back.
pub(super) fn format(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes > 0 && bytes.is_multiple_of(*factor);
    match UNITS.iter().find(fits) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepted() {
        for (text, expected) in [
            ("0", 0),
            ("1025", 1_025),
            ("1KiB", 1_024),
            ("1kb", 1_000),
            ("20MiB", 20_971_520),
            ("20 mib", 20_971_520),
            (" 500MB ", 500_000_000),
            ("200GiB", 214_748_364_800),
            ("5GB", 5_000_000_000),
            ("1.5TiB", 1_649_267_441_664),
            ("1.5TB", 1_500_000_000_000),
            ("0.0001KiB", 0),
            ("0.333333333333333333999KB", 333),
            ("1048576TiB", MAX),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn refused() {
        for (text, error) in [
            ("", SizeError::Syntax),
            ("GiB", SizeError::Syntax),
            ("1.5", SizeError::Syntax),
            (".5GiB", SizeError::Syntax),
            ("1.GiB", SizeError::Syntax),
            ("1.5.5GiB", SizeError::Syntax),
            ("5G", SizeError::Syntax),
            ("5Gi", SizeError::Syntax),
            ("5GiB/s", SizeError::Syntax),
            ("+5GiB", SizeError::Syntax),
            ("1e5", SizeError::Syntax),
            ("80%", SizeError::Syntax),
            ("\u{664}KiB", SizeError::Syntax),
            ("-1GiB", SizeError::Negative),
            ("1048577TiB", SizeError::TooLarge),
            ("18446744073709551615TiB", SizeError::TooLarge),
            ("99999999999999999999999999", SizeError::TooLarge),
        ] {
            assert_eq!(bytes(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn limits() {
        for (text, expected) in [
            ("80%", Ok(SizeLimit::Percent(80))),
            (" 1 % ", Ok(SizeLimit::Percent(1))),
            ("100%", Ok(SizeLimit::Percent(100))),
            ("5GiB", Ok(SizeLimit::Bytes(5 << 30))),
            ("0%", Err(SizeError::Percent(1, 100))),
            ("101%", Err(SizeError::Percent(1, 100))),
            ("300%", Err(SizeError::Percent(1, 100))),
            ("-5%", Err(SizeError::Negative)),
            ("-5", Err(SizeError::Negative)),
            ("%", Err(SizeError::LimitSyntax)),
            ("+5%", Err(SizeError::LimitSyntax)),
            ("80.5%", Err(SizeError::LimitSyntax)),
            ("most", Err(SizeError::LimitSyntax)),
        ] {
            assert_eq!(limit(text, 1..=100), expected, "{text:?}");
        }
    }

    #[test]
    fn written() {
        for (size, expected) in [
            (0, "0"),
            (1_023, "1023"),
            (1_024, "1KiB"),
            (1_536 << 30, "1536GiB"),
            (500_000_000, "500MB"),
            (MAX, "1048576TiB"),
        ] {
            assert_eq!(format(size), expected);
        }
    }

    proptest! {
        #[test]
        fn written_sizes_are_read_back(
            number in 0..1u64 << 20,
            (_, factor) in prop::sample::select(&UNITS[..]),
            odd in 0..2u64,
        ) {
            let size = number * factor + odd;
            prop_assert_eq!(bytes(&format(size)), Ok(size));
        }

        #[test]
        fn no_text_panics(text in "[-+0-9.kKmMgGtTiIbB% µ]{0,30}") {
            if let Ok(SizeLimit::Bytes(size)) = limit(&text, 0..=100) {
                prop_assert!(size <= MAX);
            }
        }
    }
}
