//! `ls`, `du`, `scrub` and `purge`: through the running server's admin socket, else on the data
//! directory itself.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::table::{Table, bytes};
use super::{load, print, print_json, say};
use crate::admin::operate::{
    Entry, Image, Leftovers, Operator, Page, Purge, Scrub, Scrubbed, UnreadablePath,
};
use crate::app;
use crate::cache::{Cache, CacheSettings, Upkeep};
use crate::clock::Clock;
use crate::config::{Config, Storage};
use crate::storage::{FsStore, Layout, Store, StoreError};
use crate::tasks::Tasks;

/// What runs the operations: the server, or this process.
enum Backend {
    Server(crate::admin::socket::Client),
    Own { operator: Operator, cache: Cache },
}

/// Runs one operation on the server, or on the data directory if no server runs.
fn with_backend<T>(
    config: Option<&Path>,
    operation: impl AsyncFnOnce(&mut Backend) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let config = load(config)?.config;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime
        .context("the runtime can't be started")?
        .block_on(async {
            let tasks = Tasks::new();
            let mut backend = Backend::open(&config, &tasks).await?;
            let result = operation(&mut backend).await;
            if let Backend::Own { cache, .. } = &backend {
                cache.stop().await;
            }
            result
        })
}

impl Backend {
    async fn open(config: &Config, tasks: &Tasks) -> anyhow::Result<Self> {
        let Storage::Filesystem { root, .. } = &config.storage else {
            anyhow::bail!("the content of storage.inmemory is only visible to the server itself");
        };
        let store: Arc<dyn Store> = match FsStore::inspect(root).await {
            Ok(store) => Arc::new(store),
            Err(StoreError::InUse { .. }) => {
                let path = Layout::new(root).admin_socket();
                let client = crate::admin::socket::Client::connect(&path, tasks.tracker()).await;
                return Ok(Self::Server(client.context(
                    "the data directory is in use, but no server answers at its admin socket",
                )?));
            }
            Err(error) => return Err(error.into()),
        };
        // Looking at the cache must not change anything in it.
        let settings = CacheSettings {
            max_size: None,
            min_free: None,
            upkeep: Upkeep::None,
            ..app::cache_settings(config)
        };
        let stop = CancellationToken::new();
        let cache = Cache::start(
            store,
            Arc::default(),
            Clock::system(),
            settings,
            tasks,
            &stop,
        );
        let operator = Operator::new(cache.clone());
        Ok(Self::Own { operator, cache })
    }

    /// Warns that no server can start meanwhile, if the command works on the data directory itself.
    fn tell_lock(&self, command: &str) {
        if matches!(self, Self::Own { .. }) {
            say(&format!(
                "millpond: no server is running; {command} holds the lock of the data directory until \
                 it ends, and a server can't start before that"
            ));
        }
    }

    async fn images(&mut self) -> anyhow::Result<Vec<Image>> {
        let (mut all, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let page: Page<Image> = match self {
                Self::Server(client) => client.get(&format!("/images?from={at}")).await?,
                Self::Own { operator, .. } => operator.images(at).await?,
            };
            all.extend(page.items);
            from = page.next;
        }
        Ok(all)
    }

    async fn entries(&mut self) -> anyhow::Result<Vec<Entry>> {
        let (mut all, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let page: Page<Entry> = match self {
                Self::Server(client) => client.get(&format!("/entries?from={at}")).await?,
                Self::Own { operator, .. } => operator.entries(at).await?,
            };
            all.extend(page.items);
            from = page.next;
        }
        Ok(all)
    }

    async fn scrub(&mut self, scrub: &Scrub) -> anyhow::Result<Scrubbed> {
        Ok(match self {
            Self::Server(client) => client.post("/scrub", scrub).await?,
            Self::Own { operator, .. } => operator.scrub(scrub).await?,
        })
    }

    async fn leftovers(&mut self) -> anyhow::Result<Leftovers> {
        Ok(match self {
            Self::Server(client) => client.get("/leftovers").await?,
            Self::Own { operator, .. } => operator.leftovers().await?,
        })
    }

    async fn purge(&mut self, purge: &Purge) -> anyhow::Result<Vec<Entry>> {
        Ok(match self {
            Self::Server(client) => client.post("/purge", purge).await?,
            Self::Own { operator, .. } => operator.purge(purge).await?,
        })
    }
}

