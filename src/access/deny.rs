//! The deny list: what nobody may pull, whatever the rules say. Entries come from the configuration,
//! and at run time from operators; those are saved in the data directory.
//!
//! An entry takes effect in memory first: a disk that fails must not delay it. It is removed from the
//! disk first: a removal that can't be saved doesn't happen.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use tokio::sync::Semaphore;

use super::entry::{MAX_ENTRIES, MAX_IMAGES, MAX_REASON};
use super::{DeniedEntry, DenyError, deny_file};
use crate::config::DenyConfig;
use crate::oci::{Digest, ImagePattern, Reference, RepoName};

/// What an entry denies.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Digest(Digest),
    Images(ImagePattern),
}

impl What {
    /// `repository@digest` means the digest, which is denied in every repository.
    fn parse(reference: &str) -> Result<Self, DenyError> {
        let invalid = || DenyError::Reference(reference.to_owned());
        let text = reference
            .rsplit_once('@')
            .map_or(reference, |(_, digest)| digest);
        if let Ok(digest) = text.parse() {
            return Ok(Self::Digest(digest));
        }
        let (name, tag) = reference.split_once(':').unwrap_or((reference, ""));
        let is_known = !name.bytes().any(|byte| byte.is_ascii_uppercase()) && !tag.contains('/');
        let pattern = reference.parse().ok().filter(|_| is_known);
        pattern.map(Self::Images).ok_or_else(invalid)
    }
}

#[derive(Debug, Default)]
struct Entries {
    digests: HashMap<Digest, Arc<DeniedEntry>>,
    images: Vec<(ImagePattern, Arc<DeniedEntry>)>,
}

impl Entries {
    fn len(&self) -> usize {
        self.digests.len() + self.images.len()
    }

    fn is_full(&self, what: &What) -> bool {
        let is_image = matches!(what, What::Images(_));
        self.len() >= MAX_ENTRIES || (is_image && self.images.len() >= MAX_IMAGES)
    }

    fn insert(&mut self, what: What, entry: DeniedEntry) {
        let entry = Arc::new(entry);
        match what {
            What::Digest(digest) => {
                self.digests.insert(digest, entry);
            }
            What::Images(pattern) => {
                self.images.retain(|(known, _)| *known != pattern);
                self.images.push((pattern, entry));
            }
        }
    }

    /// Adds the entries of the configuration.
    fn configure(&mut self, config: &DenyConfig) {
        let configured = |reference: String| DeniedEntry {
            reference,
            reason: None,
            added: None,
        };
        for digest in &config.digests {
            self.insert(What::Digest(*digest), configured(digest.to_string()));
        }
        for pattern in &config.images {
            self.insert(
                What::Images(pattern.clone()),
                configured(pattern.to_string()),
            );
        }
    }

    fn get(&self, what: &What) -> Option<&Arc<DeniedEntry>> {
        match what {
            What::Digest(digest) => self.digests.get(digest),
            What::Images(pattern) => {
                let mut images = self.images.iter();
                images.find_map(|(known, entry)| (known == pattern).then_some(entry))
            }
        }
    }

    fn remove(&mut self, what: &What) {
        match what {
            What::Digest(digest) => drop(self.digests.remove(digest)),
            What::Images(pattern) => self.images.retain(|(known, _)| known != pattern),
        }
    }

    /// Sorted.
    fn all(&self) -> Vec<DeniedEntry> {
        let images = self.images.iter().map(|(_, entry)| entry);
        let all = self.digests.values().chain(images);
        let mut all: Vec<_> = all.map(|entry| DeniedEntry::clone(entry)).collect();
        all.sort_by(|a, b| a.reference.cmp(&b.reference));
        all
    }
}

/// The deny list.
#[derive(Debug)]
pub struct DenyList {
    /// 0 while there has been no entry: then nothing is looked up. Grows with each change.
    generation: AtomicU64,
    entries: RwLock<Entries>,
    /// Where the entries of operators are saved; none for a mirror without a data directory.
    path: Option<PathBuf>,
    /// Orders changes: each saves what the one before it left.
    changing: Semaphore,
}

impl Default for DenyList {
    fn default() -> Self {
        Self {
            generation: AtomicU64::new(0),
            entries: RwLock::default(),
            path: None,
            changing: Semaphore::new(1),
        }
    }
}

impl DenyList {
    /// The list of the configuration, with what operators have added. Reads the file: a list that
    /// can't be read is an error, because serving without it could be worse than not serving.
    pub async fn open(config: &DenyConfig, path: Option<PathBuf>) -> Result<Self, DenyError> {
        let mut entries = Entries::default();
        if let Some(path) = path.clone() {
            for entry in blocking(move || deny_file::read(&path)).await? {
                entries.insert(What::parse(&entry.reference)?, entry);
            }
        }
        entries.configure(config);
        Ok(Self {
            generation: AtomicU64::new(u64::from(entries.len() > 0)),
            entries: RwLock::new(entries),
            path,
            changing: Semaphore::new(1),
        })
    }

