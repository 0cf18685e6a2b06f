//! The registry of running downloads: orders joining, leading, leaving, changing the source, pausing
//! and committing.
//!
//! A download belongs to one upstream. Each repository that joins is a member and brings a source of
//! its own; where an upstream is asked with the accounts of callers, each account is a member. A member is proved once the upstream has confirmed that its repository has the blob; only
//! proved members are linked to the blob. Sources are tried in the order in which members joined.
//!
//! This file only synchronises: `tests/interleavings` compiles it a second time, with locks that
//! explore thousands of orders of events.

use std::collections::HashMap;

use super::sync::{Arc, Mutex, MutexGuard, PoisonError};
use crate::oci::Digest;

/// The running downloads by digest and upstream.
#[derive(Debug)]
pub(super) struct Registry<T, S, K>(Mutex<RegistryState<T, S, K>>);

#[derive(Debug)]
struct RegistryState<T, S, K> {
    /// At most one for each upstream.
    downloads: HashMap<Digest, Vec<Entry<T, S, K>>>,
    next_id: u64,
}

#[derive(Debug)]
struct Entry<T, S, K> {
    id: u64,
    upstream: Arc<str>,
    download: T,
    clients: usize,
    /// Whether it continues without clients.
    standing: bool,
    /// None once the commit has begun.
    members: Option<Vec<Member<S, K>>>,
    next_member: u64,
}

/// A repository that takes part in a download, by one account.
#[derive(Debug)]
struct Member<S, K> {
    id: u64,
    party: K,
    source: S,
    clients: usize,
    /// Whether the upstream has confirmed that the repository has the blob.
    proved: bool,
    /// Whether its source has been tried.
    tried: bool,
    /// Whether its source failed before it was proved. The member stays until its clients have left.
    dead: bool,
}

/// The result of joining.
#[derive(Debug)]
pub(super) enum Role<T> {
    /// The download is new. The caller starts its task with its own source.
    Lead(Seat<T>),
    Follow(Seat<T>),
    /// It is being committed: the store has the blob, unless the file was removed since.
    Committed {
        id: u64,
    },
}

/// A client's membership in a download.
#[derive(Debug)]
pub(super) struct Seat<T> {
    pub(super) download: T,
    /// The member that the client belongs to.
    pub(super) member: u64,
    /// Whether the upstream hasn't been asked yet if the repository has the blob.
    pub(super) needs_proof: bool,
}

