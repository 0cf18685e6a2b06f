//! The checkpoint of a staged file: which of its bytes may be resumed, as a small text beside it.
//!
//! ```text
//! 5f0a91c3                    CRC32C of the line below, in hexadecimal
//! {"digest":"sha256:...","upstream":"docker.io","total":1000,"boot":"17de07af-...",
//!  "synced":false,"claims":[[0,400,2774212511],[900,1000,3312044931]]}
//! ```
//!
//! Nothing here touches the staged file. The text is parsed as if anybody had written it.

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::claims::{Claim, Claims};
use crate::oci::Digest;

/// The longest text that is read, in bytes.
pub(super) const MAX_CHECKPOINT: u64 = 4 * 1024 * 1024;

/// Claims that a checkpoint has at most: 256 GiB in whole blocks. Bytes behind them are downloaded
/// again. The text stays below [`MAX_CHECKPOINT`]: a claim takes at most 55 bytes.
const MAX_CLAIMS: usize = 64 * 1024;

/// Hexadecimal digits of the text's own checksum.
const CRC_DIGITS: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checkpoint {
    pub(super) digest: Digest,
    /// The name of the upstream that the bytes came from.
    pub(super) upstream: String,
    /// The size of the whole blob, in bytes.
    pub(super) total: u64,
    /// The boot in which it was written; see [`boot_id`].
    boot: String,
    /// Whether file and checkpoint were synced, so that they outlive a power cut.
    pub(super) synced: bool,
    claims: Vec<Claim>,
}

/// Why a partial can't be resumed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// Why nothing of it can be used.
    #[error("{0}")]
    Damaged(String),
    /// The disk failed. The partial may be whole.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Unusable {
    pub(super) fn damaged(reason: impl Into<String>) -> Self {
        Self::Damaged(reason.into())
    }

    /// The checkpoint is of another blob or upstream.
    pub(super) fn other(checkpoint: &Checkpoint) -> Self {
        let (digest, upstream) = (&checkpoint.digest, &checkpoint.upstream);
        Self::damaged(format!("its checkpoint is of {digest} from {upstream:?}"))
    }
}

impl Checkpoint {
    pub(super) fn new(
        digest: &Digest,
        upstream: &str,
        total: u64,
        boot: &str,
        claims: &Claims,
    ) -> Self {
        Self {
            digest: *digest,
            upstream: upstream.to_owned(),
            total,
            boot: boot.to_owned(),
            synced: false,
            claims: claims.first(MAX_CLAIMS),
        }
    }

    pub(super) fn to_text(&self) -> serde_json::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let mut text = format!("{:0CRC_DIGITS$x}\n", crc32c::crc32c(&json)).into_bytes();
        text.extend_from_slice(&json);
        Ok(text)
    }

    /// Parses the checkpoint of this digest, for a process of this boot.
    pub(super) fn parse(
        text: &[u8],
        digest: &Digest,
        boot: &str,
    ) -> Result<(Self, Claims), Unusable> {
        if text.len() as u64 > MAX_CHECKPOINT {
            let reason = format!("its checkpoint has more than {MAX_CHECKPOINT} bytes");
            return Err(Unusable::damaged(reason));
        }
        let torn = || Unusable::damaged("its checkpoint is torn");
        let (crc, json) = text.split_at_checked(CRC_DIGITS).ok_or_else(torn)?;
        let json = json.strip_prefix(b"\n").ok_or_else(torn)?;
        if format!("{:0CRC_DIGITS$x}", crc32c::crc32c(json)).as_bytes() != crc {
            return Err(torn());
        }
        let checkpoint: Self = serde_json::from_slice(json).map_err(|error| {
            Unusable::damaged(format!("its checkpoint can't be parsed: {error}"))
        })?;
        if checkpoint.digest != *digest {
            return Err(Unusable::other(&checkpoint));
        }
        if !checkpoint.synced && checkpoint.boot != boot {
            let reason = "it wasn't synced before the system restarted";
            return Err(Unusable::damaged(reason));
        }
        let claims = Claims::parse(&checkpoint.claims, checkpoint.total);
        claims
            .filter(|_| checkpoint.claims.len() <= MAX_CLAIMS)
            .map(|claims| (checkpoint, claims))
            .ok_or_else(|| {
                Unusable::damaged("its claims are empty, out of order, or past the end of the blob")
            })
    }
}

