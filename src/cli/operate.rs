//! `ls`, `du`, `scrub` and `purge`: through the running server's admin socket, else on the data
//! directory itself.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::table::{Table, bytes};
use super::{Located, load, print, print_json, say};
use crate::access::{Audit, Denials, DeniedEntry, DenyList};
use crate::admin::client::Client;
use crate::admin::operate::{Entry, Image, Leftovers, Operation, Operator, Page, PinOperation};
use crate::app::{self, App, StartError};
use crate::cache::{
    Cache, CacheSettings, Pin, Removal, ScrubReport, ScrubSettings, Upkeep, Verdict,
};
use crate::clock::Clock;
use crate::config::{Config, Storage};
use crate::storage::{FsStore, Layout, Store, StoreError};
use crate::tasks::Tasks;

const IN_MEMORY: &str = "the content of storage.inmemory is only visible to the server itself";
const NO_UPSTREAM: &str = "the configuration has no upstream whose images could be cached";
const NO_ANSWER: &str = "the data directory is in use, but no server answers at its admin socket";

/// What runs the operations: the server, or this process.
pub(super) enum Backend {
    Server(Client),
    Own(Operator),
}

/// Runs one operation on the server, or on the data directory if no server runs.
pub(super) fn with_backend<T>(
    located: &Located,
    operation: impl AsyncFnOnce(&mut Backend) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let config = load(located.config.as_deref())?.config;
    super::runtime()?.block_on(async {
        let tasks = Tasks::new();
        let mut backend = Backend::open(&config, &tasks).await?;
        let result = operation(&mut backend).await;
        if let Backend::Own(operator) = &backend {
            operator.cache.stop().await;
        }
        result
    })
}

/// Runs a command that needs all parts of a server: on the running one, else on one that this process is
/// until the command has ended, and that answers nobody else.
pub(super) fn with_any_server<T>(
    located: &Located,
    command: &str,
    operation: impl AsyncFnOnce(Client) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let config = load(located.config.as_deref())?.config;
    let Storage::Filesystem { root, .. } = &config.storage else {
        anyhow::bail!(IN_MEMORY);
    };
    anyhow::ensure!(!config.proxy.hosted_only, NO_UPSTREAM);
    super::runtime()?.block_on(async {
        let tasks = Tasks::new();
        let app = match Box::pin(App::start_for_command(&config, root)).await {
            Ok(app) => {
                tell_lock(command);
                Some(app)
            }
            Err(StartError::Store(StoreError::InUse { .. })) => None,
            Err(error) => return Err(error.into()),
        };
        let path = Layout::new(root).admin_socket();
        let client = Client::connect(&path, tasks.tracker()).await;
        let client = client.context(NO_ANSWER)?;
        let result = operation(client).await;
        if let Some(app) = app {
            Box::pin(app.stop()).await;
        }
        result
    })
}

/// Runs an operation that only a running server has.
pub(super) fn on_server<T: DeserializeOwned>(
    located: &Located,
    operation: Operation,
) -> anyhow::Result<T> {
    with_backend(located, async |backend| backend.run(operation).await)
}

