//! What sources do to followers: they prove a repository, they fail, and they send other bytes than the
//! one before.

use super::Progress;
use super::state::Phase;
use crate::download::DownloadError;
use crate::oci::RangeSet;

/// What has to be compared when a download begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::download) enum Given {
    /// Some followers have bytes that can be compared.
    Some,
    Nothing,
}

impl Progress {
    /// The upstream has said that a member's repository has the blob: its followers may have it.
    pub(in crate::download) fn prove(&self, member: u64) {
        self.change(|state| {
            if !state.members.proved.contains(&member) {
                state.members.proved.push(member);
            }
        });
    }

    pub(in crate::download) fn is_proved(&self, member: u64) -> bool {
        self.state().members.proved.contains(&member)
    }

    /// Whether the download has failed for a member.
    pub(in crate::download) fn has_failed(&self, member: u64) -> bool {
        matches!(self.ended(member), Some(Err(_)))
    }

    /// The blob's length as it was announced, for a member that is proved.
    pub(in crate::download) fn announced_size(&self, member: u64) -> Option<u64> {
        let state = self.state();
        let open = matches!(state.phase, Phase::Streaming | Phase::Verified);
        let admitted = open && state.members.admits(member).unwrap_or(false);
        state.total.filter(|_| admitted)
    }

    /// The source of a member has failed. Its followers are told so at once if it isn't proved,
    /// otherwise when all sources have failed.
    pub(in crate::download) fn source_failed(&self, member: u64, error: DownloadError) {
        self.change(|state| {
            state.members.failures.insert(member, error);
        });
    }

    /// A member has no followers any more.
    pub(in crate::download) fn forget_member(&self, member: u64) {
        self.state().members.failures.remove(&member);
    }

    /// No stream is about to bring anything.
    pub(in crate::download) fn clear_marks(&self) {
        self.state().marks.clear();
    }

    /// Begins anew: what has come is wrong, or may be. `known` is what of it can still be compared
    /// with what comes now. Followers go on as soon as all that they were given has come again, and
    /// was the same; those for which that can't be found out get the error.
    pub(in crate::download) fn restart(&self, known: &RangeSet, error: &DownloadError) -> Given {
        let mut given = Given::Nothing;
        self.change(|state| {
            for position in state.followers.values_mut() {
                if position.restarts(known, error) {
                    given = Given::Some;
                }
            }
            state.phase = Phase::Opening;
            state.total = None;
            state.reader = None;
            state.have = RangeSet::new();
            state.written = RangeSet::new();
            state.agreed = RangeSet::new();
            state.memory.clear();
            state.stored = true;
            state.lost = 0;
            state.marks.clear();
        });
        given
    }

    /// What has come again was compared with what was thrown away.
    pub(in crate::download) fn compared(
        &self,
        agreed: &RangeSet,
        differs: &RangeSet,
        error: &DownloadError,
    ) {
        if agreed.is_empty() && differs.is_empty() {
            return;
        }
        self.change(|state| {
            for range in agreed.ranges() {
                state.agreed.insert(range.start, range.end);
            }
            for position in state.followers.values_mut() {
                position.compared(&state.agreed, differs, error);
            }
        });
    }

    /// Whether some follower waits until what it was given is found right or wrong.
    pub(in crate::download) fn is_comparing(&self) -> bool {
        let state = self.state();
        state.followers.values().any(|position| position.compares)
    }
}
