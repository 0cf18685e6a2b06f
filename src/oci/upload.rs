//! The ids of uploads: UUIDs, as in the reference registry, whose directories they name.

use std::fmt;
use std::str::FromStr;

/// The id of an upload session. Unguessable when it was made from random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId([u8; 16]);

/// A text that is not the id of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of an upload is a UUID in lower case")]
pub struct UploadIdError;

/// Where the groups of the text end: 8-4-4-4-12 digits (RFC 9562, section 4).
const GROUPS: [usize; 4] = [8, 13, 18, 23];
const LENGTH: usize = 36;

impl UploadId {
    /// A UUID of version 4 from random bytes (RFC 9562, section 5.4).
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
        *version = (*version & 0x0f) | 0x40;
        *variant = (*variant & 0x3f) | 0x80;
        Self(bytes)
    }
}

impl FromStr for UploadId {
    type Err = UploadIdError;

    /// Only the canonical form, so that one id names one directory.
    fn from_str(text: &str) -> Result<Self, UploadIdError> {
        if text.len() != LENGTH {
            return Err(UploadIdError);
        }
        let mut digits = [0; 32];
        let mut slots = digits.iter_mut();
        for (at, byte) in text.bytes().enumerate() {
            if GROUPS.contains(&at) {
                if byte != b'-' {
                    return Err(UploadIdError);
                }
            } else if !matches!(byte, b'0'..=b'9' | b'a'..=b'f') {
                return Err(UploadIdError);
            } else if let Some(slot) = slots.next() {
                *slot = byte;
            }
        }
        let bytes = const_hex::decode_to_array(digits);
        bytes.map(Self).map_err(|_not_hex| UploadIdError)
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_canonical_text_is_an_id() {
        let text = "0f8fad5b-d9cb-469f-a165-70867728950e";
        let id: UploadId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        for bad in [
            "",
            "1",
            "0F8FAD5B-D9CB-469F-A165-70867728950E",
            "0f8fad5bd9cb469fa16570867728950e",
            "0f8fad5b-d9cb-469f-a165-70867728950",
            "0f8fad5b-d9cb-469f-a165-70867728950e0",
            "0f8fad5b-d9cb-469f-a165_70867728950e",
            "../../../../../../../../../etc/passw",
            "0f8fad5b-d9cb-469f-a165-7086772895\u{e4}",
        ] {
            assert_eq!(bad.parse::<UploadId>(), Err(UploadIdError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_random_id_is_a_uuid_of_version_4(bytes: [u8; 16]) {
            let id = UploadId::from_random(bytes);
            let text = id.to_string();
            prop_assert_eq!(text.parse::<UploadId>(), Ok(id));
            prop_assert_eq!(text.get(14..15), Some("4"));
            prop_assert!(text.get(19..20).is_some_and(|variant| "89ab".contains(variant)));
        }
    }
}
