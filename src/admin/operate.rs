//! What operators do to the cache: list, count, scrub, purge. One set of operations, for the running
//! server (over its admin socket) and for the command line when no server runs.
//!
//! Lists come in pages, so that a million images cost neither side the memory for all.

mod import;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use parking_lot::RwLock;
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use super::reload::{NotReloaded, ReloadReport, Reloads};
use crate::access::{Denials, DeniedEntry, DenyError};
use crate::cache::{
    Cache, EntryView, ImageView, LinkKind, NotReady, Pin, PinError, ScrubSettings, Selection,
    SelectionError, StoreError,
};
use crate::clock::Clock;
use crate::copy::import::ImportError;
use crate::copy::warm::{Event, WarmError, WarmRequest, Warmer};
use crate::error_chain::on_one_line;
use crate::log_levels::{LevelError, LevelInForce, LogLevels, Module, parse_level};
use crate::mirror::Mirror;
use crate::oci::Digest;
use crate::server::RequestBodyError;
use crate::upstream::{EndpointStatus, Upstream};
pub use import::{ImportOperation, Resolved};

/// An operation, and the type of its result.
#[derive(Debug, Serialize, Deserialize)]
pub enum Operation {
    /// The [`Image`]s: a [`Page`] from a position that the page before it named, or 0.
    Images(usize),
    /// The [`Entry`]s of everything that is linked, likewise.
    Entries(usize),
    /// The [`Leftovers`].
    Leftovers,
    /// Hashes every blob again: a [`ScrubReport`](crate::cache::ScrubReport).
    Scrub(ScrubSettings),
    /// Removes what a `repository`, `repository:tag` (patterns) or `repository@digest` selects: the
    /// [`Entry`]s of that.
    Purge { reference: String, dry_run: bool },
    /// A step of the import of a bundle.
    Import(ImportOperation),
    /// What is done about pins: the [`Pin`]s that it was done to.
    Pins(PinOperation),
    /// Denies a digest, a `repository` or a `repository:tag` (patterns) from now on: the
    /// [`DeniedEntry`].
    DenyAdd {
        reference: String,
        reason: Option<String>,
    },
    /// Removes an entry of the deny list: that entry.
    DenyRemove { reference: String },
    /// The entries of the deny list.
    DenyList,
    /// The [`EndpointStatus`] of each endpoint of each upstream.
    Upstreams,
    /// Sets the level of a module, or of all without one of their own, for some seconds or until the
    /// server ends: the [`LevelInForce`]s.
    LogLevelSet {
        module: Option<Module>,
        level: String,
        seconds: Option<u64>,
    },
    /// Returns to the configured levels: likewise.
    LogLevelReset,
    /// The levels in force.
    LogLevels,
    /// Reads the configuration again: a [`ReloadReport`].
    Reload,
    /// The server's own [`Status`].
    Status,
}

/// An operation on the pins that are made at run time.
#[derive(Debug, Serialize, Deserialize)]
pub enum PinOperation {
    /// All of them.
    List,
    /// Keeps what each reference selects (as for a purge) from eviction and expiry, for some seconds or
    /// until it is unpinned.
    Add {
        references: Vec<String>,
        seconds: Option<u64>,
    },
    /// Ends one.
    Remove { reference: String },
}

/// What a diagnosis compares with the configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The process's id.
    pub process: u32,
    /// Bytes of all cached files.
    pub used: u64,
    /// Bytes that may be used. None: as many as there are.
    pub limit: Option<u64>,
    /// Downloads since the start for which there was no space.
    pub full: u64,
    /// The most file descriptors that the process may have. None: no limit.
    pub descriptors: Option<u64>,
    /// Why the store can't be written, if it can't.
    pub store: Option<String>,
}

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
    /// When the pin ends, in RFC 3339; none is never.
    pub pinned_until: Option<String>,
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

/// What pushes to the reference registry left in the directory a week ago or longer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Leftovers {
    pub uploads: u64,
    pub bytes: u64,
}

