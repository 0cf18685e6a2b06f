//! Other settings while the mirror runs.

use std::sync::Arc;

use super::Index;
use crate::cache::CacheSettings;

impl Index {
    pub(crate) fn settings(&self) -> &CacheSettings {
        &self.settings
    }

    /// Applies other settings. Entries keep their times to live until
    /// [`renew_ttls`](Self::renew_ttls) and [`renew_deadlines`](Self::renew_deadlines) have seen them.
    pub(crate) fn configure(&mut self, settings: Arc<CacheSettings>) {
        self.space.configure(&settings);
        self.settings = settings;
        // What is past the new limits is evicted; downloads may fit into them.
        self.wake_ups.schedule = true;
        self.wake_ups.freed = true;
    }

    /// Whether a page of repositories has one with entries whose name begins with this component, and
    /// where the next page begins.
    pub(crate) fn has_repositories_under(
        &self,
        name: &str,
        from: usize,
        max: usize,
    ) -> (bool, Option<usize>) {
        let (page, next) = self.repos.page(from, max);
        let found = page.into_iter().any(|id| {
            let repo = self.repos.get(id);
            repo.entries > 0 && repo.name.first_component() == Some(name)
        });
        (found, next)
    }

    /// Gives a page of repositories the times to live of the settings. Returns where the next page
    /// begins.
    pub(crate) fn renew_ttls(&mut self, from: usize, max: usize) -> Option<usize> {
        let (page, next) = self.repos.page(from, max);
        for id in page {
            let repo = self.repos.get(id);
            if repo.hosted.is_none() {
                let ttl = self.settings.ttl.ttl(&repo.name);
                self.repos.get_mut(id).ttl = ttl;
            }
        }
        next
    }

    /// Puts a page of entries at the deadlines that their times to live give. Returns where the next
    /// page begins.
    pub(crate) fn renew_deadlines(&mut self, from: usize, max: usize) -> Option<usize> {
        let (page, next) = self.entries.page(from, max);
        for id in page {
            let entry = self.entries.get(id);
            if self.is_hosted(entry) {
                let blob = entry.blob;
                self.rank_again(blob);
            }
            let entry = self.entries.get(id);
            // What has expired is being deleted.
            if entry.state.is_marked() {
                continue;
            }
            if let Some(at) = self.deadline(entry) {
                self.schedule(id, at);
            } else {
                let slot = &mut self.entries.get_mut(id).deadline;
                self.deadlines.remove(id, slot);
            }
        }
        next
    }
}