impl<T: Clone, S: Clone, K: Clone + PartialEq> Registry<T, S, K> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(RegistryState {
            downloads: HashMap::new(),
            next_id: 0,
        }))
    }

    fn state(&self) -> MutexGuard<'_, RegistryState<T, S, K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_running(&self, upstream: &str, digest: &Digest) -> bool {
        self.state().find(upstream, digest).is_some()
    }

    /// Adds a client, if the download runs and the repository is proved or its source is in use.
    pub(super) fn follow(&self, upstream: &str, digest: &Digest, party: &K) -> Option<Seat<T>> {
        let mut state = self.state();
        let entry = state.find(upstream, digest)?;
        if entry.member_of(party)?.needs_proof() {
            return None;
        }
        entry.seat(party)
    }

    /// The download, if it runs and `party` is a member of it, with the member's id.
    #[cfg_attr(test, allow(dead_code, reason = "`interleavings` doesn't need it"))]
    pub(super) fn peek(&self, upstream: &str, digest: &Digest, party: &K) -> Option<(T, u64)> {
        let mut state = self.state();
        let entry = state.find(upstream, digest)?;
        let member = entry.member_of(party)?.id;
        Some((entry.download.clone(), member))
    }

    /// Adds a client. `make` creates the download when there is none, from its id. `source` is used
    /// when the repository is a new member.
    pub(super) fn join(
        &self,
        upstream: &str,
        digest: Digest,
        party: &K,
        source: S,
        make: impl FnOnce(u64) -> T,
    ) -> Role<T> {
        let mut state = self.state();
        let Some(entry) = state.find(upstream, &digest) else {
            return Role::Lead(state.insert(upstream, digest, party, source, false, make));
        };
        if entry.member_of(party).is_none() {
            entry.add(party, source);
        }
        let committed = Role::Committed { id: entry.id };
        entry.seat(party).map_or(committed, Role::Follow)
    }

    /// Adds a download without clients. None when one is running.
    pub(super) fn stand(
        &self,
        upstream: &str,
        digest: Digest,
        party: &K,
        source: S,
        make: impl FnOnce(u64) -> T,
    ) -> Option<Seat<T>> {
        let mut state = self.state();
        let runs = state.find(upstream, &digest).is_some();
        (!runs).then(|| state.insert(upstream, digest, party, source, true, make))
    }

    /// From now on the download continues for its clients only.
    pub(super) fn stand_no_more(&self, digest: &Digest, id: u64) {
        if let Some(entry) = self.state().entry(digest, id) {
            entry.standing = false;
        }
    }

    /// The upstream has confirmed that a member's repository has the blob. False when the download has
    /// ended, or when its commit has begun without this member.
    pub(super) fn prove(&self, digest: &Digest, id: u64, member: u64) -> bool {
        let mut state = self.state();
        let member = state
            .entry(digest, id)
            .and_then(|entry| entry.member(member));
        member.is_some_and(|member| {
            member.proved |= !member.dead;
            member.proved
        })
    }

    /// The source of a member has failed: returns the next member to try. None when there is none;
    /// the download is then forgotten, and later clients start a new one.
    pub(super) fn next_source(&self, digest: &Digest, id: u64, failed: u64) -> Option<(u64, S)> {
        let mut state = self.state();
        let entry = state.entry(digest, id)?;
        if let Some(failed) = entry.member(failed) {
            failed.dead = !failed.proved;
        }
        let next =
            entry.members.iter_mut().flatten().find(|member| {
                !member.tried && !member.dead && (member.proved || member.clients > 0)
            });
        if let Some(next) = next {
            next.tried = true;
            return Some((next.id, next.source.clone()));
        }
        state.remove(digest, id);
        None
    }

    /// Removes a client. True when its member was removed, too.
    pub(super) fn leave(&self, digest: &Digest, id: u64, member: u64) -> bool {
        let mut state = self.state();
        let Some(entry) = state.entry(digest, id) else {
            return false;
        };
        entry.clients = entry.clients.saturating_sub(1);
        let Some(member) = entry.member(member) else {
            return false;
        };
        member.clients = member.clients.saturating_sub(1);
        let id = member.id;
        let useless = member.clients == 0 && (member.dead || member.needs_proof());
        if useless && let Some(members) = &mut entry.members {
            members.retain(|other| other.id != id);
        }
        useless
    }

    /// Whether the download has no clients and need not continue.
    pub(super) fn is_abandoned(&self, digest: &Digest, id: u64) -> bool {
        self.state()
            .entry(digest, id)
            .is_some_and(|entry| entry.is_abandoned())
    }

    /// Whether the download has clients.
    pub(super) fn has_clients(&self, digest: &Digest, id: u64) -> bool {
        self.state()
            .entry(digest, id)
            .is_some_and(|entry| entry.clients > 0)
    }

    /// Forgets the download if it is abandoned. False when a client has joined meanwhile: it must
    /// continue.
    pub(super) fn close(&self, digest: &Digest, id: u64) -> bool {
        let mut state = self.state();
        let abandoned = state
            .entry(digest, id)
            .is_some_and(|entry| entry.is_abandoned());
        if abandoned {
            state.remove(digest, id);
        }
        abandoned
    }

    /// A proved member, before the commit.
    #[cfg_attr(test, allow(dead_code, reason = "`interleavings` doesn't need it"))]
    pub(super) fn proved(&self, digest: &Digest, id: u64) -> Option<K> {
        let mut state = self.state();
        let members = state.entry(digest, id)?.members.as_ref()?;
        let proved = members.iter().find(|member| member.proved);
        proved.map(|member| member.party.clone())
    }

    /// The blob is committed: no client can join any more. Returns the members whose repositories to
    /// link it into: the proved ones.
    pub(super) fn committed(&self, digest: &Digest, id: u64) -> Vec<K> {
        let mut state = self.state();
        let entry = state.entry(digest, id);
        let members = entry.and_then(|entry| entry.members.take());
        let proved = members.into_iter().flatten().filter(|member| member.proved);
        proved.map(|member| member.party).collect()
    }

    /// Forgets the download, unless another one has taken its place.
    pub(super) fn forget(&self, digest: &Digest, id: u64) {
        self.state().remove(digest, id);
    }
}

