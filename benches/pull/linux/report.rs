//! Figures and how they are printed: median, smallest and largest of what was measured, beside the
//! target. Nothing here fails a run: a busy machine is no defect of the code.

use super::proc;

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    samples: Vec<f64>,
    target: Option<Target>,
    /// The widest spread, (max - min) / median, at which a median still says something.
    steady: Option<f64>,
}

/// What the median has to be.
#[derive(Debug, Clone, Copy)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(target) => value <= target,
            Self::AtLeast(target) => value >= target,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(target) => format!("<= {target}"),
            Self::AtLeast(target) => format!(">= {target}"),
        }
    }
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> Self {
        Self {
            name: name.into(),
            unit,
            samples,
            target: None,
            steady: None,
        }
    }

    /// Sets the target: the median has to be this or less.
    pub(crate) fn at_most(mut self, target: f64) -> Self {
        self.target = Some(Target::AtMost(target));
        self
    }

    /// Sets the target: the median has to be this or more.
    pub(crate) fn at_least(mut self, target: f64) -> Self {
        self.target = Some(Target::AtLeast(target));
        self
    }

    /// No median is printed when `(max - min) / median` is above `spread`: it would say more about
    /// the machine than about the code.
    pub(crate) fn steady(mut self, spread: f64) -> Self {
        self.steady = Some(spread);
        self
    }

    fn row(&self) -> String {
        let sorted = sorted(&self.samples);
        let (low, high) = (sorted.first().copied(), sorted.last().copied());
        let median = median(&self.samples);
        let spread = (high.unwrap_or(f64::NAN) - low.unwrap_or(f64::NAN)) / median;
        let noisy = self.steady.is_some_and(|limit| spread > limit);
        let middle = if noisy {
            "too noisy".to_owned()
        } else {
            number(Some(median))
        };
        let target = self.target.map_or_else(String::new, Target::text);
        let verdict = self
            .target
            .map_or("", |target| self.verdict(target, median, noisy));
        format!(
            "| {} | {middle} | {} | {} | {} | {target} | {verdict} |",
            self.name,
            number(low),
            number(high),
            self.unit,
        )
    }

    /// A noisy figure is only judged where all its samples agree.
    fn verdict(&self, target: Target, median: f64, noisy: bool) -> &'static str {
        let met = self
            .samples
            .iter()
            .filter(|value| target.is_met_by(**value));
        match (noisy, met.count()) {
            (true, some) if some != 0 && some != self.samples.len() => "can't tell",
            (true, 0) => "falls short",
            (false, _) if !target.is_met_by(median) => "falls short",
            _ => "meets",
        }
    }
}

/// A table of figures under a heading.
pub(crate) fn table(heading: &str, figures: &[Figure]) -> String {
    let mut text = format!("\n## {heading}\n\n");
    text.push_str("| figure | median | min | max | unit | target | verdict |\n");
    text.push_str("|---|---:|---:|---:|---|---|---|\n");
    for figure in figures {
        text.push_str(&figure.row());
        text.push('\n');
    }
    text
}

/// Where the CPU seconds of one kind of run went, and how long it took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) wall: f64,
    pub(crate) mirror: f64,
    pub(crate) upstream: f64,
    pub(crate) clients: f64,
    /// The rest of the machine: kernel threads that write files back, and whatever else runs.
    pub(crate) others: f64,
}

impl Cost {
    /// CPU seconds of the three parts of a run.
    pub(crate) fn parts(&self) -> f64 {
        self.mirror + self.upstream + self.clients
    }
}

/// Medians of where the CPU seconds went, one line a kind of run.
pub(crate) fn cost_table(kinds: &[(&str, &[Cost])]) -> String {
    let mut text = "\n| CPU seconds of (medians) | mirror | upstream | clients | rest of the \
                    machine | wall, s | cores busy with the three parts |\n\
                    |---|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for (name, costs) in kinds {
        let middle = |part: fn(&Cost) -> f64| {
            number(Some(median(&costs.iter().map(part).collect::<Vec<_>>())))
        };
        let row = format!(
            "| {name} | {} | {} | {} | {} | {} | {} of {} |\n",
            middle(|cost| cost.mirror),
            middle(|cost| cost.upstream),
            middle(|cost| cost.clients),
            middle(|cost| cost.others),
            middle(|cost| cost.wall),
            middle(|cost| cost.parts() / cost.wall),
            proc::cores(),
        );
        text.push_str(&row);
    }
    text
}

/// The middle of `samples`; not a number when there are none.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let sorted = sorted(samples);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 {
        return upper;
    }
    let lower = middle
        .checked_sub(1)
        .and_then(|at| sorted.get(at))
        .copied()
        .unwrap_or(f64::NAN);
    f64::midpoint(lower, upper)
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value.fract() == 0.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}
