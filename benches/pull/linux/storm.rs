//! Many clients at once ask for one blob that the mirror doesn't have.

use anyhow::Result;

use super::Sizes;
use super::common::proc::cores;
use super::common::report::{Figure, section};
use super::common::upstream::{Plan, Upstream};
use super::common::{rounds, times};
use super::run::{Cost, Pulled, cold, cost_table, direct};

/// How many clients come at once.
const CLIENTS: u32 = 32;
/// The last of them may take this many times as long as one alone.
const LAST_OVER_ALONE: f64 = 1.25;

/// One round: the three runs that its ratios compare, one right after another.
struct Round {
    alone: Pulled,
    storm: Pulled,
    direct: Pulled,
}

impl Round {
    fn measure(upstream: &Upstream) -> Result<Self> {
        Ok(Self {
            alone: cold(upstream, 1)?,
            storm: cold(upstream, CLIENTS as usize)?,
            direct: direct(upstream, CLIENTS as usize)?,
        })
    }

    /// The shortest time this machine's cores allow for the storm, in seconds: what one cold pull
    /// costs, and for each further client what a bare sendfile(2) and its client cost.
    fn floor(&self) -> f64 {
        let further = f64::from(CLIENTS - 1) / f64::from(CLIENTS);
        let cpu = self.alone.cost.parts() + further * self.direct.cost.parts();
        #[expect(clippy::cast_precision_loss, reason = "no machine has 2^52 cores")]
        let seconds = cpu / cores() as f64;
        seconds.max(self.alone.cost.wall)
    }

    /// The storm's time without the CPU time of the further clients, spread over the cores.
    fn without_clients(&self) -> f64 {
        let clients = self.storm.cost.clients - self.alone.cost.clients;
        #[expect(clippy::cast_precision_loss, reason = "no machine has 2^52 cores")]
        let seconds = clients / cores() as f64;
        self.storm.cost.wall - seconds
    }
}

pub(crate) fn measure(sizes: &Sizes) -> Result<String> {
    let upstream = Upstream::with_blobs(&[sizes.blob], &Plan::default())?;
    let rounds = rounds("storm", sizes.rounds, || Round::measure(&upstream))?;
    Ok(report(sizes, &rounds))
}

fn report(sizes: &Sizes, rounds: &[Round]) -> String {
    let each = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    #[expect(clippy::cast_precision_loss, reason = "a handful of GETs")]
    let gets = each(|round| round.storm.gets as f64);
    let bytes = rounds
        .iter()
        .map(|round| times(round.storm.bytes, sizes.blob))
        .collect::<Vec<_>>();
    let figures = [
        Figure::new("upstream GETs", "", gets).at_most(1.0),
        Figure::new("upstream bytes over the blob's", "x", bytes).at_most(1.0),
        Figure::new("one client alone", "s", each(|round| round.alone.cost.wall)),
        Figure::new("the last client", "s", each(|round| round.storm.cost.wall)),
        Figure::new("first byte of the client served last", "ms", {
            each(|round| round.storm.worst_first_byte * 1e3)
        }),
        Figure::new("last client over one alone", "x", {
            each(|round| round.storm.cost.wall / round.alone.cost.wall)
        })
        .at_most(LAST_OVER_ALONE),
        Figure::new("the same, the further clients' own CPU taken off", "x", {
            each(|round| round.without_clients() / round.alone.cost.wall)
        })
        .at_most(LAST_OVER_ALONE),
        Figure::new(
            "floor: what this machine's cores allow",
            "s",
            each(Round::floor),
        ),
        Figure::new("last client over the floor", "x", {
            each(|round| round.storm.cost.wall / round.floor())
        })
        .at_most(LAST_OVER_ALONE),
        Figure::new("32 clients straight from the upstream", "s", {
            each(|round| round.direct.cost.wall)
        }),
    ];
    let costs = |run: fn(&Round) -> &Pulled| {
        rounds
            .iter()
            .map(|round| run(round).cost)
            .collect::<Vec<Cost>>()
    };
    let mut text = section(
        &format!(
            "{CLIENTS} clients at once, cold, one blob of {}",
            sizes.name()
        ),
        &figures,
    );
    text.push_str(&cost_table(&[
        ("one client alone, cold", &costs(|round| &round.alone)),
        ("32 clients, cold", &costs(|round| &round.storm)),
        (
            "32 clients, straight from the upstream",
            &costs(|round| &round.direct),
        ),
    ]));
    text
}
