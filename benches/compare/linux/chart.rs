//! The ratios as bars, each with its target as a line across it. Plain SVG, no script, no font.

use super::common::report::{Target, Verdict};
use super::results::Comparison;

const WIDTH: f64 = 960.0;
/// Where bars begin; left of it are their names.
const LEFT: f64 = 470.0;
const RIGHT: f64 = 880.0;
const TOP: f64 = 48.0;
const LINE: f64 = 22.0;
const BAR: f64 = 14.0;

/// A ratio's place: the scale is logarithmic, as wide as the ratios are.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(comparisons: &[Comparison]) -> Self {
        let mut scale = Self {
            low: 0.5_f64.log10(),
            high: 2_f64.log10(),
        };
        for comparison in comparisons {
            let Comparison { ratio, .. } = comparison;
            let target = ratio.target.map(Target::bound);
            for value in target.into_iter().chain([ratio.samples.median()]) {
                if value.is_finite() && value > 0.0 {
                    scale.low = scale.low.min(value.log10());
                    scale.high = scale.high.max(value.log10());
                }
            }
        }
        scale
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.log10() - self.low) / (self.high - self.low);
        LEFT + share.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }
}

/// Draws all comparisons, one line each.
pub(crate) fn draw(comparisons: &[Comparison]) -> String {
    let scale = Scale::of(comparisons);
    let bottom = TOP + comparisons.len() as f64 * LINE;
    let height = bottom + 36.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\">millpond over its peers (logarithmic; \
         black: the target; grey: too noisy)</text>\n"
    );
    for tick in [
        0.01_f64, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0, 10_000.0,
    ] {
        if tick.log10() < scale.low || tick.log10() > scale.high {
            continue;
        }
        let x = scale.at(tick);
        svg.push_str(&format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{tick}</text>\n",
            bottom + 18.0
        ));
    }
    let mut y = TOP;
    for comparison in comparisons {
        svg.push_str(&bar(comparison, &scale, y));
        y += LINE;
    }
    svg.push_str("</svg>\n");
    svg
}

/// A bar from 1 to the ratio: to the right where millpond's figure is the larger one.
fn bar(comparison: &Comparison, scale: &Scale, y: f64) -> String {
    let Comparison { row, peer, ratio } = comparison;
    let noisy = ratio.too_noisy();
    let colour = match ratio.verdict() {
        _ if noisy => "#bbb",
        Verdict::Meets => "#2a7f4f",
        Verdict::FallsShort => "#b8432f",
        Verdict::Shown | Verdict::TooNoisy => "#4a6fa5",
    };
    let label = if noisy {
        ratio.samples.range()
    } else {
        ratio.middle()
    };
    let (one, end) = (scale.at(1.0), scale.at(ratio.samples.median()));
    let middle = y + LINE / 2.0;
    let mut svg = format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{row}: {} / {peer}</text>\
         <rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\">{label}</text>\n",
        LEFT - 8.0,
        middle + 4.0,
        ratio.name,
        one.min(end),
        middle - BAR / 2.0,
        (end - one).abs().max(1.0),
        RIGHT + 8.0,
        middle + 4.0,
    );
    if let Some(target) = ratio.target {
        let x = scale.at(target.bound());
        svg.push_str(&format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"black\" stroke-width=\"2\"/>\n",
            y + 1.0,
            y + LINE - 1.0
        ));
    }
    svg
}