/// `millpond ls`
pub(super) fn ls(config: Option<&Path>, as_json: bool) -> anyhow::Result<()> {
    let mut images = with_backend(config, async |backend| backend.images().await)?;
    images.sort_by(|a, b| a.names.cmp(&b.names));
    if as_json {
        return print_json(&json!({ "images": images }));
    }
    let mut table = Table::new(["IMAGE", "SIZE", "SHARED", "LAST USE", "EXPIRES", ""]);
    for image in &images {
        let expiry = image.expiry.clone().unwrap_or_else(|| "never".to_owned());
        let pinned = if image.pinned { "pinned" } else { "" };
        let names = image
            .names
            .first()
            .cloned()
            .unwrap_or_else(|| image.digest.to_string());
        table.row([
            names,
            bytes(image.size),
            bytes(image.shared),
            image.last_use.clone(),
            expiry,
            pinned.to_owned(),
        ]);
        for name in image.names.iter().skip(1) {
            table.row([
                name.clone(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ]);
        }
    }
    print(&table.to_string())
}

/// `millpond du`
pub(super) fn du(config: Option<&Path>, as_json: bool) -> anyhow::Result<()> {
    let (entries, leftovers) = with_backend(config, async |backend| {
        Ok((backend.entries().await?, backend.leftovers().await?))
    })?;
    let mut users: std::collections::HashMap<_, HashSet<&str>> = std::collections::HashMap::new();
    for entry in &entries {
        users
            .entry(entry.digest)
            .or_default()
            .insert(&entry.repository);
    }
    // Per repository: bytes, and of these bytes that other repositories have, too.
    let mut repositories: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let (mut total, mut seen) = (0, HashSet::new());
    let mut counted = HashSet::new();
    for entry in &entries {
        if !counted.insert((entry.repository.as_str(), entry.digest)) {
            continue;
        }
        let (size, shared) = repositories.entry(&entry.repository).or_default();
        *size += entry.size;
        if users
            .get(&entry.digest)
            .is_some_and(|users| users.len() > 1)
        {
            *shared += entry.size;
        }
        if seen.insert(entry.digest) {
            total += entry.size;
        }
    }
    total += leftovers.bytes;
    if as_json {
        let list = repositories.iter().map(|(repository, (size, shared))| {
            json!({ "repository": repository, "size": size, "shared": shared })
        });
        return print_json(&json!({
            "repositories": list.collect::<Vec<_>>(),
            "abandoned_uploads": leftovers,
            "total": total,
        }));
    }
    let mut table = Table::new(["REPOSITORY", "SIZE", "SHARED"]);
    for (repository, (size, shared)) in repositories {
        table.row([repository.to_owned(), bytes(size), bytes(shared)]);
    }
    if leftovers.uploads > 0 {
        let name = format!("({} abandoned uploads)", leftovers.uploads);
        table.row([name, bytes(leftovers.bytes), String::new()]);
    }
    table.row(["total".to_owned(), bytes(total), String::new()]);
    print(&table.to_string())
}

/// `millpond scrub`: an error if a corrupt blob was not quarantined.
pub(super) fn scrub(config: Option<&Path>, scrub: &Scrub) -> anyhow::Result<()> {
    let report = with_backend(config, async |backend| {
        backend.tell_lock("scrub");
        backend.scrub(scrub).await
    })?;
    let mut table = Table::new(["DIGEST", "SIZE", "VERDICT"]);
    for found in &report.findings {
        table.row([
            found.digest.to_string(),
            bytes(found.size),
            found.verdict.clone(),
        ]);
    }
    let found = if report.findings.is_empty() {
        String::new()
    } else {
        table.to_string()
    };
    let (checked, size) = (report.checked, bytes(report.bytes));
    let mut summary = format!(
        "{found}{checked} blobs, {size}: {} corrupt, {} set aside, {} unreadable\n",
        report.corrupt, report.quarantined, report.failed
    );
    let Leftovers { uploads, bytes: of } = &report.leftovers;
    if *uploads > 0 {
        let verb = if scrub.repair { "removed" } else { "found" };
        writeln!(
            summary,
            "{uploads} abandoned uploads, {}: {verb}",
            bytes(*of)
        )?;
    }
    for UnreadablePath { path, failure } in &report.unreadable {
        let verdict = failure.as_deref().unwrap_or("couldn't be read; removed");
        writeln!(summary, "{path}: {verdict}")?;
    }
    print(&summary)?;
    let unread = report.unreadable.iter();
    let unread = unread.filter(|path| path.failure.is_some()).count();
    anyhow::ensure!(
        unread == 0,
        "{unread} entries of the store can't be read; --repair removes links and tags"
    );
    let left = report.corrupt - report.quarantined + report.failed;
    anyhow::ensure!(
        left == 0,
        "{left} blobs are not what their digests say; --repair sets corrupt ones aside"
    );
    Ok(())
}

/// `millpond purge`
pub(super) fn purge(config: Option<&Path>, purge: &Purge) -> anyhow::Result<()> {
    let purged = with_backend(config, async |backend| {
        backend.tell_lock("purge");
        backend.purge(purge).await
    })?;
    anyhow::ensure!(
        !purged.is_empty(),
        "nothing that is cached matches {}",
        purge.reference
    );
    let mut table = Table::new(["REPOSITORY", "KIND", "DIGEST", "SIZE"]);
    for entry in &purged {
        table.row([
            entry.repository.clone(),
            entry.kind.clone(),
            entry.digest.to_string(),
            bytes(entry.size),
        ]);
    }
    let verb = if purge.dry_run {
        "would be removed"
    } else {
        "removed"
    };
    print(&format!("{table}{} links {verb}\n", purged.len()))
}
