//! What the head of a push says of its body.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName};

use crate::hosted::Part;
use crate::oci::manifest::MAX_MANIFEST;
use crate::oci::{Classified, ErrorKind, digits};

/// The fields of a push's head, parsed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PushHead {
    /// Without parameters.
    pub(super) content_type: Option<String>,
    pub(super) range: ContentRange,
    /// From `Content-Length`; none for a chunked body.
    pub(super) length: Option<u64>,
    /// The client sends the body only after it was told to continue (RFC 9110, section 10.1.1).
    pub(super) awaits_continue: bool,
}

/// The field `Content-Range` of an upload: `<first>-<last>`, without a unit (distribution-spec, "Pushing
/// a blob in chunks").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentRange {
    None,
    Invalid,
    /// Both included.
    Bytes(u64, u64),
}

impl PushHead {
    pub(super) fn parse(headers: &HeaderMap) -> Self {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let media_type = text(&CONTENT_TYPE).map(|text| text.split(';').next().unwrap_or_default());
        Self {
            content_type: media_type.map(|text| text.trim().to_owned()),
            range: ContentRange::parse(headers),
            length: text(&CONTENT_LENGTH).and_then(digits),
            awaits_continue: text(&EXPECT)
                .is_some_and(|text| text.eq_ignore_ascii_case("100-continue")),
        }
    }

    /// What is said of the body's bytes; none where that contradicts itself. Old regctl sends an end that
    /// is one too high.
    pub(super) fn part(&self) -> Result<Part, HeadError> {
        let ContentRange::Bytes(start, last) = self.range else {
            return match self.range {
                ContentRange::Invalid => Err(HeadError::Range),
                _ => Ok(Part {
                    start: None,
                    end: None,
                    length: self.length,
                }),
            };
        };
        let stated = last - start;
        if self
            .length
            .is_some_and(|length| stated != length && stated.checked_add(1) != Some(length))
        {
            return Err(HeadError::Length);
        }
        let end = match self.length {
            Some(length) => start.checked_add(length),
            None => last.checked_add(1),
        };
        Ok(Part {
            start: Some(start),
            end: Some(end.ok_or(HeadError::Range)?),
            length: self.length,
        })
    }
}

/// Why the head of a push is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadError {
    #[error("Content-Range is not <first>-<last>, such as 0-1023, without a unit")]
    Range,
    #[error("Content-Range contradicts Content-Length")]
    Length,
    #[error("a manifest is at most {MAX_MANIFEST} bytes")]
    LargeManifest,
}

impl Classified for HeadError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Range => ErrorKind::UploadInvalid,
            Self::Length => ErrorKind::SizeInvalid,
            Self::LargeManifest => ErrorKind::TooLarge,
        }
    }

    fn reason(&self) -> Cow<'static, str> {
        self.to_string().into()
    }
}

impl ContentRange {
    fn parse(headers: &HeaderMap) -> Self {
        let mut all = headers.get_all(CONTENT_RANGE).iter();
        let Some(value) = all.next() else {
            return Self::None;
        };
        let is_alone = all.next().is_none();
        let parsed = || {
            let (first, last) = value.to_str().ok()?.trim().split_once('-')?;
            let (first, last): (u64, u64) = (digits(first)?, digits(last)?);
            (first <= last && is_alone).then_some(Self::Bytes(first, last))
        };
        parsed().unwrap_or(Self::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&'static str, &str)]) -> PushHead {
        let fields = fields
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        PushHead::parse(&fields.collect())
    }

    #[test]
    fn a_content_range_has_no_unit() {
        for (text, expected) in [
            ("0-9", ContentRange::Bytes(0, 9)),
            ("5-5", ContentRange::Bytes(5, 5)),
            ("bytes=0-9", ContentRange::Invalid),
            ("bytes 0-9/10", ContentRange::Invalid),
            ("5-3", ContentRange::Invalid),
            ("0-18446744073709551616", ContentRange::Invalid),
            ("0-+9", ContentRange::Invalid),
            ("-9", ContentRange::Invalid),
            ("9-", ContentRange::Invalid),
            ("", ContentRange::Invalid),
        ] {
            assert_eq!(head(&[("content-range", text)]).range, expected, "{text}");
        }
        let mut twice = HeaderMap::new();
        twice.append(CONTENT_RANGE, "0-1".parse().unwrap());
        twice.append(CONTENT_RANGE, "0-1".parse().unwrap());
        assert_eq!(PushHead::parse(&twice).range, ContentRange::Invalid);
    }

    #[test]
    fn a_range_must_fit_the_length() {
        let part = |range: &str, length: &str| {
            let fields = [("content-range", range), ("content-length", length)];
            head(&fields).part().map(|part| (part.start, part.end))
        };
        assert_eq!(part("0-9", "10"), Ok((Some(0), Some(10))));
        // Old regctl.
        assert_eq!(part("10-20", "10"), Ok((Some(10), Some(20))));
        assert_eq!(part("0-9", "5"), Err(HeadError::Length));
        assert_eq!(part("0-9", "12"), Err(HeadError::Length));
        assert_eq!(part("5-3", "3"), Err(HeadError::Range));
        let chunked = head(&[("content-range", "3-9")]).part();
        assert_eq!(chunked.map(|part| part.end), Ok(Some(10)));
        let last = u64::MAX.to_string();
        assert_eq!(
            head(&[("content-range", &format!("0-{last}"))]).part(),
            Err(HeadError::Range)
        );
        assert_eq!(head(&[]).part().map(|part| part.length), Ok(None));
    }

    #[test]
    fn parameters_of_a_type_are_cut_off() {
        let head = head(&[
            ("content-type", "application/json; charset=utf-8"),
            ("expect", "100-Continue"),
        ]);
        assert_eq!(head.content_type.as_deref(), Some("application/json"));
        assert!(head.awaits_continue);
    }
}