/// Carries out operations.
#[derive(Debug, Clone)]
pub struct Operator {
    pub cache: Cache,
    pub denials: Denials,
    pub clock: Clock,
    /// None where no server runs.
    pub upstreams: Option<UpstreamList>,
    /// None without a server.
    pub levels: Option<Arc<LogLevels>>,
    /// None where no server runs.
    pub reloads: Option<Arc<Reloads>>,
    /// None where no server runs.
    pub mirror: Option<MirrorInUse>,
}

/// The clients of all upstreams, as they are at present.
pub type UpstreamList = Arc<RwLock<Vec<Arc<Upstream>>>>;

/// The mirror of the configuration in effect; none until the start is complete.
pub type MirrorInUse = Arc<RwLock<Option<Arc<Mirror>>>>;

/// Why an operation isn't carried out.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    #[error("the request isn't valid: {0}")]
    Request(#[from] serde_json::Error),
    #[error(transparent)]
    Body(#[from] RequestBodyError),
    #[error("{reference:?} selects nothing: {source}")]
    Selection {
        reference: String,
        source: SelectionError,
    },
    #[error("the blobs can't be listed: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error(transparent)]
    Deny(#[from] DenyError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Name(#[from] WarmError),
    #[error(transparent)]
    Level(#[from] LevelError),
    #[error("no server is running, and only a running server can do this")]
    NoServer,
    #[error(transparent)]
    NotReloaded(#[from] NotReloaded),
}

impl Operation {
    fn needs_index(&self) -> bool {
        match self {
            Self::Images(_)
            | Self::Entries(_)
            | Self::Scrub(_)
            | Self::Purge { .. }
            | Self::Import(_)
            | Self::Pins(_) => true,
            Self::Leftovers
            | Self::DenyAdd { .. }
            | Self::DenyRemove { .. }
            | Self::DenyList
            | Self::Upstreams
            | Self::LogLevelSet { .. }
            | Self::LogLevelReset
            | Self::LogLevels
            | Self::Status
            | Self::Reload => false,
        }
    }
}

impl Operator {
    /// Carries out an operation. Returns its result as JSON.
    pub async fn run(&self, operation: Operation) -> Result<Vec<u8>, OperateError> {
        if operation.needs_index() {
            self.cache.ready().await?;
        }
        let json = match operation {
            Operation::Images(from) => {
                let (views, next) = self.cache.images(from);
                let items: Vec<_> = views.iter().map(image).collect();
                serde_json::to_vec(&Page { items, next })
            }
            Operation::Entries(from) => {
                let (views, next) = self.cache.entries(from);
                let items: Vec<_> = views.iter().map(entry).collect();
                serde_json::to_vec(&Page { items, next })
            }
            Operation::Leftovers => {
                let uploads = self.cache.abandoned_uploads().await?;
                serde_json::to_vec(&Leftovers {
                    uploads: uploads.len() as u64,
                    bytes: uploads.iter().map(|upload| upload.bytes).sum(),
                })
            }
            Operation::Scrub(settings) => serde_json::to_vec(&self.cache.scrub(settings).await?),
            Operation::Purge { reference, dry_run } => {
                serde_json::to_vec(&self.purge(reference, dry_run).await?)
            }
            Operation::Import(operation) => return Box::pin(self.import(operation)).await,
            Operation::Pins(operation) => serde_json::to_vec(&self.pins(operation).await?),
            Operation::DenyAdd { reference, reason } => {
                serde_json::to_vec(&self.deny(&reference, reason).await?)
            }
            Operation::DenyRemove { reference } => {
                let removed = self.denials.remove(&reference).await?;
                tracing::warn!(reference = removed.reference, "no longer denied");
                serde_json::to_vec(&removed)
            }
            Operation::DenyList => serde_json::to_vec(&self.denials.list()),
            Operation::Upstreams => {
                let upstreams = self.upstreams.as_ref().ok_or(OperateError::NoServer)?;
                let upstreams = upstreams.read().clone();
                let status = upstreams.iter().flat_map(|upstream| upstream.status());
                serde_json::to_vec(&status.collect::<Vec<EndpointStatus>>())
            }
            Operation::LogLevelSet {
                module,
                level,
                seconds,
            } => serde_json::to_vec(&self.set_level(module, &level, seconds)?),
            Operation::LogLevelReset => serde_json::to_vec(&self.reset_levels()?),
            Operation::LogLevels => serde_json::to_vec(&self.levels()?.list()),
            Operation::Status => serde_json::to_vec(&self.status().await),
            Operation::Reload => serde_json::to_vec(&self.reload().await?),
        };
        Ok(json?)
    }

    /// Fetches images ahead of clients, while the events are taken.
    pub async fn warm(
        &self,
        request: WarmRequest,
    ) -> Result<impl Stream<Item = Event> + Send + use<>, OperateError> {
        self.cache.ready().await?;
        let warmer = self.warmer()?;
        let (images, check) = (request.images.len(), request.check);
        tracing::info!(images, check, "an operator has images fetched");
        Ok(warmer.warm(request))
    }

    /// What finds and fetches images.
    fn warmer(&self) -> Result<Warmer, OperateError> {
        let mirror = self
            .mirror
            .as_ref()
            .and_then(|mirror| mirror.read().clone());
        Ok(Warmer {
            mirror: mirror.ok_or(OperateError::NoServer)?,
            cache: self.cache.clone(),
        })
    }

    async fn pins(&self, operation: PinOperation) -> Result<Vec<Pin>, PinError> {
        match operation {
            PinOperation::List => Ok(self.cache.pins()),
            PinOperation::Add {
                references,
                seconds,
            } => {
                let lasting = seconds.map(Duration::from_secs);
                let pins = self.cache.pin(references, lasting).await?;
                for pin in &pins {
                    let (reference, until) = (&pin.reference, &pin.until);
                    tracing::info!(reference, until, "pinned by an operator");
                }
                Ok(pins)
            }
            PinOperation::Remove { reference } => {
                let ended = self.cache.unpin(reference).await?;
                tracing::info!(reference = ended.reference, "unpinned by an operator");
                Ok(vec![ended])
            }
        }
    }

    async fn deny(
        &self,
        reference: &str,
        reason: Option<String>,
    ) -> Result<DeniedEntry, DenyError> {
        let added = time(self.clock.wall());
        let added = self.denials.add(reference, reason, added).await?;
        tracing::warn!(reference = added.reference, "denied by an operator");
        Ok(added)
    }

    fn set_level(
        &self,
        module: Option<Module>,
        level: &str,
        seconds: Option<u64>,
    ) -> Result<Vec<LevelInForce>, OperateError> {
        let levels = self.levels()?;
        let parsed = parse_level(level)?;
        tracing::warn!(
            module = module.as_ref().map(tracing::field::display),
            level,
            seconds,
            "log level changed by an operator"
        );
        levels.set(module, parsed, seconds.map(Duration::from_secs));
        Ok(levels.list())
    }

    fn reset_levels(&self) -> Result<Vec<LevelInForce>, OperateError> {
        let levels = self.levels()?;
        let changed = levels.reset();
        tracing::warn!(changed, "log levels reset by an operator");
        Ok(levels.list())
    }

    fn levels(&self) -> Result<&LogLevels, OperateError> {
        self.levels.as_deref().ok_or(OperateError::NoServer)
    }

    async fn reload(&self) -> Result<ReloadReport, NotReloaded> {
        let reloads = self.reloads.as_ref().ok_or(NotReloaded)?;
        reloads.request().await
    }

    async fn status(&self) -> Status {
        let (usage, counts) = (self.cache.usage(), self.cache.counts());
        let store = self.cache.check_store().await;
        Status {
            process: std::process::id(),
            used: usage.used,
            limit: usage.limit,
            full: counts.full,
            descriptors: getrlimit(Resource::Nofile).current,
            store: store.err().map(|error| on_one_line(&error)),
        }
    }

    async fn purge(&self, reference: String, dry_run: bool) -> Result<Vec<Entry>, OperateError> {
        let selection: Selection = match reference.parse() {
            Ok(selection) => selection,
            Err(source) => return Err(OperateError::Selection { reference, source }),
        };
        let purged = self.cache.purge(&selection, dry_run).await;
        if !dry_run {
            tracing::info!(reference, links = purged.len(), "purged");
        }
        Ok(purged.iter().map(entry).collect())
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
        pinned_until: view.pinned_until.map(time),
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
