//! The report: tables in Markdown and a chart, printed and kept.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::Sizes;
use super::chart;
use super::common::note;
use super::common::proc::{cores, describe_load, describe_machine};
use super::common::report::{Figure, Target, table, target_text};
use super::peers::{self, Peer};

/// Millpond's figure over a peer's, for each round.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) row: String,
    pub(crate) peer: Peer,
    pub(crate) ratio: Figure,
}

/// What has been measured so far.
#[derive(Debug)]
pub(crate) struct Results {
    quick: bool,
    machine: String,
    set_up: String,
    missing: Vec<String>,
    pub(crate) comparisons: Vec<Comparison>,
    pub(crate) figures: Vec<Figure>,
    sections: Vec<(String, String)>,
}

impl Results {
    pub(crate) fn new(quick: bool, sizes: &Sizes, upstream: &str, data: &Path) -> Result<Self> {
        let versions: Vec<_> = ["nginx", "docker-registry", "skopeo"]
            .into_iter()
            .map(|program| peers::version(program).unwrap_or(format!("no {program}")))
            .collect();
        let set_up = format!(
            "{} rounds, the order turned round after each. Peers: {}. Upstream: {upstream}.",
            sizes.rounds,
            versions.join("; "),
        );
        Ok(Self {
            quick,
            machine: describe_machine(data)?,
            set_up,
            missing: Vec::new(),
            comparisons: Vec::new(),
            figures: Vec::new(),
            sections: Vec::new(),
        })
    }

    /// Says once that a peer can't be compared with.
    pub(crate) fn missing(&mut self, peer: Peer, program: &str) {
        let line = format!("NOT COMPARED with {peer}: {program} is not installed here.");
        if !self.missing.contains(&line) {
            note(&line);
            self.missing.push(line);
        }
    }

    /// Adds a figure of one sample.
    pub(crate) fn add(
        &mut self,
        name: &str,
        unit: &'static str,
        value: f64,
        target: impl Into<Option<Target>>,
    ) {
        let figure = Figure::new(name, unit, [value]);
        self.figures.push(figure.target(target));
    }

    /// Adds a part with details.
    pub(crate) fn section(&mut self, title: &str, text: &str) {
        self.sections.push((title.to_owned(), text.to_owned()));
    }

    /// The report without the chart.
    pub(crate) fn text(&self) -> Result<String> {
        self.with_chart(None)
    }

    fn with_chart(&self, chart: Option<&str>) -> Result<String> {
        let mut text = format!(
            "# millpond, measured, {}\n\n{}\n{} At the end: {}\n",
            today(),
            self.machine,
            self.set_up,
            describe_load()?,
        );
        if self.quick {
            text.push_str(
                "\nA quick run: it shows that the bench works; its figures mean little.\n",
            );
        }
        for line in &self.missing {
            text.push_str(&format!("\n{line}\n"));
        }
        if !self.comparisons.is_empty() {
            text.push_str("\n## millpond over its peers\n\n");
            if let Some(chart) = chart {
                text.push_str(&format!("![Ratios, and their targets]({chart})\n\n"));
            }
            text.push_str(&comparison_table(&self.comparisons));
        }
        if !self.figures.is_empty() {
            text.push_str("\n## millpond alone\n\n");
            text.push_str(&table(&self.figures));
        }
        for (title, section) in &self.sections {
            text.push_str(&format!("\n## {title}\n\n{section}"));
        }
        Ok(text)
    }

    /// Writes the report and the chart to `benches/results`.
    pub(crate) fn write(&self) -> Result<()> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
        fs::create_dir_all(&directory)?;
        let quick = if self.quick { "-quick" } else { "" };
        let name = format!("{}-{}{quick}", today(), machine_name(&self.machine));
        let chart = format!("{name}.svg");
        if !self.comparisons.is_empty() {
            fs::write(directory.join(&chart), chart::draw(&self.comparisons))?;
        }
        let report = directory.join(format!("{name}.md"));
        fs::write(&report, self.with_chart(Some(&chart))?)?;
        note(&format!("written to benches/results/{name}.md"));
        Ok(())
    }
}

/// The table of comparisons.
fn comparison_table(comparisons: &[Comparison]) -> String {
    let mut text = "| work | against | figure | ratio | range | spread | target | verdict |\n\
                    |---|---|---|---:|---|---:|---|---|\n"
        .to_owned();
    for Comparison { row, peer, ratio } in comparisons {
        text.push_str(&format!(
            "| {row} | {peer} | {} | {} | {} | {} | {} | {} |\n",
            ratio.name,
            ratio.middle(),
            ratio.samples.range(),
            percent(ratio.samples.spread()),
            target_text(ratio.target),
            ratio.verdict(),
        ));
    }
    text
}

fn percent(share: f64) -> String {
    if share.is_finite() {
        format!("{:.0} %", share * 100.0)
    } else {
        "-".to_owned()
    }
}

/// The date, in UTC.
#[expect(
    clippy::disallowed_methods,
    reason = "a file's name, far from the clock under test"
)]
fn today() -> String {
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    now.split('T').next().unwrap_or_default().to_owned()
}

/// Words of a CPU's name in a file's name.
const WORDS: usize = 4;

/// `2-cores-amd-epyc`: nothing that names the host.
fn machine_name(description: &str) -> String {
    let model = description
        .split_once(" cores of ")
        .and_then(|(_, rest)| rest.split(", Linux").next())
        .unwrap_or("unknown");
    let words = model
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !matches!(*word, "" | "R" | "TM" | "CPU" | "Processor"))
        .take(WORDS)
        .map(str::to_ascii_lowercase);
    let model = words.collect::<Vec<_>>().join("-");
    format!("{}-cores-{model}", cores())
}
