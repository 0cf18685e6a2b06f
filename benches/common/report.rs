//! Figures and their tables. Nothing here fails a run: a busy machine is no defect of the code.

use std::fmt;

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

    pub(crate) fn values(&self) -> &[f64] {
        &self.0
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

    /// How many samples meet a target.
    pub(crate) fn meeting(&self, target: Target) -> usize {
        self.0.iter().filter(|value| target.met_by(**value)).count()
    }
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    Samples::new(samples.iter().copied()).median()
}

/// What decides whether a figure meets its target.
#[derive(Debug, Clone, Copy)]
enum Judge {
    Median,
    /// The same, unless `(max - min) / median` is above this: then the samples have to agree, and no
    /// median is printed, because it would say more about the machine than about the code.
    SteadyMedian(f64),
    /// Every sample.
    Worst,
}

/// One line of a table.
#[derive(Debug)]
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    samples: Samples,
    target: Option<Target>,
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

    pub(crate) fn target(mut self, target: Option<Target>) -> Self {
        self.target = target;
        self
    }

    pub(crate) fn at_most(self, bound: f64) -> Self {
        self.target(Some(Target::AtMost(bound)))
    }

    pub(crate) fn at_least(self, bound: f64) -> Self {
        self.target(Some(Target::AtLeast(bound)))
    }

    /// The widest spread, `(max - min) / median`, with which the median counts.
    pub(crate) fn steady(mut self, spread: f64) -> Self {
        self.judge = Judge::SteadyMedian(spread);
        self
    }

    /// Every sample has to meet the target.
    pub(crate) fn worst(mut self) -> Self {
        self.judge = Judge::Worst;
        self
    }

    fn is_noisy(&self) -> bool {
        let spread = (self.samples.high() - self.samples.low()) / self.samples.median();
        matches!(self.judge, Judge::SteadyMedian(limit) if spread > limit)
    }

    fn verdict(&self, target: Target) -> &'static str {
        let (met, all) = (self.samples.meeting(target), self.samples.values().len());
        let meets = match self.judge {
            Judge::SteadyMedian(_) if self.is_noisy() && met != 0 && met != all => {
                return "can't tell";
            }
            Judge::SteadyMedian(_) if self.is_noisy() => met == all,
            Judge::Worst => met == all,
            Judge::Median | Judge::SteadyMedian(_) => target.met_by(self.samples.median()),
        };
        if meets { "meets" } else { "falls short" }
    }

    fn row(&self) -> String {
        let middle = if self.is_noisy() {
            "too noisy".to_owned()
        } else {
            number(self.samples.median())
        };
        format!(
            "| {} | {middle} | {} | {} | {} | {} | {} |\n",
            self.name,
            number(self.samples.low()),
            number(self.samples.high()),
            self.unit,
            target_text(self.target),
            self.target.map_or("", |target| self.verdict(target)),
        )
    }
}

/// A table of figures.
pub(crate) fn table(figures: &[Figure]) -> String {
    let head = "| figure | median | min | max | unit | target | verdict |\n\
                |---|---:|---:|---:|---|---|---|\n";
    head.to_owned() + &figures.iter().map(Figure::row).collect::<String>()
}

/// The same under a heading.
pub(crate) fn section(heading: &str, figures: &[Figure]) -> String {
    format!("\n## {heading}\n\n{}", table(figures))
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
