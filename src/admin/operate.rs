//! What operators do to the cache: list, count, purge. One set of functions, for the running server
//! (over its admin socket) and for the command line when no server runs.
//!
//! Lists come in pages, so that a million images cost neither side the memory for all.

use std::num::NonZeroU64;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::cache::{
    Cache, EntryView, Finding, ImageView, NotReady, Removal, ScrubSettings, Selection, Verdict,
};
use crate::cache::{LinkKind, StoreError};
use crate::oci::Digest;

/// A page, and where the next one begins.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<usize>,
}

/// An image: a manifest that no other refers to, or a blob that no manifest refers to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Image {
    /// `repository:tag`, or `repository@digest` where no tag names it.
    pub names: Vec<String>,
    pub digest: Digest,
    /// `image` or `blob`.
    pub kind: String,
    /// Bytes of everything that belongs to it.
    pub size: u64,
    /// Of these, bytes that other images need, too.
    pub shared: u64,
    /// RFC 3339.
    pub last_use: String,
    /// RFC 3339; none is never.
    pub expiry: Option<String>,
    pub pinned: bool,
}

/// A blob or manifest in one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub repository: String,
    /// `manifest` or `blob`.
    pub kind: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// What to purge.
#[derive(Debug, Serialize, Deserialize)]
pub struct Purge {
    /// `repository`, `repository:tag` (patterns), or `repository@digest`.
    pub reference: String,
    #[serde(default)]
    pub dry_run: bool,
}

/// How to scrub.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Scrub {
    /// Sets corrupt blobs aside.
    #[serde(default)]
    pub repair: bool,
    /// Bytes a second; none is as fast as the disk allows.
    pub rate: Option<NonZeroU64>,
}

/// What a scrub found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Scrubbed {
    /// Blobs that were hashed.
    pub checked: u64,
    pub bytes: u64,
    pub corrupt: u64,
    /// Of these, blobs that were quarantined.
    pub quarantined: u64,
    /// Blobs that couldn't be read.
    pub failed: u64,
    /// The first of those that are corrupt or failed.
    pub findings: Vec<Found>,
    pub leftovers: Leftovers,
    /// Links, tags and directories that can't be read.
    pub unreadable: Vec<UnreadablePath>,
}

/// What pushes to the reference registry left in the directory a week ago or longer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Leftovers {
    pub uploads: u64,
    pub bytes: u64,
}

/// A link, tag or directory that can't be read.
#[derive(Debug, Serialize, Deserialize)]
pub struct UnreadablePath {
    pub path: String,
    /// None when it has been removed, else why it is still there.
    pub failure: Option<String>,
}

/// A blob that isn't what its digest says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    pub digest: Digest,
    /// Bytes of its file.
    pub size: u64,
    /// `corrupt`, `quarantined`, or why it can't be read.
    pub verdict: String,
}

/// The operations.
#[derive(Debug, Clone)]
pub struct Operator {
    cache: Cache,
}

/// Why an operation isn't carried out.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    #[error("{reference:?} selects nothing: {reason}")]
    Selection { reference: String, reason: String },
    #[error("the blobs can't be listed: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    NotReady(#[from] NotReady),
}

impl Operator {
    pub fn new(cache: Cache) -> Self {
        Self { cache }
    }

    /// A page of images, from a position that a page before it named, or 0.
    pub async fn images(&self, from: usize) -> Result<Page<Image>, OperateError> {
        self.cache.ready().await?;
        let (views, next) = self.cache.images(from);
        Ok(Page {
            items: views.iter().map(image).collect(),
            next,
        })
    }

    /// A page of everything that is linked, likewise.
    pub async fn entries(&self, from: usize) -> Result<Page<Entry>, OperateError> {
        self.cache.ready().await?;
        let (views, next) = self.cache.entries(from);
        Ok(Page {
            items: views.iter().map(entry).collect(),
            next,
        })
    }

    /// What pushes to the reference registry left in the directory a week ago or longer.
    pub async fn leftovers(&self) -> Result<Leftovers, OperateError> {
        let uploads = self.cache.abandoned_uploads().await?;
        Ok(Leftovers {
            uploads: uploads.len() as u64,
            bytes: uploads.iter().map(|upload| upload.bytes).sum(),
        })
    }

    /// Hashes every blob anew.
    pub async fn scrub(&self, scrub: &Scrub) -> Result<Scrubbed, OperateError> {
        let settings = ScrubSettings {
            rate: scrub.rate,
            repair: scrub.repair,
        };
        self.cache.ready().await?;
        let report = self.cache.scrub(settings).await?;
        Ok(Scrubbed {
            checked: report.checked,
            bytes: report.bytes,
            corrupt: report.corrupt,
            quarantined: report.quarantined,
            failed: report.failed,
            findings: report.findings.iter().map(found).collect(),
            leftovers: Leftovers {
                uploads: report.uploads,
                bytes: report.upload_bytes,
            },
            unreadable: report.unreadable.iter().map(unreadable).collect(),
        })
    }

    /// Removes what is selected, and answers what that was.
    pub async fn purge(&self, purge: &Purge) -> Result<Vec<Entry>, OperateError> {
        let Purge { reference, dry_run } = purge;
        let selection: Selection =
            reference
                .parse()
                .map_err(
                    |error: crate::cache::SelectionError| OperateError::Selection {
                        reference: reference.clone(),
                        reason: error.to_string(),
                    },
                )?;
        self.cache.ready().await?;
        let purged = self.cache.purge(&selection, *dry_run).await;
        if !dry_run {
            tracing::info!(reference, links = purged.len(), "purged");
        }
        Ok(purged.iter().map(entry).collect())
    }
}

fn found(finding: &Finding) -> Found {
    Found {
        digest: finding.digest,
        size: finding.size,
        verdict: match &finding.verdict {
            Verdict::Corrupt => "corrupt".to_owned(),
            Verdict::Quarantined => "quarantined".to_owned(),
            Verdict::Failed(reason) => reason.clone(),
        },
    }
}

fn unreadable(removal: &Removal) -> UnreadablePath {
    UnreadablePath {
        path: removal.path.display().to_string(),
        failure: removal.failure.clone(),
    }
}

fn image(view: &ImageView) -> Image {
    let names = view.repositories.iter().flat_map(|(repo, tags)| {
        let untagged = tags.is_empty().then(|| format!("{repo}@{}", view.digest));
        tags.iter()
            .map(move |tag| format!("{repo}:{tag}"))
            .chain(untagged)
    });
    Image {
        names: names.collect(),
        digest: view.digest,
        kind: if view.is_manifest { "image" } else { "blob" }.to_owned(),
        size: view.size,
        shared: view.shared,
        last_use: time(view.last_use),
        expiry: view.expiry.map(time),
        pinned: view.pinned,
    }
}

fn entry(view: &EntryView) -> Entry {
    let kind = match view.link.kind {
        LinkKind::Layer => "blob",
        LinkKind::Revision => "manifest",
    };
    Entry {
        repository: view.link.repo.to_string(),
        kind: kind.to_owned(),
        digest: view.link.digest,
        size: view.size,
    }
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
