//! What can be checked without a server: the configuration, certificates of listeners, the data
//! directory and its disk, descriptors.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::super::table::bytes;
use super::certificate::date;
use super::finding::Findings;
use crate::app::{self, Descriptors, Space};
use crate::clock::Clock;
use crate::config::{Config, Listen, Loaded, Storage, Tls};
use crate::error_chain::on_one_line;
use crate::storage::{DiskSpeed, FsStore, Survey};
use crate::tls::{EXPIRY_WARNING, ServerTls};

/// Bytes per second below which a disk holds up downloads: a line of 40 Mbit/s is faster.
const SLOW_DISK: u64 = 5 << 20;
/// A busy disk gets so many chances.
const ATTEMPTS: u32 = 3;
/// Fewer connections are used up by a few nodes that start at the same time.
const FEW_CONNECTIONS: usize = 1000;

/// The configuration, as `millpond check` does, and the certificates of listeners.
pub(super) fn configuration(
    loaded: &Loaded,
    warnings: &[String],
    clock: Clock,
    found: &mut Findings,
) {
    for warning in warnings {
        let fix = "write what is meant; config.example.yml explains every key";
        found.warn("configuration", warning.as_str(), fix);
    }
    if warnings.is_empty() {
        found.ok("configuration", "has no problems");
    }
    let http = &loaded.config.http;
    let listeners = http.listeners.iter();
    let listeners = listeners.map(|other| (&other.listen, &other.tls));
    for (listen, tls) in std::iter::once((&http.listen, &http.tls)).chain(listeners) {
        if let Some(tls) = tls {
            listener_tls(listen, tls, clock, found);
        }
    }
}

fn listener_tls(listen: &Listen, tls: &Tls, clock: Clock, found: &mut Findings) {
    let metrics = Arc::default();
    let loaded = ServerTls::load(tls.clone(), listen.to_string(), true, clock, metrics);
    let expires = match loaded {
        Ok(tls) => tls.current().expires(),
        Err(error) => {
            let text = format!("TLS on {listen} can't be used: {}", on_one_line(&error));
            found.fail(
                "tls",
                text,
                "correct `certificate` and `key` of that listener",
            );
            return;
        }
    };
    let (now, expiry) = (clock.wall(), date(expires));
    if expires <= now {
        let text = format!("the certificate of {listen} has expired on {expiry}");
        found.fail(
            "tls",
            text,
            "renew it: the server reads the files again by itself",
        );
    } else if expires < now + EXPIRY_WARNING {
        let text = format!("the certificate of {listen} expires soon, on {expiry}");
        found.warn(
            "tls",
            text,
            "renew it: the server reads the files again by itself",
        );
    } else {
        found.ok(
            "tls",
            format!("the certificate of {listen} is valid until {expiry}"),
        );
    }
}

/// The data directory: whether it can be used, its owner, its disk.
pub(super) async fn data_directory(config: &Config, found: &mut Findings) {
    let Storage::Filesystem { root, .. } = &config.storage else {
        found.ok("storage", "content is in memory: nothing to check");
        return;
    };
    if let Err(error) = FsStore::check_root(root).await {
        let fix = "name a directory on a writable file system that belongs to the user who runs \
                   millpond (storage.filesystem.rootdirectory)";
        found.fail("storage", on_one_line(&error), fix);
        return;
    }
    space(config, root, found);
    match survey(root).await {
        Ok(None) => found.ok(
            "storage",
            "no server has used the directory yet: the first makes it",
        ),
        Ok(Some(survey)) => {
            owner(&survey, found);
            speed(survey.speed, found);
        }
        Err(error) => {
            let fix = if error.is_full() {
                "free space, or lower `storage.maxsize`"
            } else {
                "make the directory writable for the user who runs millpond"
            };
            found.fail("storage", on_one_line(&error), fix);
        }
    }
}

