//! Medians, spreads, and when a ratio says nothing.

use std::fmt;

use super::peers::Peer;
use super::report::median;

/// The spread from which on a ratio is not printed.
const NOISE: f64 = 0.25;
/// From so many rounds on, the best and the worst are left out of the spread.
const ROUNDS_TO_TRIM: usize = 5;
/// With fewer rounds, nothing is known about the spread.
const MIN_ROUNDS: usize = 3;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    fn met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    pub(crate) const fn bound(self) -> f64 {
        match self {
            Self::AtLeast(bound) | Self::AtMost(bound) => bound,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::AtMost(bound) => write!(f, "<= {bound}"),
        }
    }
}

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

/// Samples of one figure, one a round.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn median(&self) -> f64 {
        median(&self.0)
    }

    fn low(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    fn high(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// How far the samples are apart, over their median.
    pub(crate) fn spread(&self) -> f64 {
        let kept = if self.0.len() >= ROUNDS_TO_TRIM {
            self.0.get(1..self.0.len() - 1).unwrap_or_default()
        } else {
            &self.0
        };
        match (kept.first(), kept.last()) {
            (Some(low), Some(high)) if self.0.len() >= MIN_ROUNDS => (high - low) / self.median(),
            _ => f64::INFINITY,
        }
    }

    /// Whether the median says nothing.
    pub(crate) fn too_noisy(&self) -> bool {
        // Also when it isn't a number, which no comparison is true for.
        !matches!(self.spread().partial_cmp(&NOISE), Some(order) if order.is_le())
    }

    /// `low-high`
    pub(crate) fn range(&self) -> String {
        format!("{}-{}", number(self.low()), number(self.high()))
    }

    pub(crate) fn verdict(&self, target: Option<Target>) -> Verdict {
        let Some(target) = target else {
            return Verdict::Shown;
        };
        let met = self.0.iter().filter(|value| target.met_by(**value)).count();
        // However far apart they are: all rounds are on one side.
        if self.0.len() >= MIN_ROUNDS && met == self.0.len() {
            return Verdict::Meets;
        }
        if self.0.len() >= MIN_ROUNDS && met == 0 {
            return Verdict::FallsShort;
        }
        if self.too_noisy() {
            return Verdict::TooNoisy;
        }
        if target.met_by(self.median()) {
            Verdict::Meets
        } else {
            Verdict::FallsShort
        }
    }
}

/// Millpond's figure over a peer's, round by round.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) row: String,
    pub(crate) peer: Peer,
    pub(crate) figure: &'static str,
    pub(crate) ratios: Samples,
    pub(crate) target: Option<Target>,
}

/// A figure of millpond's that is compared with nothing but its target.
#[derive(Debug)]
pub(crate) struct Absolute {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) samples: Samples,
    pub(crate) target: Option<Target>,
}

impl Absolute {
    /// A figure that was measured once, or whose median is no matter.
    pub(crate) fn once(
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        target: Option<Target>,
    ) -> Self {
        Self {
            name: name.into(),
            unit,
            samples: Samples::new([value]),
            target,
        }
    }

    /// The worst of the rounds decides.
    fn verdict(&self) -> Verdict {
        match self.target {
            None => Verdict::Shown,
            Some(target)
                if target.met_by(self.samples.low()) && target.met_by(self.samples.high()) =>
            {
                Verdict::Meets
            }
            Some(_) => Verdict::FallsShort,
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
        let (ratio, spread) = match ratios.spread() {
            spread if spread.is_infinite() => ("too few rounds".to_owned(), "-".to_owned()),
            spread if ratios.too_noisy() => ("too noisy".to_owned(), percent(spread)),
            spread => (format!("{} x", number(ratios.median())), percent(spread)),
        };
        text.push_str(&format!(
            "| {} | {} | {} | {ratio} | {} | {spread} | {} | {} |\n",
            comparison.row,
            comparison.peer,
            comparison.figure,
            ratios.range(),
            target(comparison.target),
            ratios.verdict(comparison.target),
        ));
    }
    text
}

/// The table of figures that stand alone.
pub(crate) fn absolute_table(figures: &[Absolute]) -> String {
    let mut text = "| figure | median | range | unit | target | verdict |\n\
                    |---|---:|---|---|---|---|\n"
        .to_owned();
    for figure in figures {
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            figure.name,
            number(figure.samples.median()),
            figure.samples.range(),
            figure.unit,
            target(figure.target),
            figure.verdict(),
        ));
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn target(target: Option<Target>) -> String {
    target.map_or(String::new(), |target| target.to_string())
}

/// Three significant digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "-".to_owned(),
        size if value.fract() == 0.0 || size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}
