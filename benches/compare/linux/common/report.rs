//! Figures and their tables. Nothing here fails a run: a busy machine is no defect of the code.

use std::fmt;

/// The spread above which a ratio is not printed.
const NOISE: f64 = 0.25;
/// The fewest rounds with which the best and the worst are left out of the spread.
const ROUNDS_TO_TRIM: usize = 5;
/// The fewest rounds with which the spread is known.
const MIN_ROUNDS: usize = 3;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    pub(crate) fn met_by(self, value: f64) -> bool {
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

pub(crate) fn target_text(target: Option<Target>) -> String {
    target.map_or(String::new(), |target| target.to_string())
}

/// Samples of one figure, one for each round, sorted.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// Not a number where there are no samples.
    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        let at = |at: usize| self.0.get(at).copied().unwrap_or(f64::NAN);
        if self.0.len() % 2 == 1 {
            at(middle)
        } else {
            f64::midpoint(at(middle.saturating_sub(1)), at(middle))
        }
    }

    /// The sample that so many percent of them aren't above.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let at = (self.0.len() * percent).div_ceil(100);
        let value = self.0.get(at.saturating_sub(1));
        value.copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn low(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn high(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// `low-high`
    pub(crate) fn range(&self) -> String {
        format!("{}-{}", number(self.low()), number(self.high()))
    }

    /// How far the samples are apart, over their median; infinite where they are too few.
    pub(crate) fn spread(&self) -> f64 {
        let all = self.0.as_slice();
        let kept = match all {
            [_, kept @ .., _] if all.len() >= ROUNDS_TO_TRIM => kept,
            kept => kept,
        };
        match (kept.first(), kept.last()) {
            (Some(low), Some(high)) if all.len() >= MIN_ROUNDS => (high - low) / self.median(),
            _ => f64::INFINITY,
        }
    }

    /// How many samples meet a target.
    pub(crate) fn meeting(&self, target: Target) -> usize {
        self.0.iter().filter(|value| target.met_by(**value)).count()
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

/// What decides whether a figure meets its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judge {
    Median,
    /// The same, unless the samples are too far apart: then they have to agree, and no median is
    /// printed, because it would say more about the machine than about the code.
    SteadyMedian,
    /// Every sample.
    Worst,
}

/// One line of a table.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    unit: &'static str,
    pub(crate) samples: Samples,
    pub(crate) target: Option<Target>,
    judge: Judge,
}

impl Figure {
    pub(crate) fn new(
        name: impl Into<String>,
        unit: &'static str,
        samples: impl IntoIterator<Item = f64>,
    ) -> Self {
        Self {
            name: name.into(),
            unit,
            samples: Samples::new(samples),
            target: None,
            judge: Judge::Median,
        }
    }

    pub(crate) fn target(mut self, target: impl Into<Option<Target>>) -> Self {
        self.target = target.into();
        self
    }

    /// The median counts only where the samples are close together.
    pub(crate) fn steady(mut self) -> Self {
        self.judge = Judge::SteadyMedian;
        self
    }

    /// Every sample has to meet the target.
    pub(crate) fn worst(mut self) -> Self {
        self.judge = Judge::Worst;
        self
    }

    /// Whether the median says nothing.
    pub(crate) fn too_noisy(&self) -> bool {
        // Also when the spread isn't a number, which no comparison is true for.
        let spread = self.samples.spread();
        self.judge == Judge::SteadyMedian
            && !matches!(spread.partial_cmp(&NOISE), Some(order) if order.is_le())
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let Some(target) = self.target else {
            return Verdict::Shown;
        };
        let (met, all) = (self.samples.meeting(target), self.samples.0.len());
        // However far apart they are: all rounds are on one side.
        let agree = all >= MIN_ROUNDS && (met == 0 || met == all);
        let meets = match self.judge {
            Judge::SteadyMedian if agree => met == all,
            Judge::SteadyMedian if self.too_noisy() => return Verdict::TooNoisy,
            Judge::Worst => met == all,
            Judge::Median | Judge::SteadyMedian => target.met_by(self.samples.median()),
        };
        if meets {
            Verdict::Meets
        } else {
            Verdict::FallsShort
        }
    }

    /// The median, or why there is none.
    pub(crate) fn middle(&self) -> String {
        if !self.too_noisy() {
            number(self.samples.median())
        } else if self.samples.spread().is_infinite() {
            "too few rounds".to_owned()
        } else {
            "too noisy".to_owned()
        }
    }

    fn row(&self) -> String {
        format!(
            "| {} | {} | {} | {} | {} | {} | {} |\n",
            self.name,
            self.middle(),
            number(self.samples.low()),
            number(self.samples.high()),
            self.unit,
            target_text(self.target),
            self.verdict(),
        )
    }
}

/// The figures of some rounds.
pub(crate) struct Figures<'a, R> {
    rounds: &'a [R],
    figures: Vec<Figure>,
}

impl<'a, R> Figures<'a, R> {
    pub(crate) const fn of(rounds: &'a [R]) -> Self {
        Self {
            rounds,
            figures: Vec::new(),
        }
    }

    /// Adds a figure that is only shown.
    pub(crate) fn show(&mut self, name: &str, unit: &'static str, value: impl Fn(&R) -> f64) {
        self.add(name, unit, None, value);
    }

    /// Adds a figure that has a target.
    pub(crate) fn add(
        &mut self,
        name: &str,
        unit: &'static str,
        target: impl Into<Option<Target>>,
        value: impl Fn(&R) -> f64,
    ) {
        let figure = Figure::new(name, unit, self.rounds.iter().map(value));
        self.push(figure.target(target));
    }

    pub(crate) fn push(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// The table of all of them.
    pub(crate) fn table(&self) -> String {
        table(&self.figures)
    }
}

/// A table of figures.
pub(crate) fn table(figures: &[Figure]) -> String {
    let head = "| figure | median | min | max | unit | target | verdict |\n\
                |---|---:|---:|---:|---|---|---|\n";
    head.to_owned() + &figures.iter().map(Figure::row).collect::<String>()
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
