//! `traceparent` (W3C Trace Context, section 3.2): which trace a request belongs to, and which span
//! caused it.

use std::fmt;

use http::header::{HeaderMap, HeaderValue};

use super::{TRACEPARENT, visible};

/// Length of version 00, and the least of later ones.
const LENGTH: usize = 55;
/// Longest header of a later version that is read, in bytes.
const MAX_LENGTH: usize = 512;
const SAMPLED: u8 = 1;

/// The id of a trace; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

/// A span, as those that it causes name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub trace_id: TraceId,
    /// Never 0.
    pub span_id: u64,
    pub sampled: bool,
}

impl TraceId {
    /// A new one.
    pub fn random() -> Self {
        Self(fastrand::u128(1..))
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl TraceParent {
    /// The only and valid one of a request's headers.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        Self::parse(value.to_str().ok()?)
    }

    /// Reads version 00, and of later ones what they have in common with it.
    fn parse(text: &str) -> Option<Self> {
        if !(LENGTH..=MAX_LENGTH).contains(&text.len()) {
            return None;
        }
        let (known, more) = text.split_at_checked(LENGTH)?;
        let mut fields = known.split('-');
        let mut field = |length: usize| fields.next().filter(|field| field.len() == length);
        let version = hex(field(2)?)?;
        let (trace_id, span_id, flags) = (hex(field(32)?)?, hex(field(16)?)?, hex(field(2)?)?);
        let is_complete = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => more.is_empty() || more.starts_with('-'),
        };
        (is_complete && trace_id != 0 && span_id != 0).then_some(Self {
            trace_id: TraceId(trace_id),
            span_id: u64::try_from(span_id).ok()?,
            sampled: u8::try_from(flags).ok()? & SAMPLED != 0,
        })
    }

    /// As the value of a header.
    pub fn header(&self) -> HeaderValue {
        visible(&self.to_string())
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled) * SAMPLED;
        write!(f, "00-{}-{:016x}-{flags:02x}", self.trace_id, self.span_id)
    }
}

/// A number in lower-case hexadecimal digits, as the specification wants them.
fn hex(text: &str) -> Option<u128> {
    let mut bytes = text.bytes();
    let valid = bytes.all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(text, 16).ok().filter(|_| valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_read_is_written_again() {
        let parent = TraceParent::parse(VALID).unwrap();
        assert!(parent.sampled);
        assert_eq!(parent.to_string(), VALID);
        let unsampled = VALID.replace("-01", "-00");
        assert_eq!(
            TraceParent::parse(&unsampled).unwrap().to_string(),
            unsampled
        );
        // Other flags have no meaning here, and later versions may add fields.
        let flags = VALID.replace("-01", "-fe");
        assert!(!TraceParent::parse(&flags).unwrap().sampled);
        for later in [
            VALID.replacen("00", "01", 1),
            VALID.replacen("00", "cc", 1) + "-more",
        ] {
            assert_eq!(TraceParent::parse(&later), Some(parent), "{later}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let cut = VALID.strip_suffix('1').unwrap();
        let long = format!(
            "{}-{}",
            VALID.replacen("00", "01", 1),
            "x".repeat(MAX_LENGTH)
        );
        for bad in [
            "",
            cut,
            &VALID.to_uppercase(),
            &VALID.replacen("00", "ff", 1),
            &VALID.replacen("00", "0g", 1),
            &VALID.replacen("00", "+0", 1),
            &format!("{VALID}-more"),
            &format!("{VALID}0"),
            &format!("{}x", VALID.replacen("00", "01", 1)),
            &VALID.replace('-', "_"),
            &VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &VALID.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &VALID.replace("4bf92f3577b34da6", "4bf92f3577b34da-"),
            &VALID.replace("-01", "- 1"),
            &long,
            "00-4bf92f3577b34da6a3ce929d0e0e473ä-00f067aa0ba902b7-0",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, HeaderValue::from_static(VALID));
        assert!(TraceParent::of(&headers).is_some());
        headers.append(TRACEPARENT, HeaderValue::from_static(VALID));
        assert_eq!(TraceParent::of(&headers), None, "two headers");
    }
}