/// The best of a few looks where the disk seems to be slow.
async fn survey(root: &Path) -> Result<Option<Survey>, crate::storage::StoreError> {
    let mut best: Option<Survey> = None;
    for _ in 0..ATTEMPTS {
        let Some(next) = Survey::of(root).await? else {
            return Ok(None);
        };
        let is_better = best.is_none_or(|best| next.speed.write < best.speed.write);
        if is_better {
            best = Some(next);
        }
        if rate(next.speed.bytes, next.speed.write) >= SLOW_DISK {
            break;
        }
    }
    Ok(best)
}

fn owner(survey: &Survey, found: &mut Findings) {
    let (owner, user) = (survey.owner, rustix::process::geteuid().as_raw());
    // Root may check what another user runs.
    if owner == user || user == 0 {
        found.ok(
            "owner",
            format!("can be written; it belongs to user {owner}"),
        );
        return;
    }
    let text = format!("it belongs to user {owner}, and this is user {user}");
    let fix = format!("run millpond as user {owner}, or `chown -R {user}` the directory");
    found.warn("owner", text, fix);
}

fn speed(speed: DiskSpeed, found: &mut Findings) {
    let DiskSpeed {
        bytes: sample,
        write,
        read,
    } = speed;
    let text = format!(
        "the disk writes and syncs {} in {} ms ({}/s) and reads them at {}/s",
        bytes(sample),
        write.as_millis(),
        bytes(rate(sample, write)),
        bytes(rate(sample, read)),
    );
    if rate(sample, write) < SLOW_DISK {
        let fix = "use a faster disk: it holds up downloads and their commits";
        found.warn("disk", text, fix);
    } else {
        found.ok("disk", text);
    }
}

/// Bytes per second.
fn rate(bytes: u64, took: Duration) -> u64 {
    let nanos = took.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// The file system beside `storage.maxsize` and `storage.minfree`. Where the directory doesn't exist
/// yet: the one that it will be on.
fn space(config: &Config, root: &Path, found: &mut Findings) {
    let path = std::path::absolute(root).unwrap_or_else(|_empty| root.to_owned());
    let Some(space) = path.ancestors().find_map(|path| Space::of(path).ok()) else {
        return;
    };
    let settings = app::cache_settings(config);
    let reserve = settings.min_free.map_or(0, |min_free| min_free.bytes);
    let most = space.total.saturating_sub(reserve);
    let (total, free) = (bytes(space.total), bytes(space.free));
    match settings.max_size {
        Some(cap) if cap > most => {
            let text = format!(
                "`storage.maxsize` is {}, more than its file system of {total} has without \
                 `storage.minfree` ({})",
                bytes(cap),
                bytes(reserve)
            );
            let fix = format!(
                "lower `storage.maxsize` below {}, or use a larger disk",
                bytes(most)
            );
            found.fail("space", text, fix);
        }
        _ if space.free < reserve => {
            let text = format!(
                "{free} of {total} are free, less than `storage.minfree` ({}): nothing more is cached",
                bytes(reserve)
            );
            found.fail(
                "space",
                text,
                "free space on the disk, or lower `storage.minfree`",
            );
        }
        _ => found.ok("space", format!("{free} of {total} are free")),
    }
}

/// Whether a process with so many descriptors can have the connections that are configured.
pub(super) fn descriptors(config: &Config, limit: usize, found: &mut Findings) {
    let Descriptors {
        available,
        connections,
    } = Descriptors::of(config, limit);
    let fix = "raise the limit of open files: LimitNOFILE=65536 in systemd, --ulimit nofile in Docker, \
               ulimit -n";
    if connections > available {
        let text = format!(
            "`http.limits.connections` is {connections}, and {limit} open files are enough for \
             {available} connections"
        );
        found.warn("descriptors", text, fix);
    } else if connections < FEW_CONNECTIONS && config.http.limits.total.is_none() {
        let text = format!("{limit} open files are enough for only {connections} connections");
        found.warn("descriptors", text, fix);
    } else {
        found.ok(
            "descriptors",
            format!("{limit} open files are enough for {connections} connections"),
        );
    }
}