    /// Replaces the entries of the configuration. What operators have added stays.
    pub fn configure(&self, config: &DenyConfig) {
        let mut entries = self.entries.write();
        entries.digests.retain(|_, entry| !entry.is_configured());
        entries.images.retain(|(_, entry)| !entry.is_configured());
        entries.configure(config);
        let is_empty = entries.len() == 0;
        drop(entries);
        if !is_empty || self.generation.load(Ordering::Acquire) > 0 {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// All entries, sorted.
    pub fn list(&self) -> Vec<DeniedEntry> {
        self.entries.read().all()
    }

    /// Adds an entry, or changes its reason. `added` is the time (RFC 3339).
    pub async fn add(
        &self,
        reference: &str,
        reason: Option<String>,
        added: String,
    ) -> Result<DeniedEntry, DenyError> {
        let what = What::parse(reference)?;
        if reason
            .as_ref()
            .is_some_and(|reason| reason.len() > MAX_REASON)
        {
            return Err(DenyError::Reason);
        }
        let reference = match &what {
            What::Digest(digest) => digest.to_string(),
            What::Images(pattern) => pattern.to_string(),
        };
        let entry = DeniedEntry {
            reference,
            // One line, whatever it is shown in.
            reason: reason.map(|reason| reason.replace(char::is_control, " ")),
            added: Some(added),
        };
        let _turn = self
            .changing
            .acquire()
            .await
            .map_err(|_closed| DenyError::Lost)?;
        {
            let mut entries = self.entries.write();
            match entries.get(&what) {
                Some(known) if known.is_configured() => {
                    return Err(DenyError::Configured(entry.reference));
                }
                None if entries.is_full(&what) => return Err(DenyError::Full),
                Some(_) | None => entries.insert(what, entry.clone()),
            }
        }
        self.generation.fetch_add(1, Ordering::Release);
        self.save(self.list()).await?;
        Ok(entry)
    }

    /// Removes an entry that an operator added.
    pub async fn remove(&self, reference: &str) -> Result<DeniedEntry, DenyError> {
        let what = What::parse(reference)?;
        let _turn = self
            .changing
            .acquire()
            .await
            .map_err(|_closed| DenyError::Lost)?;
        let removed = self
            .entries
            .read()
            .get(&what)
            .map(|entry| DeniedEntry::clone(entry));
        let removed = removed.ok_or_else(|| DenyError::Unknown(reference.to_owned()))?;
        if removed.is_configured() {
            return Err(DenyError::Configured(removed.reference));
        }
        let mut left = self.list();
        left.retain(|entry| *entry != removed);
        self.save(left).await?;
        self.entries.write().remove(&what);
        Ok(removed)
    }

    async fn save(&self, mut entries: Vec<DeniedEntry>) -> Result<(), DenyError> {
        let Some(path) = self.path.clone() else {
            return Ok(());
        };
        entries.retain(|entry| !entry.is_configured());
        blocking(move || deny_file::write(&path, &entries)).await
    }

    /// The entry for a digest.
    pub(super) fn of_digest(&self, digest: &Digest) -> Option<Arc<DeniedEntry>> {
        if self.generation.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.entries.read().digests.get(digest).cloned()
    }

    /// The entry for a repository, a tag of it, or the digest that a request names.
    pub(super) fn of_request(
        &self,
        repository: &RepoName,
        reference: Option<&Reference>,
    ) -> Option<Arc<DeniedEntry>> {
        if self.generation.load(Ordering::Acquire) == 0 {
            return None;
        }
        let entries = self.entries.read();
        let tag = match reference {
            Some(Reference::Digest(digest)) => {
                if let Some(entry) = entries.digests.get(digest) {
                    return Some(Arc::clone(entry));
                }
                None
            }
            Some(Reference::Tag(tag)) => Some(tag),
            None => None,
        };
        let mut images = entries.images.iter();
        images.find_map(|(pattern, entry)| {
            let is_tag = tag.is_some_and(|tag| pattern.is_tag(repository, tag));
            (is_tag || pattern.is_repository(repository)).then(|| Arc::clone(entry))
        })
    }
}

/// Looks after a response that is being sent: whether its content has been denied meanwhile.
#[derive(Debug)]
pub struct Watch {
    list: Arc<DenyList>,
    seen: u64,
    repository: RepoName,
    reference: Reference,
}

impl Watch {
    /// Of the content of a request that the list permitted.
    pub fn new(list: &Arc<DenyList>, repository: &RepoName, reference: Reference) -> Self {
        Self {
            // Not the current one: an entry may have been added since the request was checked.
            seen: 0,
            list: Arc::clone(list),
            repository: repository.clone(),
            reference,
        }
    }

    /// Whether the content is denied. Costs nothing while the list doesn't change.
    pub fn is_denied(&mut self) -> bool {
        let generation = self.list.generation.load(Ordering::Acquire);
        if generation == self.seen {
            return false;
        }
        let entry = self
            .list
            .of_request(&self.repository, Some(&self.reference));
        if entry.is_none() {
            self.seen = generation;
        }
        entry.is_some()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DenyError> + Send + 'static,
) -> Result<T, DenyError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(DenyError::Lost))
}
