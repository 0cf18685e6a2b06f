//! `millpond serve`.

use std::path::Path;

use anyhow::Context as _;

use super::{load, logging};
use crate::app::App;
use crate::config::{Config, Loaded, Storage};

pub(super) fn serve(path: Option<&Path>) -> anyhow::Result<()> {
    let Loaded { config, warnings } = load(path)?;
    logging::start(&config.log);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?
        .block_on(until_told(&config))
}

async fn until_told(config: &Config) -> anyhow::Result<()> {
    let stop = stop_signal().context("signals can't be listened to")?;
    let app = App::start(config).await?;
    let data = match &config.storage {
        Storage::Filesystem { root } => root.display().to_string(),
        Storage::Memory => "memory".to_owned(),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %app.address(),
        debug = app.debug_address().map(ToString::to_string),
        upstream = %config.proxy.default.url,
        others = config.proxy.upstreams.len(),
        data,
        "millpond is ready"
    );
    let signal = stop.await;
    tracing::info!(signal, drain = ?config.http.drain_timeout, "stopping");
    let clean = app.stop().await;
    tracing::info!(clean, "stopped");
    Ok(())
}

/// Listens now; the future tells which signal came.
#[cfg(unix)]
fn stop_signal() -> std::io::Result<impl Future<Output = &'static str>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

#[cfg(not(unix))]
fn stop_signal() -> std::io::Result<impl Future<Output = &'static str>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Nothing can tell us to stop but the end of the process.
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    })
}
