//! Keeps the bytes that upstreams have sent in the current month over restarts, for those with a limit
//! (`ratelimit.monthly`): in a file of the data directory, which is written once a minute.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Shared;
use super::upstreams::Clients;
use crate::admin::operate::UpstreamList;
use crate::config::{Config, Storage};
use crate::error_chain::on_one_line;
use crate::kept_file;
use crate::storage::Layout;
use crate::upstream::{MonthlyUsage, Upstream};

const PAUSE: Duration = Duration::from_mins(1);
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// By the upstream's name.
type Usages = BTreeMap<String, MonthlyUsage>;

/// The usage of all upstreams, and its file.
#[derive(Debug)]
pub(super) struct UsageFile {
    /// None with a store in memory.
    path: Option<PathBuf>,
    upstreams: UpstreamList,
    /// What the file has.
    saved: tokio::sync::Mutex<Usages>,
}

impl UsageFile {
    /// Reads the file, and tells the upstreams what they have sent. One that can't be read is as good as
    /// none: the mirror starts, and counts from 0.
    async fn open(path: Option<PathBuf>, upstreams: UpstreamList) -> Self {
        let saved = match path.clone() {
            Some(path) => read_logged(path).await,
            None => Usages::new(),
        };
        for upstream in upstreams.read().iter() {
            if let Some(usage) = saved.get(upstream.name()) {
                upstream.restore_usage(usage);
            }
        }
        Self {
            path,
            upstreams,
            saved: tokio::sync::Mutex::new(saved),
        }
    }

    /// Writes the file again and again.
    async fn keep(&self) {
        loop {
            sleep(PAUSE).await;
            self.save().await;
        }
    }

    /// Writes the file, if something has changed.
    pub(super) async fn save(&self) {
        let Some(path) = self.path.clone() else {
            return;
        };
        let usages = usages(&self.upstreams.read());
        // Held until the file is written: two writers would share the draft.
        let mut saved = self.saved.lock().await;
        if *saved == usages {
            return;
        }
        let written = usages.clone();
        let writing = tokio::task::spawn_blocking(move || kept_file::replace(&path, &written));
        match writing.await {
            Ok(Ok(())) => *saved = usages,
            Ok(Err(error)) => {
                tracing::warn!(error = %on_one_line(&error), "the bytes of this month can't be saved; trying again in a minute");
            }
            Err(error) => {
                tracing::warn!(error = %on_one_line(&error), "the bytes of this month can't be saved");
            }
        }
    }
}

impl Shared {
    /// Saves the bytes of the month again and again.
    pub(super) fn keep_usage(&self) {
        let (usage, stop) = (Arc::clone(&self.usage), self.stop_now.clone());
        self.background.spawn_restarted("usage", stop, move || {
            let usage = Arc::clone(&usage);
            async move { usage.keep().await }
        });
    }
}

/// The upstreams, with the counts that were saved, and the file.
pub(super) async fn open(config: &Config, clients: &Clients) -> (UpstreamList, Arc<UsageFile>) {
    let path = match &config.storage {
        Storage::Filesystem { root, .. } => Some(Layout::new(root).usage()),
        Storage::Memory => None,
    };
    let upstreams: UpstreamList = Arc::new(clients.list().into());
    let file = UsageFile::open(path, Arc::clone(&upstreams)).await;
    (upstreams, Arc::new(file))
}

/// Continues the counts of the same upstreams after a reload.
pub(super) fn carry_over(old: &[Arc<Upstream>], new: &[Arc<Upstream>]) {
    let before = usages(old);
    for upstream in new {
        let is_kept = old.iter().any(|old| Arc::ptr_eq(old, upstream));
        if let Some(usage) = before.get(upstream.name()).filter(|_| !is_kept) {
            upstream.restore_usage(usage);
        }
    }
}

fn usages(upstreams: &[Arc<Upstream>]) -> Usages {
    let usages = upstreams.iter().filter_map(|upstream| {
        let usage = upstream.monthly_usage()?;
        Some((upstream.name().to_owned(), usage))
    });
    usages.collect()
}

async fn read_logged(path: PathBuf) -> Usages {
    let reading = tokio::task::spawn_blocking(move || kept_file::read_or_default(&path, MAX_FILE));
    let error = match reading.await {
        Ok(Ok(usages)) => return usages,
        Ok(Err(error)) => error,
        Err(error) => error.into(),
    };
    tracing::warn!(error = %on_one_line(&error), "the bytes of this month that were saved can't be read; they count from 0");
    Usages::new()
}
