//! What clients that read slowly cost in memory, while the blob is being fetched and after.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::clients::{Herd, Plan as Clients};
use super::mirror::Mirror;
use super::report::{Figure, table};
use super::run::through;
use super::upstream::{Plan, Upstream};
use super::{Sizes, note, proc};

/// How many slow clients hold a connection at once.
const CLIENTS: usize = 200;
/// Peak resident memory of the mirror, in MiB.
const PEAK: f64 = 64.0;

/// What one run showed, in MiB.
struct Peak {
    resident: f64,
    /// The part that isn't backed by a file.
    anonymous_at_end: f64,
    sockets: f64,
}

pub(crate) fn measure(sizes: &Sizes) -> Result<String> {
    let upstream = Upstream::start(&Plan {
        blob_bytes: sizes.blob,
        ..Plan::default()
    })?;
    note("slow clients, cold");
    let mirror = Mirror::start(upstream.addr())?;
    let before = upstream.stats()?.bytes;
    let cold = slow_clients(&mirror, &upstream, sizes.hold)?;
    let fetched = upstream.stats()?.bytes - before;
    drop(mirror);
    note("slow clients, warm");
    let mirror = Mirror::start(upstream.addr())?;
    through(&mirror, &upstream, 1)?;
    let warm = slow_clients(&mirror, &upstream, sizes.hold)?;
    let figures = [
        Figure::new("peak memory (VmHWM), cold", "MiB", vec![cold.resident]).at_most(PEAK),
        Figure::new("peak memory (VmHWM), warm", "MiB", vec![warm.resident]).at_most(PEAK),
        Figure::new(
            "RssAnon at the end, cold",
            "MiB",
            vec![cold.anonymous_at_end],
        ),
        Figure::new(
            "RssAnon at the end, warm",
            "MiB",
            vec![warm.anonymous_at_end],
        ),
        Figure::new("upstream bytes over the blob's, cold", "x", {
            vec![Sizes::blobs(fetched, sizes.blob)]
        })
        .at_most(1.0),
        Figure::new(
            "TCP buffers of the whole machine, cold",
            "MiB",
            vec![cold.sockets],
        ),
        Figure::new(
            "TCP buffers of the whole machine, warm",
            "MiB",
            vec![warm.sockets],
        ),
    ];
    Ok(table(
        &format!("{CLIENTS} slow clients of one blob of {}", sizes.name()),
        &figures,
    ))
}

fn slow_clients(mirror: &Mirror, upstream: &Upstream, hold: Duration) -> Result<Peak> {
    let plan = Clients {
        addr: mirror.addr(),
        path: upstream.large()?.path(),
        clients: CLIENTS,
        slow_ms: u64::try_from(hold.as_millis())?,
    };
    let mut sockets = 0;
    let mut anonymous = 0;
    let herd = Herd::send(&plan, || {
        sockets = sockets.max(proc::tcp_buffer_bytes()?);
        anonymous = mirror.status_bytes("RssAnon")?;
        Ok(())
    })
    .with_context(|| mirror.log_tail())?;
    let length = upstream.large()?.bytes;
    ensure!(
        herd.pulls.iter().all(|pull| pull.bytes < length),
        "a slow client came to the end: the blob is too small for this"
    );
    Ok(Peak {
        resident: mebibytes(mirror.status_bytes("VmHWM")?),
        anonymous_at_end: mebibytes(anonymous),
        sockets: mebibytes(sockets),
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "sizes of memory are below 2^52 bytes"
)]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
