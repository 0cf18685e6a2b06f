//! What clients that read slowly cost in memory, while the blob is being fetched and after.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Sizes;
use super::common::load::{Load, Plan as Clients};
use super::common::proc::tcp_buffer_bytes;
use super::common::report::{Figure, section};
use super::common::server::Server;
use super::common::upstream::{Plan, Upstream};
use super::common::{MIB, note, times};
use super::run::{mirror, through};

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
    let upstream = Upstream::with_blobs(&[sizes.blob], &Plan::default())?;
    note("slow clients, cold");
    let server = mirror(&upstream)?;
    let before = upstream.counts()?.bytes;
    let cold = slow_clients(&server, &upstream, sizes.hold)?;
    let fetched = upstream.counts()?.bytes - before;
    drop(server);
    note("slow clients, warm");
    let server = mirror(&upstream)?;
    through(&server, &upstream, 1)?;
    let warm = slow_clients(&server, &upstream, sizes.hold)?;
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
            vec![times(fetched, sizes.blob)]
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
    Ok(section(
        &format!("{CLIENTS} slow clients of one blob of {}", sizes.name()),
        &figures,
    ))
}

fn slow_clients(mirror: &Server, upstream: &Upstream, hold: Duration) -> Result<Peak> {
    let plan = Clients {
        millis: u64::try_from(hold.as_millis())?,
        slow: true,
        fresh: false,
        ..Clients::once(mirror.addr(), upstream.large()?.path(), CLIENTS)
    };
    let (mut sockets, mut anonymous) = (0, 0.0);
    let load = Load::sampled(&plan, || {
        sockets = sockets.max(tcp_buffer_bytes()?);
        anonymous = mirror.memory("RssAnon")?;
        Ok(())
    })
    .with_context(|| mirror.log_tail())?;
    ensure!(
        load.requests == 0 && load.bytes > 0,
        "a slow client had the whole blob, which is too small for this, or none had a byte"
    );
    Ok(Peak {
        resident: mirror.memory("VmHWM")?,
        anonymous_at_end: anonymous,
        sockets: times(sockets, MIB),
    })
}
