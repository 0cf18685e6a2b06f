//! The replicas that share the work, and who of them owns what.

use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

/// Replicas at most. A score costs about 0.2 µs for each of them and question.
pub const MAX_MEMBERS: usize = 64;
/// Members that are asked in turn before a replica asks the upstream itself.
pub const MAX_ASKED: usize = 2;

/// The replicas, by the texts that all of them know them by: `host:port`, in the form of the list in the
/// configuration, or of a socket address (`10.0.0.1:5000`, `[::1]:5000`) where DNS names them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// Sorted, and each once.
    names: Vec<Arc<str>>,
    /// This replica's own, which need not be among them.
    own: Option<Arc<str>>,
}

impl Members {
    /// `own` is this replica's entry, where that is known.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>, own: Option<&str>) -> Self {
        let mut names: Vec<Arc<str>> = names.into_iter().map(Arc::from).collect();
        names.sort_unstable();
        names.dedup();
        Self {
            names,
            own: own.map(Arc::from),
        }
    }

    /// The members by an answer of DNS, and how many of its addresses don't count: all but the lowest
    /// [`MAX_MEMBERS`]. None where the answer is empty: the last known members stay.
    pub fn resolved(mut addresses: Vec<SocketAddr>, own: Option<&str>) -> Option<(Self, usize)> {
        addresses.sort_unstable();
        addresses.dedup();
        let left_out = addresses.len().saturating_sub(MAX_MEMBERS);
        addresses.truncate(MAX_MEMBERS);
        let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let members = Self::new(names.iter().map(String::as_str), own);
        (!members.names.is_empty()).then_some((members, left_out))
    }

    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// The other replicas.
    pub fn others(&self) -> impl Iterator<Item = &Arc<str>> {
        let own = self.own.as_ref();
        self.names.iter().filter(move |name| Some(*name) != own)
    }

    /// The members to ask about `key` before this replica asks the upstream itself, in this order: at most
    /// [`MAX_ASKED`], and none that come after this replica. Empty where this replica is the owner.
    pub fn ahead(&self, key: &str) -> Vec<Arc<str>> {
        let mut scored: Vec<_> = self
            .names
            .iter()
            .map(|name| (std::cmp::Reverse(score(name, key)), name))
            .collect();
        scored.sort_unstable();
        let names = scored.into_iter().map(|(_, name)| name);
        let ahead = names.take(MAX_ASKED);
        let ahead = ahead.take_while(|name| Some(*name) != self.own.as_ref());
        ahead.cloned().collect()
    }
}

/// The score of a member for a key: the first 8 bytes, most significant first, of the SHA-256 of the
/// member's name, a zero byte and the key. The member with the highest score owns the key; of equal ones,
/// the one whose name sorts first.
///
/// The key of content is its digest (`sha256:...`); that of a tag is the upstream's name, a slash, the
/// repository's name at the upstream, a colon and the tag. All replicas have to compute the same, so this
/// can't change between versions that run beside each other.
pub fn score(member: &str, key: &str) -> u64 {
    let hash = digest(&SHA256, &[member.as_bytes(), &[0], key.as_bytes()].concat());
    let first = hash.as_ref().first_chunk().copied();
    // A SHA-256 has 32 bytes.
    u64::from_be_bytes(first.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::oci::{Algorithm, Digest};

    const THREE: [&str; 3] = ["10.0.0.1:5000", "10.0.0.2:5000", "10.0.0.3:5000"];

    fn keys() -> impl Iterator<Item = String> {
        (0..3_000)
            .map(|number| Digest::of(Algorithm::Sha256, format!("{number}").as_bytes()).to_string())
    }

    fn owner(names: &[&str], key: &str) -> Arc<str> {
        Arc::clone(
            Members::new(names.iter().copied(), None)
                .ahead(key)
                .first()
                .unwrap(),
        )
    }

    /// Replicas of different versions have to agree.
    #[test]
    fn scores_never_change() {
        for (member, key, expected) in [
            (
                "10.0.0.1:5000",
                "sha256:0000000000000000000000000000000000000000000000000000000000000000",
                0xc501_0955_1bd5_280f,
            ),
            (
                "10.0.0.2:5000",
                "sha256:0000000000000000000000000000000000000000000000000000000000000000",
                0xaf7c_b3d0_d2f5_5a99,
            ),
            (
                "[fd00::1]:5000",
                "docker.io/library/debian:bookworm",
                0xee49_eee1_9901_8a45,
            ),
        ] {
            assert_eq!(score(member, key), expected, "{member} {key}");
        }
    }

    #[test]
    fn an_owner_has_about_its_share_and_loses_little_to_a_new_member() {
        let four = [&THREE[..], &["10.0.0.4:5000"]].concat();
        let mut owned: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        for key in keys() {
            let (before, after) = (owner(&THREE, &key), owner(&four, &key));
            *owned.entry(Arc::clone(&before)).or_default() += 1;
            assert!(before == after || &*after == "10.0.0.4:5000");
        }
        assert!(
            owned.values().all(|count| (850..1_150).contains(count)),
            "{owned:?}"
        );
    }

    #[test]
    fn all_agree_on_the_order_and_nobody_asks_itself_or_those_behind_it() {
        for key in keys().take(100) {
            let order = Members::new(THREE, None).ahead(&key);
            assert_eq!(order.len(), MAX_ASKED);
            for own in THREE {
                let asked = Members::new(THREE, Some(own)).ahead(&key);
                let position = order.iter().position(|name| &**name == own);
                assert_eq!(asked, order[..position.unwrap_or(MAX_ASKED)]);
            }
        }
    }

    #[test]
    fn an_empty_answer_changes_nothing_and_a_long_one_is_cut_to_the_lowest() {
        assert_eq!(Members::resolved(Vec::new(), None), None);
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 5000));
        let (members, left_out) =
            Members::resolved((0..80).rev().map(address).collect(), None).unwrap();
        assert_eq!((members.names().len(), left_out), (MAX_MEMBERS, 16));
        let highest = address(63).to_string();
        assert!(members.names().iter().any(|name| **name == *highest));
        let twice = Members::resolved(vec![address(1), address(1)], None).unwrap();
        assert_eq!((twice.0.names().len(), twice.1), (1, 0));
    }
}