impl Backend {
    pub(super) async fn open(config: &Config, tasks: &Tasks) -> anyhow::Result<Self> {
        let Storage::Filesystem { root, .. } = &config.storage else {
            anyhow::bail!(IN_MEMORY);
        };
        let store: Arc<dyn Store> = match FsStore::inspect(root).await {
            Ok(store) => Arc::new(store),
            Err(StoreError::InUse { .. }) => {
                let path = Layout::new(root).admin_socket();
                let client = Client::connect(&path, tasks.tracker()).await;
                return Ok(Self::Server(client.context(NO_ANSWER)?));
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
        let denied = Layout::new(root).denied();
        let denied = DenyList::open(&config.access.deny, Some(denied)).await?;
        Ok(Self::Own(Operator {
            cache,
            denials: Denials::new(Arc::new(denied), Audit::default()),
            clock: Clock::system(),
            upstreams: None,
            levels: None,
            reloads: None,
            mirror: None,
        }))
    }

    /// Warns that no server can start meanwhile, if the command works on the data directory itself.
    fn tell_lock(&self, command: &str) {
        if matches!(self, Self::Own(_)) {
            tell_lock(command);
        }
    }

    pub(super) async fn run<T: DeserializeOwned>(
        &mut self,
        operation: Operation,
    ) -> anyhow::Result<T> {
        let json = match self {
            Self::Server(client) => client.run(&operation).await?,
            Self::Own(operator) => operator.run(operation).await?.into(),
        };
        serde_json::from_slice(&json).context("the server's answer can't be read")
    }

    /// All pages of a list.
    pub(super) async fn list<T: DeserializeOwned>(
        &mut self,
        page: impl Fn(usize) -> Operation,
    ) -> anyhow::Result<Vec<T>> {
        let (mut all, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let page: Page<T> = self.run(page(at)).await?;
            all.extend(page.items);
            from = page.next;
        }
        Ok(all)
    }
}

fn tell_lock(command: &str) {
    say(&format!(
        "millpond: no server is running; {command} holds the lock of the data directory until it ends, \
         and a server can't start before that"
    ));
}

/// `millpond ls`
pub(super) fn ls(located: &Located, as_json: bool) -> anyhow::Result<()> {
    let (mut images, pins) = with_backend(located, async |backend| {
        let images: Vec<Image> = backend.list(Operation::Images).await?;
        let pins: Vec<Pin> = backend.run(Operation::Pins(PinOperation::List)).await?;
        Ok((images, pins))
    })?;
    images.sort_by(|a, b| a.names.cmp(&b.names));
    if as_json {
        return print_json(&json!({ "images": images, "pins": pins }));
    }
    let mut table = Table::new(["IMAGE", "SIZE", "SHARED", "LAST USE", "EXPIRES", ""]);
    for image in &images {
        let expiry = image.expiry.clone().unwrap_or_else(|| "never".to_owned());
        let pinned = match &image.pinned_until {
            Some(until) => format!("pinned until {until}"),
            None if image.pinned => "pinned".to_owned(),
            None => String::new(),
        };
        let mut names = image.names.iter().cloned();
        table.row([
            names.next().unwrap_or_else(|| image.digest.to_string()),
            bytes(image.size),
            bytes(image.shared),
            image.last_use.clone(),
            expiry,
            pinned,
        ]);
        for name in names {
            let mut cells = <[String; 6]>::default();
            cells[0] = name;
            table.row(cells);
        }
    }
    let mut text = table.to_string();
    if !pins.is_empty() {
        write!(text, "\n{}", pins_table(&pins))?;
    }
    print(&text)
}

/// What is pinned at run time.
fn pins_table(pins: &[Pin]) -> Table<2> {
    let mut table = Table::new(["PINNED", "UNTIL"]);
    for pin in pins {
        let until = pin.until.clone();
        let until = until.unwrap_or_else(|| "unpinned".to_owned());
        table.row([pin.reference.clone(), until]);
    }
    table
}

/// `millpond du`
pub(super) fn du(located: &Located, as_json: bool) -> anyhow::Result<()> {
    let (entries, leftovers) = with_backend(located, async |backend| {
        let entries: Vec<Entry> = backend.list(Operation::Entries).await?;
        let leftovers: Leftovers = backend.run(Operation::Leftovers).await?;
        Ok((entries, leftovers))
    })?;
    // A blob may be linked twice in a repository: as a layer and as a manifest.
    let entries = entries.iter();
    let links: HashMap<_, u64> = entries
        .map(|entry| ((entry.repository.as_str(), entry.digest), entry.size))
        .collect();
    // The size of each blob, and how many repositories have it.
    let mut blobs: HashMap<_, (u64, usize)> = HashMap::new();
    for ((_, digest), size) in &links {
        let (_, users) = blobs.entry(digest).or_insert((*size, 0));
        *users += 1;
    }
    let total = blobs.values().map(|(size, _)| size).sum::<u64>() + leftovers.bytes;
    // Per repository: bytes, and of these bytes that other repositories have, too.
    let mut repositories: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for ((repository, digest), size) in &links {
        let (own, shared) = repositories.entry(repository).or_default();
        *own += size;
        if blobs.get(digest).is_some_and(|(_, users)| *users > 1) {
            *shared += size;
        }
    }
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
pub(super) fn scrub(located: &Located, settings: ScrubSettings) -> anyhow::Result<()> {
    let report: ScrubReport = with_backend(located, async |backend| {
        backend.tell_lock("scrub");
        backend.run(Operation::Scrub(settings)).await
    })?;
    let mut summary = String::new();
    if !report.findings.is_empty() {
        let mut table = Table::new(["DIGEST", "SIZE", "VERDICT"]);
        for found in &report.findings {
            let verdict = match &found.verdict {
                Verdict::Corrupt => "corrupt",
                Verdict::Quarantined => "quarantined",
                Verdict::Failed(reason) => reason,
            };
            table.row([
                found.digest.to_string(),
                bytes(found.size),
                verdict.to_owned(),
            ]);
        }
        summary = table.to_string();
    }
    writeln!(
        summary,
        "{} blobs, {}: {} corrupt, {} set aside, {} unreadable",
        report.checked,
        bytes(report.bytes),
        report.corrupt,
        report.quarantined,
        report.failed
    )?;
    if report.uploads > 0 {
        let verb = if settings.repair { "removed" } else { "found" };
        let (uploads, size) = (report.uploads, bytes(report.upload_bytes));
        writeln!(summary, "{uploads} abandoned uploads, {size}: {verb}")?;
    }
    for Removal { path, failure } in &report.unreadable {
        let verdict = failure.as_deref().unwrap_or("couldn't be read; removed");
        writeln!(summary, "{}: {verdict}", path.display())?;
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

/// `millpond deny add`
pub(super) fn deny(
    located: &Located,
    reference: &str,
    reason: Option<String>,
) -> anyhow::Result<()> {
    let reference = stored_reference(located, reference)?;
    let add = Operation::DenyAdd { reference, reason };
    let run = async |backend: &mut Backend| backend.run(add).await;
    let added: DeniedEntry = with_backend(located, run)?;
    print(&format!("denied: {}\n", added.reference))
}

/// `millpond deny remove`
pub(super) fn permit(located: &Located, reference: &str) -> anyhow::Result<()> {
    let reference = stored_reference(located, reference)?;
    let remove = Operation::DenyRemove { reference };
    let run = async |backend: &mut Backend| backend.run(remove).await;
    let removed: DeniedEntry = with_backend(located, run)?;
    print(&format!("no longer denied: {}\n", removed.reference))
}

/// `millpond deny list`
pub(super) fn denied(located: &Located, as_json: bool) -> anyhow::Result<()> {
    let run = async |backend: &mut Backend| backend.run(Operation::DenyList).await;
    let entries: Vec<DeniedEntry> = with_backend(located, run)?;
    if as_json {
        return print_json(&json!({ "denied": entries }));
    }
    let mut table = Table::new(["DENIED", "SINCE", "REASON"]);
    for entry in entries {
        let since = entry.added.unwrap_or_else(|| "(configuration)".to_owned());
        table.row([entry.reference, since, entry.reason.unwrap_or_default()]);
    }
    print(&table.to_string())
}

/// What a reference means in the store: one that nothing is stored under would deny or keep nothing.
pub(super) fn stored_reference(located: &Located, reference: &str) -> anyhow::Result<String> {
    let config = load(located.config.as_deref())?.config;
    Ok(config.proxy.stored_reference(reference))
}

/// `millpond purge`
pub(super) fn purge(located: &Located, reference: String, dry_run: bool) -> anyhow::Result<()> {
    let nothing = format!("nothing that is cached matches {reference}");
    let purged: Vec<Entry> = with_backend(located, async |backend| {
        backend.tell_lock("purge");
        backend.run(Operation::Purge { reference, dry_run }).await
    })?;
    anyhow::ensure!(!purged.is_empty(), nothing);
    let mut table = Table::new(["REPOSITORY", "KIND", "DIGEST", "SIZE"]);
    for entry in &purged {
        table.row([
            entry.repository.clone(),
            entry.kind.clone(),
            entry.digest.to_string(),
            bytes(entry.size),
        ]);
    }
    let verb = if dry_run {
        "would be removed"
    } else {
        "removed"
    };
    print(&format!("{table}{} links {verb}\n", purged.len()))
}
