//! Effects of sources on followers: a source proves its repository, fails, or sends bytes that differ
//! from the previous source's.

use super::Progress;
use super::state::{Phase, ProgressState};
use crate::download::DownloadError;
use crate::oci::RangeSet;

impl Progress {
    /// The upstream has confirmed that a member's repository has the blob: its followers may read.
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

    /// The announced size, for a member that is proved.
    pub(in crate::download) fn announced_size(&self, member: u64) -> Option<u64> {
        let state = self.state();
        let open = matches!(state.phase, Phase::Streaming | Phase::Verified);
        let admitted = open && state.members.admits(member).unwrap_or(false);
        state.total.filter(|_| admitted)
    }

    /// The source of a member has failed. Followers of an unproved member get the error at once, those
    /// of a proved one when all sources have failed.
    pub(in crate::download) fn source_failed(&self, member: u64, error: DownloadError) {
        self.change(|state| {
            state.members.failures.insert(member, error);
        });
    }

    /// Forgets a member without followers.
    pub(in crate::download) fn forget_member(&self, member: u64) {
        self.state().members.failures.remove(&member);
    }

    /// Records that no stream is open.
    pub(in crate::download) fn clear_marks(&self) {
        self.state().marks.clear();
    }

    /// Starts again, because the published bytes are or may be wrong. `known` are those that can still
    /// be compared. A follower continues once all bytes that it has received have arrived again and
    /// are equal; one whose bytes can't be compared gets the error.
    pub(in crate::download) fn restart(&self, known: &RangeSet, error: &DownloadError) {
        self.change(|state| {
            let old = std::mem::take(state);
            *state = ProgressState {
                given: old.given,
                followers: old.followers,
                next: old.next,
                verified_first: old.verified_first,
                members: old.members,
                ..ProgressState::default()
            };
            for position in state.followers.values_mut() {
                position.restarts(known, error);
            }
        });
    }

    /// Takes the result of comparing new bytes with the discarded ones.
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
            state.agreed.extend(agreed);
            for position in state.followers.values_mut() {
                position.compared(&state.agreed, differs, error);
            }
        });
    }

    /// Whether a follower waits for the comparison of its bytes.
    pub(in crate::download) fn is_comparing(&self) -> bool {
        let state = self.state();
        state.followers.values().any(|position| position.compares)
    }
}