impl<T: Clone, S, K: Clone> RegistryState<T, S, K> {
    fn insert(
        &mut self,
        upstream: &str,
        digest: Digest,
        party: &K,
        source: S,
        standing: bool,
        make: impl FnOnce(u64) -> T,
    ) -> Seat<T> {
        let id = self.next_id;
        self.next_id += 1;
        let download = make(id);
        let clients = usize::from(!standing);
        let leader = Member {
            clients,
            tried: true,
            ..Member::new(0, party, source)
        };
        let entry = Entry {
            id,
            upstream: upstream.into(),
            download: download.clone(),
            clients,
            standing,
            members: Some(vec![leader]),
            next_member: 1,
        };
        self.downloads.entry(digest).or_default().push(entry);
        Seat {
            download,
            member: 0,
            needs_proof: false,
        }
    }
}

impl<T, S, K> RegistryState<T, S, K> {
    fn find(&mut self, upstream: &str, digest: &Digest) -> Option<&mut Entry<T, S, K>> {
        let entries = self.downloads.get_mut(digest)?;
        entries
            .iter_mut()
            .find(|entry| *entry.upstream == *upstream)
    }

    fn entry(&mut self, digest: &Digest, id: u64) -> Option<&mut Entry<T, S, K>> {
        let entries = self.downloads.get_mut(digest)?;
        entries.iter_mut().find(|entry| entry.id == id)
    }

    fn remove(&mut self, digest: &Digest, id: u64) {
        if let Some(entries) = self.downloads.get_mut(digest) {
            entries.retain(|entry| entry.id != id);
            if entries.is_empty() {
                self.downloads.remove(digest);
            }
        }
    }
}

impl<T, S, K: Clone + PartialEq> Entry<T, S, K> {
    fn is_abandoned(&self) -> bool {
        self.clients == 0 && !self.standing && self.members.is_some()
    }

    fn member(&mut self, id: u64) -> Option<&mut Member<S, K>> {
        let mut members = self.members.iter_mut().flatten();
        members.find(|member| member.id == id)
    }

    fn member_of(&mut self, party: &K) -> Option<&mut Member<S, K>> {
        let mut members = self.members.iter_mut().flatten();
        members.find(|member| !member.dead && member.party == *party)
    }

    /// Adds a member, unless the commit has begun.
    fn add(&mut self, party: &K, source: S) {
        if let Some(members) = &mut self.members {
            members.push(Member::new(self.next_member, party, source));
            self.next_member += 1;
        }
    }

    /// Adds a client of a repository. None when that is no member.
    fn seat(&mut self, party: &K) -> Option<Seat<T>>
    where
        T: Clone,
    {
        let member = self.member_of(party)?;
        member.clients += 1;
        let (member, needs_proof) = (member.id, member.needs_proof());
        self.clients += 1;
        Some(Seat {
            download: self.download.clone(),
            member,
            needs_proof,
        })
    }
}

impl<S, K: Clone> Member<S, K> {
    fn new(id: u64, party: &K, source: S) -> Self {
        Self {
            id,
            party: party.clone(),
            source,
            clients: 0,
            proved: false,
            tried: false,
            dead: false,
        }
    }

    fn needs_proof(&self) -> bool {
        !self.proved && !self.tried
    }
}
