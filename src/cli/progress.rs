//! The progress of a command that moves images: bars on a terminal, lines elsewhere. Both go to standard
//! error.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;
use super::table::bytes;

/// Fits 40 columns: the bar takes what the figures leave, and none if they leave nothing.
const TOTAL: &str = "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
/// The name takes what the figures leave. Of a longer one, the end is shown, which has the tag.
const ITEM: &str = "{wide_msg:>} {binary_bytes}/{binary_total_bytes}";
/// How often bars are drawn though nothing has arrived.
const TICK: Duration = Duration::from_millis(200);

/// What is shown of items that move together.
pub(super) struct Progress {
    /// None where standard error isn't a terminal, and for `--quiet`.
    bars: Option<Bars>,
    quiet: bool,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    items: HashMap<usize, ProgressBar>,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        let is_shown = !quiet && std::io::stderr().is_terminal();
        Self {
            bars: is_shown.then(Bars::new),
            quiet,
        }
    }

    /// An item begins, or more of one becomes known.
    pub(super) fn expect(&mut self, item: usize, name: &str, bytes: u64) {
        if let Some(bars) = &mut self.bars {
            bars.total.inc_length(bytes);
            bars.item(item, name).inc_length(bytes);
        }
    }

    pub(super) fn arrived(&mut self, item: usize, bytes: u64) {
        if let Some(bars) = &self.bars {
            bars.total.inc(bytes);
            if let Some(bar) = bars.items.get(&item) {
                bar.inc(bytes);
            }
        }
    }

    /// An item has ended, of which `line` is said.
    pub(super) fn ended(&mut self, item: usize, line: &str) {
        let Some(bars) = &mut self.bars else {
            if !self.quiet {
                say(line);
            }
            return;
        };
        if let Some(bar) = bars.items.remove(&item) {
            bar.finish_and_clear();
        }
        // Above the bars.
        drop(bars.all.println(line));
    }

    /// All have ended: the bars go.
    pub(super) fn finish(self) {
        if let Some(bars) = self.bars {
            bars.total.finish_and_clear();
            drop(bars.all.clear());
        }
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let total = all.add(ProgressBar::new(0).with_style(style(TOTAL)));
        total.enable_steady_tick(TICK);
        Self {
            all,
            total,
            items: HashMap::new(),
        }
    }

    fn item(&mut self, item: usize, name: &str) -> &ProgressBar {
        let Self { all, total, items } = self;
        items.entry(item).or_insert_with(|| {
            let bar = ProgressBar::new(0).with_style(style(ITEM));
            all.insert_before(total, bar).with_message(name.to_owned())
        })
    }
}

/// A template of this file, which a test reads.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_broken| ProgressStyle::default_bar())
}

/// `3 blobs, 12.3 MiB`
pub(super) fn amount(blobs: u64, size: u64) -> String {
    let s = if blobs == 1 { "" } else { "s" };
    format!("{blobs} blob{s}, {}", bytes(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [TOTAL, ITEM] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
        assert_eq!(amount(1, 1024), "1 blob, 1.0 KiB");
    }
}