/// Identifies the time since the system started: what a killed process had written, a later one of
/// the same boot reads from the page cache. Where the system doesn't tell, every process has a boot
/// of its own.
pub(super) fn boot_id() -> String {
    #[cfg(target_os = "linux")]
    if let Ok(Some(id)) =
        super::disk::read_small(std::path::Path::new("/proc/sys/kernel/random/boot_id"), 64)
        && let Ok(id) = String::from_utf8(id)
        && !id.trim().is_empty()
    {
        return id.trim().to_owned();
    }
    format!("process {:x}", fastrand::u128(..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::storage::claims::BLOCK;

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha512, b"blob")
    }

    fn checkpoint() -> Checkpoint {
        let mut claims = Claims::default();
        claims.add(0, b"abcde");
        claims.add(7, b"h");
        Checkpoint::new(&digest(), "u", 10, "this boot", &claims)
    }

    fn parse(text: &[u8]) -> Result<(Checkpoint, Claims), Unusable> {
        Checkpoint::parse(text, &digest(), "this boot")
    }

    /// The JSON with its checksum.
    fn text(json: &str) -> Vec<u8> {
        format!("{:08x}\n{json}", crc32c::crc32c(json.as_bytes())).into_bytes()
    }

    #[test]
    fn a_written_checkpoint_is_read_back() {
        let written = checkpoint().to_text().unwrap();
        let json = format!(
            r#"{{"digest":"{}","upstream":"u","total":10,"boot":"this boot","synced":false,"claims":[[0,5,{}],[7,8,{}]]}}"#,
            digest(),
            crc32c::crc32c(b"abcde"),
            crc32c::crc32c(b"h"),
        );
        assert_eq!(written, text(&json));
        let (read, claims) = parse(&written).unwrap();
        assert_eq!(read, checkpoint());
        assert_eq!(claims.ranges().len(), 6);
    }

    #[test]
    fn a_checkpoint_of_another_boot_counts_only_if_it_was_synced() {
        let (written, later) = (checkpoint().to_text().unwrap(), "next boot");
        let error = Checkpoint::parse(&written, &digest(), later).unwrap_err();
        assert!(error.to_string().contains("restarted"), "{error}");
        let mut synced = checkpoint();
        synced.synced = true;
        Checkpoint::parse(&synced.to_text().unwrap(), &digest(), later).unwrap();
    }

    #[test]
    fn the_boot_id_is_stable() {
        let boot = boot_id();
        assert!(!boot.is_empty());
        assert_eq!(boot == boot_id(), cfg!(target_os = "linux"));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let written = checkpoint().to_text().unwrap();
        for at in 0..written.len() {
            let mut flipped = written.clone();
            flipped[at] ^= 1;
            parse(&flipped).unwrap_err();
            parse(&written[..at]).unwrap_err();
        }
    }

    #[test]
    fn the_longest_text_is_short_enough_to_be_read() {
        let mut claims = Claims::default();
        for number in 0..=MAX_CLAIMS as u64 {
            claims.add(u64::MAX - 2 - (number + 1) * 2 * BLOCK, b"x");
        }
        let checkpoint = Checkpoint::new(&digest(), &"u".repeat(300), u64::MAX, "b", &claims);
        let written = checkpoint.to_text().unwrap();
        let (_, claims) = Checkpoint::parse(&written, &digest(), "b").unwrap();
        assert_eq!(claims.first(usize::MAX).len(), MAX_CLAIMS);
    }

    #[test]
    fn invalid_checkpoints_are_refused() {
        let refused = |json: &str| parse(&text(json)).unwrap_err().to_string();
        let sound = String::from_utf8(checkpoint().to_text().unwrap()[9..].to_vec()).unwrap();
        for (from, to) in [
            (r#""total":10"#, r#""total":-1"#),
            (r#""total":10"#, r#""total":10,"more":1"#),
            (r#""total":10"#, r#""total":10,"total":10"#),
            (r#""total":10,"#, ""),
            (r#""synced":false"#, r#""synced":0"#),
            ("[0,5,", "[0,"),
        ] {
            let changed = sound.replace(from, to);
            assert_ne!(changed, sound);
            let error = refused(&changed);
            assert!(error.contains("can't be parsed"), "{to}: {error}");
        }
        for (from, to) in [("[0,5,", "[5,5,"), (r#""total":10"#, r#""total":7"#)] {
            let error = refused(&sound.replace(from, to));
            assert!(error.contains("its claims are"), "{to}: {error}");
        }
        // The format of earlier versions has no checksum.
        let old = format!(
            r#"{{"digest":"{}","upstream":"u","total":10,"ranges":[]}}"#,
            digest()
        );
        let error = parse(old.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "its checkpoint is torn");
        let other = Digest::of(Algorithm::Sha256, b"other");
        let error = Checkpoint::parse(&text(&sound), &other, "this boot").unwrap_err();
        assert!(error.to_string().contains(&digest().to_string()), "{error}");

        let mut long = sound;
        let spaces = usize::try_from(MAX_CHECKPOINT).unwrap() - CRC_DIGITS - 1 - long.len();
        long.push_str(&" ".repeat(spaces));
        parse(&text(&long)).unwrap();
        assert!(refused(&(long + " ")).contains("has more than"));
    }
}
