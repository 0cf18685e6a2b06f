//! How long a rollout takes, by the number of replicas, with and without redirects to a bucket. Prints the
//! table of `docs/replicas.md`.
//!
//! ```text
//! cargo bench --bench rollout
//! ```
//!
//! Nothing is measured: this is a model (`flow`), the same in every run. The nodes begin within 10 s; each pulls
//! ten layers, 1 GiB, three at a time, each from any replica. A `warmed` image is on all replicas and in the
//! bucket by then; a `new` one is nowhere. Who owns a layer is decided by the program.
#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark: failing is stopping, and figures are approximate"
)]

mod flow;

use flow::{GBIT, Redirect, Rollout};

/// Layers of 1 GiB in all, in MiB: a distribution, a language, a large framework, an application.
const LAYERS: [u64; 10] = [48, 5, 22, 410, 1, 150, 260, 90, 36, 2];
/// The default of `storage.shared.redirectabove`.
const ABOVE: usize = 500;
/// Gigabits a second.
const NODE: f64 = 10.0;
const REPLICA: f64 = 25.0;
const UPSTREAM: f64 = 4.0;
const BUCKET: f64 = 100.0;
/// Seconds within which the nodes begin, and of a step for each node.
const WITHIN: f64 = 10.0;
const STEP: f64 = 20e-6;

fn main() {
    // `cargo test --all-targets` starts every target, and only `cargo bench` passes an argument.
    if std::env::args().len() == 1 {
        return;
    }
    let ways = [
        (Redirect::Never, BUCKET),
        (Redirect::Busy(ABOVE), BUCKET),
        (Redirect::Busy(ABOVE), f64::INFINITY),
        (Redirect::Always, BUCKET),
        (Redirect::Always, f64::INFINITY),
    ];
    println!(
        "| nodes | replicas | lines | image | `never` | `busy`, {BUCKET} Gbit/s | `busy`, unlimited | \
         `always`, {BUCKET} Gbit/s | `always`, unlimited |\n\
         |---:|---:|---:|---|---:|---:|---:|---:|---:|"
    );
    for nodes in [1_000, 10_000] {
        for replicas in [10, 40] {
            for is_cached in [true, false] {
                let rollout = |(redirect, bucket)| Rollout {
                    nodes,
                    within: WITHIN,
                    replicas,
                    layers: LAYERS.map(|size| size << 20).to_vec(),
                    node: NODE * GBIT,
                    replica: REPLICA * GBIT,
                    upstream: UPSTREAM * GBIT,
                    bucket: bucket * GBIT,
                    redirect,
                    is_cached,
                    step: STEP * nodes as f64,
                };
                let bytes = (LAYERS.iter().sum::<u64>() << 20) as f64 * nodes as f64;
                let lines = bytes / (replicas as f64 * REPLICA * GBIT);
                let image = if is_cached { "warmed" } else { "new" };
                let cells: String = ways.map(|way| cell(&rollout(way))).concat();
                println!("| {nodes} | {replicas} | {lines:.0} s | {image} {cells}|");
            }
        }
    }
}

/// The median and the 99th percentile, in seconds.
fn cell(rollout: &Rollout) -> String {
    let took = rollout.run();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    format!("| {:.0} / {:.0} s ", at(50), at(99))
}
