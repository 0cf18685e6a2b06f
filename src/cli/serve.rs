//! `millpond serve`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::allocator;
use super::logging::Logs;
use super::signals::{Asked, Signals};
use super::{VERSION, fail, load, placed, warnings};
use crate::admin::reload::ReloadReport;
use crate::app::App;
use crate::config::{self, Config, Loaded, Storage};
use crate::error_chain::on_one_line;
use crate::systemd::{Handed, Notifier};

/// Tasks that a thread runs before it looks for new requests, where tasks are always ready: large
/// bodies to fast clients take 0.1 ms each. tokio's default is 61.
const EVENT_INTERVAL: u32 = 8;

/// How long blocking steps, such as reads of a disk that doesn't answer, may delay the exit.
const BLOCKING_TIME: Duration = Duration::from_secs(5);

pub(super) fn serve(path: Option<&Path>) -> ExitCode {
    allocator::configure();
    // Before anything is opened.
    let sockets = match Handed::from_environment() {
        Ok(sockets) => sockets,
        Err(error) => return fail(&error.into()),
    };
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
    let ended = run(path, &loaded, &logs, sockets);
    if let Err(error) = &ended {
        logs.fatal(&on_one_line(error.as_ref()));
    }
    logs.finish();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(_logged) => ExitCode::FAILURE,
    }
}

fn run(path: Option<&Path>, loaded: &Loaded, logs: &Logs, sockets: Handed) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()
        .context("the runtime can't be started")?;
    let ended = runtime.block_on(until_signal(path, loaded, logs, sockets));
    runtime.shutdown_timeout(BLOCKING_TIME);
    ended
}

async fn until_signal(
    path: Option<&Path>,
    loaded: &Loaded,
    logs: &Logs,
    sockets: Handed,
) -> anyhow::Result<()> {
    let Loaded { config, places, .. } = loaded;
    let notifier = Notifier::from_environment();
    // Before anything else, so that no signal ends the process on its way up.
    let mut signals = Signals::listen().context("signals can't be listened to")?;
    let app = tokio::select! {
        biased;
        signal = signals.stop() => {
            tracing::info!(signal, "stopped before the start was complete");
            return Ok(());
        }
        app = App::start_on(config, sockets, Arc::clone(logs.levels())) => app.map_err(|error| placed(error, config, places))?,
    };
    logs.writer().count_into(app.metrics().log_lines_dropped());
    say_ready(&app, config);
    let status = format!("serving on {}", app.address());
    notifier.ready(&status);
    app.keep_alive(&notifier);
    let failed = loop {
        let reply = tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop(signal) => {
                    tracing::info!(signal, drain = ?app.drain_timeout(), "stopping");
                    break None;
                }
                Asked::Reload => None,
            },
            reply = app.reloads().next() => Some(reply),
            failed = app.failed() => {
                tracing::error!(error = %on_one_line(&failed), drain = ?app.drain_timeout(), "stopping");
                break Some(failed);
            }
            never = allocator::trim_regularly() => match never {},
        };
        notifier.reloading();
        let report = tokio::select! {
            report = Box::pin(reload(&app, path, logs)) => report,
            // A file system that doesn't answer keeps nobody from stopping the server.
            signal = signals.stop_alone() => {
                tracing::info!(signal, drain = ?app.drain_timeout(), "stopping; the configuration isn't read again");
                break None;
            }
            failed = app.failed() => {
                tracing::error!(error = %on_one_line(&failed), drain = ?app.drain_timeout(), "stopping");
                break Some(failed);
            }
        };
        notifier.ready(&status);
        // Whoever asked may not wait any more.
        reply.map(|reply| reply.send(report).is_ok());
    };
    notifier.stopping("requests in flight are being finished");
    let clean = app.stop_unless(another(&mut signals)).await;
    tracing::info!(clean, "stopped");
    failed.map_or(Ok(()), |failed| Err(failed.into()))
}

/// Reads the configuration again.
async fn reload(app: &App, path: Option<&Path>, logs: &Logs) -> ReloadReport {
    let path = path.map(Path::to_owned);
    let read = move || {
        let mut loaded = config::load(path.as_deref(), config::environment())?;
        loaded.warnings = warnings(&loaded);
        Ok(loaded)
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(loaded) => Box::pin(app.reload(loaded, |config| logs.configure(&config.log))).await,
        Err(lost) => ReloadReport {
            problems: vec![on_one_line(&lost)],
            ..ReloadReport::default()
        },
    }
}

fn say_ready(app: &App, config: &Config) {
    let data = match &config.storage {
        Storage::Filesystem { root, .. } => root.display().to_string(),
        Storage::Memory => "memory".to_owned(),
    };
    tracing::info!(
        version = VERSION,
        address = %app.address(),
        listeners = listeners(app),
        debug = app.debug_address().map(ToString::to_string),
        upstream = config.proxy.all_upstreams().next().map(|upstream| upstream.url.as_str()),
        others = config.proxy.upstreams.len(),
        data,
        "millpond is ready"
    );
    if config.access.rules.is_empty() && !config.has_users() && !config.http.is_loopback() {
        tracing::info!(
            address = %app.address(),
            listeners = listeners(app),
            "everyone who can reach this address may pull: neither `access` nor `auth` is configured"
        );
    }
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
