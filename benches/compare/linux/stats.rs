//! Ratios of millpond's figures and a peer's, and when a ratio says nothing.

use std::fmt;

use super::common::report::{Samples, Target, number, target_text};
use super::peers::Peer;

/// The spread above which a ratio is not printed.
const NOISE: f64 = 0.25;
/// The fewest rounds with which the best and the worst are left out of the spread.
const ROUNDS_TO_TRIM: usize = 5;
/// The fewest rounds with which the spread is known.
const MIN_ROUNDS: usize = 3;

/// What the samples say about the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is no target.
    Shown,
    Meets,
    FallsShort,
    TooNoisy,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shown => "",
            Self::Meets => "meets",
            Self::FallsShort => "falls short",
            Self::TooNoisy => "unknown",
        })
    }
}

/// Millpond's figure over a peer's, for each round.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) row: String,
    pub(crate) peer: Peer,
    pub(crate) figure: &'static str,
    pub(crate) ratios: Samples,
    pub(crate) target: Option<Target>,
}

impl Comparison {
    /// How far the ratios are apart, over their median.
    fn spread(&self) -> f64 {
        let all = self.ratios.values();
        let kept = if all.len() >= ROUNDS_TO_TRIM {
            all.get(1..all.len() - 1).unwrap_or_default()
        } else {
            all
        };
        match (kept.first(), kept.last()) {
            (Some(low), Some(high)) if all.len() >= MIN_ROUNDS => {
                (high - low) / self.ratios.median()
            }
            _ => f64::INFINITY,
        }
    }

    /// Whether the median says nothing.
    pub(crate) fn too_noisy(&self) -> bool {
        // Also when it isn't a number, which no comparison is true for.
        !matches!(self.spread().partial_cmp(&NOISE), Some(order) if order.is_le())
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let Some(target) = self.target else {
            return Verdict::Shown;
        };
        let (met, all) = (self.ratios.meeting(target), self.ratios.values().len());
        // However far apart they are: all rounds are on one side.
        let agree = all >= MIN_ROUNDS && (met == 0 || met == all);
        if self.too_noisy() && !agree {
            return Verdict::TooNoisy;
        }
        if (agree && met == all) || (!agree && target.met_by(self.ratios.median())) {
            Verdict::Meets
        } else {
            Verdict::FallsShort
        }
    }
}

/// The table of comparisons.
pub(crate) fn comparison_table(comparisons: &[Comparison]) -> String {
    let mut text = "| work | against | figure | ratio | range | spread | target | verdict |\n\
                    |---|---|---|---:|---|---:|---|---|\n"
        .to_owned();
    for comparison in comparisons {
        let ratios = &comparison.ratios;
        let (ratio, spread) = match comparison.spread() {
            spread if spread.is_infinite() => ("too few rounds".to_owned(), "-".to_owned()),
            spread if comparison.too_noisy() => ("too noisy".to_owned(), percent(spread)),
            spread => (format!("{} x", number(ratios.median())), percent(spread)),
        };
        text.push_str(&format!(
            "| {} | {} | {} | {ratio} | {} | {spread} | {} | {} |\n",
            comparison.row,
            comparison.peer,
            comparison.figure,
            ratios.range(),
            target_text(comparison.target),
            comparison.verdict(),
        ));
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
