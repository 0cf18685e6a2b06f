//! `millpond serve`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::allocator;
use super::logging::Logs;
use super::signals::Signals;
use super::{VERSION, fail, load, placed, warnings};
use crate::app::App;
use crate::config::{Loaded, Storage};
use crate::error_chain::on_one_line;

/// Tasks that a thread runs before it looks for new requests, where tasks are always ready: large
/// bodies to fast clients take 0.1 ms each. tokio's default is 61.
const EVENT_INTERVAL: u32 = 8;

/// How long blocking steps, such as reads of a disk that doesn't answer, may delay the exit.
const BLOCKING_TIME: Duration = Duration::from_secs(5);

pub(super) fn serve(path: Option<&Path>) -> ExitCode {
    allocator::configure();
    let loaded = match load(path) {
        Ok(loaded) => loaded,
        Err(error) => return fail(&error),
    };
    let logs = match Logs::start(&loaded.config.log).context("the log's thread can't be started") {
        Ok(logs) => logs,
        Err(error) => return fail(&error),
    };
    for warning in warnings(&loaded) {
        tracing::warn!("{warning}");
    }
    let ended = run(&loaded, &logs);
    if let Err(error) = &ended {
        logs.fatal(&on_one_line(error.as_ref()));
    }
    logs.finish();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(_logged) => ExitCode::FAILURE,
    }
}

fn run(loaded: &Loaded, logs: &Logs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()
        .context("the runtime can't be started")?;
    let ended = runtime.block_on(until_signal(loaded, logs));
    runtime.shutdown_timeout(BLOCKING_TIME);
    ended
}

async fn until_signal(loaded: &Loaded, logs: &Logs) -> anyhow::Result<()> {
    let Loaded { config, places, .. } = loaded;
    // Before anything else, so that no signal ends the process on its way up.
    let mut signals = Signals::listen().context("signals can't be listened to")?;
    let app = tokio::select! {
        biased;
        signal = signals.stop() => {
            tracing::info!(signal, "stopped before the start was complete");
            return Ok(());
        }
        app = App::start_logging(config, Arc::clone(logs.levels())) => app.map_err(|error| placed(error, config, places))?,
    };
    logs.writer().count_into(app.metrics().log_lines_dropped());
    let data = match &config.storage {
        Storage::Filesystem { root, .. } => root.display().to_string(),
        Storage::Memory => "memory".to_owned(),
    };
    tracing::info!(
        version = VERSION,
        address = %app.address(),
        listeners = listeners(&app),
        debug = app.debug_address().map(ToString::to_string),
        upstream = %config.proxy.default.url,
        others = config.proxy.upstreams.len(),
        data,
        "millpond is ready"
    );
    if config.access.rules.is_empty() && !config.has_users() && !config.http.is_loopback() {
        tracing::info!(
            address = %app.address(),
        listeners = listeners(&app),
            "everyone who can reach this address may pull: neither `access` nor `auth` is configured"
        );
    }
    let failed = tokio::select! {
        signal = signals.stop() => {
            tracing::info!(signal, drain = ?config.http.drain_timeout, "stopping");
            None
        }
        failed = app.failed() => {
            tracing::error!(error = %on_one_line(&failed), drain = ?config.http.drain_timeout, "stopping");
            Some(failed)
        }
    };
    let clean = app.stop_unless(another(&mut signals)).await;
    tracing::info!(clean, "stopped");
    failed.map_or(Ok(()), |failed| Err(failed.into()))
}

/// The addresses of `http.listeners`, if there are any.
fn listeners(app: &App) -> Option<String> {
    let addresses = app.other_addresses().iter();
    let addresses: Vec<_> = addresses.map(ToString::to_string).collect();
    (!addresses.is_empty()).then(|| addresses.join(", "))
}

/// Waits for another stop signal.
async fn another(signals: &mut Signals) {
    let signal = signals.stop().await;
    tracing::info!(signal, "second stop signal: requests in flight are ended");
}
