//! Two endpoints of one upstream that send 20 MiB/s each, over all connections: is a cold pull from both
//! of them faster than from one?

use anyhow::{Context, Result};
use serde_json::json;

use super::super::common::MIB;
use super::super::common::report::{Figure, Figures, Target::AtLeast};
use super::super::common::server::Server;
use super::super::common::upstream::{Plan, Upstream};
use super::super::results::Results;
use super::{Bench, clients};

/// How many times as fast as with one endpoint a large blob has to come.
const FASTER: f64 = 1.8;

/// Seconds of one pull each way.
struct Pair {
    one: f64,
    both: f64,
}

pub(crate) fn measure(bench: &Bench<'_>, results: &mut Results) -> Result<()> {
    let (size, rate) = (bench.sizes.medium, bench.sizes.throttled_rate);
    let plan = Plan {
        total_rate: rate,
        ..Plan::default()
    };
    // Equal seeds: the content is the same.
    let first = Upstream::with_blobs(&[size], &plan)?;
    let second = Upstream::with_blobs(&[size], &plan)?;
    let mut proxy = bench.proxy.clone();
    let url = format!("http://{}", second.addr());
    let endpoints = json!([{"weight": 1}, {"url": url, "weight": 1}]);
    proxy.insert("endpoints".to_owned(), endpoints);
    let pull = |mirror: Server| {
        let seconds = clients::whole(mirror.addr(), first.large()?);
        seconds.with_context(|| mirror.log_tail())
    };
    let pairs = bench.rounds("endpoints", || {
        Ok(Pair {
            one: pull(bench.mirror(&first)?)?,
            both: pull(Server::mirror(bench.binary, first.addr(), &proxy)?)?,
        })
    })?;
    let title = format!(
        "A cold blob of {} MiB, {} MiB/s an endpoint",
        size / MIB,
        rate / MIB
    );
    results.section(&title, &report(&pairs));
    Ok(())
}

fn report(pairs: &[Pair]) -> String {
    let mut figures = Figures::of(pairs);
    figures.show("one endpoint", "s", |pair| pair.one);
    figures.show("two endpoints of equal weight", "s", |pair| pair.both);
    let ratios = pairs.iter().map(|pair| pair.one / pair.both);
    let ratio = Figure::new("two endpoints are faster by", "x", ratios);
    figures.push(ratio.target(AtLeast(FASTER)).steady());
    figures.table()
}
