//! The clients: one process with a blocking thread a client, all released at once. Apart from the
//! mirror and the upstream, so that what clients cost is measured apart too.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::proc::{Process, cpu_seconds};
use super::wire::get;

/// Bytes a client takes per recv(2); never touched, see [`super::wire::Answer::discard`].
const SCRATCH: usize = 1 << 20;
/// What a slow client takes at once before it slows down, in bytes.
const GULP: u64 = 256 * 1024;
/// What a slow client takes per [`TRICKLE_EVERY`] from then on, in bytes.
const TRICKLE: u64 = 16 * 1024;
const TRICKLE_EVERY: Duration = Duration::from_millis(100);
/// The longest that clients may take, all together.
const LIMIT: Duration = Duration::from_mins(5);

/// What a herd of clients does.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// Where to connect.
    #[arg(long)]
    pub(crate) addr: SocketAddr,
    /// What to ask for.
    #[arg(long)]
    pub(crate) path: String,
    /// How many clients.
    #[arg(long)]
    pub(crate) clients: usize,
    /// 0: read everything as fast as it comes. Otherwise: read slowly, and hang up after so many
    /// milliseconds.
    #[arg(long, default_value_t = 0)]
    pub(crate) slow_ms: u64,
}

/// What one client saw, in seconds since all were released.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Pull {
    pub(crate) first_byte: f64,
    pub(crate) total: f64,
    pub(crate) bytes: u64,
}

/// What all clients saw, and the CPU seconds they used from their release on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Herd {
    pub(crate) pulls: Vec<Pull>,
    pub(crate) cpu: f64,
}

impl Herd {
    /// Starts the clients as a process and waits for the end, calling `sample` now and then.
    pub(crate) fn send(plan: &Plan, sample: impl FnMut() -> Result<()>) -> Result<Self> {
        let args = [
            "clients".to_owned(),
            format!("--addr={}", plan.addr),
            format!("--path={}", plan.path),
            format!("--clients={}", plan.clients),
            format!("--slow-ms={}", plan.slow_ms),
        ];
        Process::spawn_role(&args)?.finish(LIMIT, sample)
    }

    /// When the last client had its last byte.
    pub(crate) fn last(&self) -> f64 {
        self.pulls.iter().map(|pull| pull.total).fold(0.0, f64::max)
    }

    /// When the last client had its first byte.
    pub(crate) fn worst_first_byte(&self) -> f64 {
        self.pulls
            .iter()
            .map(|pull| pull.first_byte)
            .fold(0.0, f64::max)
    }
}

/// Runs all clients and reports.
pub(crate) fn run(plan: &Plan, report: impl FnOnce(&str)) -> Result<()> {
    // The clients and the clock start together, after the threads exist.
    let barrier = Barrier::new(plan.clients + 1);
    let (pulls, cpu) = thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.clients)
            .map(|_| {
                scope.spawn(|| {
                    let mut scratch = vec![0; SCRATCH];
                    barrier.wait();
                    pull(plan, &mut scratch)
                })
            })
            .collect();
        let before = cpu_seconds(std::process::id())?;
        barrier.wait();
        let mut pulls = Vec::with_capacity(plan.clients);
        for thread in threads {
            let Ok(pull) = thread.join() else {
                bail!("a client panicked")
            };
            pulls.push(pull?);
        }
        Ok((pulls, cpu_seconds(std::process::id())? - before))
    })?;
    report(&serde_json::to_string(&Herd { pulls, cpu })?);
    Ok(())
}

fn pull(plan: &Plan, scratch: &mut [u8]) -> Result<Pull> {
    let started = Instant::now();
    let mut answer = get(plan.addr, &plan.path)?.expect_ok()?;
    answer.wait_first_byte()?;
    let first_byte = started.elapsed().as_secs_f64();
    let bytes = if plan.slow_ms == 0 {
        answer.discard(u64::MAX, scratch)?
    } else {
        let mut bytes = answer.discard(GULP, scratch)?;
        while started.elapsed() < Duration::from_millis(plan.slow_ms) && answer.left() > 0 {
            thread::sleep(TRICKLE_EVERY);
            bytes += answer.discard(TRICKLE, scratch)?;
        }
        bytes
    };
    Ok(Pull {
        first_byte,
        total: started.elapsed().as_secs_f64(),
        bytes,
    })
}
