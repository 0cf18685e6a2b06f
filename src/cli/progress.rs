//! The progress of a command that moves images: bars on a terminal, lines elsewhere. Both go to standard
//! error.

use std::collections::HashMap;
use std::hash::Hash;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;
use super::table::bytes;
use crate::error_chain::printable;

/// Fits 40 columns: the bar takes what the figures leave, and none if they leave nothing.
const TOTAL: &str = "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
/// The name takes what the figures leave. Of a longer one, the end is shown, which has the tag.
const ITEM: &str = "{wide_msg:>} {binary_bytes}/{binary_total_bytes}";
/// The same, with a bar beside a short name.
pub(super) const BLOB: &str = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes}";
/// The bars of items at a time; others are only in the sum.
const MAX_BARS: usize = 16;
/// How often bars are drawn though nothing has arrived.
const TICK: Duration = Duration::from_millis(200);

/// What is shown of items that move together.
pub(super) struct Progress {
    /// None where standard error isn't a terminal, and for `--quiet`.
    bars: Option<Bars<usize>>,
    quiet: bool,
}

/// A bar for each item that moves, and one for all.
pub(super) struct Bars<K> {
    all: MultiProgress,
    total: ProgressBar,
    item: &'static str,
    /// How much of each item has arrived, and its bar if it has one.
    items: HashMap<K, (u64, Option<ProgressBar>)>,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        let is_shown = !quiet && std::io::stderr().is_terminal();
        Self {
            bars: is_shown.then(|| Bars::new(ITEM)),
            quiet,
        }
    }

    /// An item begins, or more of one becomes known.
    pub(super) fn expect(&mut self, item: usize, name: &str, bytes: u64) {
        if let Some(bars) = &mut self.bars {
            bars.expect(bytes);
            bars.begin(item, name, bytes);
        }
    }

    pub(super) fn arrived(&mut self, item: usize, bytes: u64) {
        if let Some(bars) = &mut self.bars {
            let at = bars.at(&item);
            bars.move_to(&item, at + bytes);
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
        bars.end(&item);
        bars.say(line);
    }

    /// All have ended: the bars go.
    pub(super) fn finish(self) {
        if let Some(bars) = self.bars {
            bars.finish();
        }
    }
}

impl<K: Copy + Eq + Hash> Bars<K> {
    /// `item` is the template of an item's bar.
    pub(super) fn new(item: &'static str) -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let total = all.add(ProgressBar::new(0).with_style(style(TOTAL)));
        Self {
            all,
            total,
            item,
            items: HashMap::new(),
        }
    }

    /// So many bytes more are to come.
    pub(super) fn expect(&self, bytes: u64) {
        // Nothing is drawn before: a bar of no bytes would look complete.
        if self.total.length() == Some(0) {
            self.total.enable_steady_tick(TICK);
        }
        self.total.inc_length(bytes);
    }

    /// An item begins, or more of one becomes known.
    pub(super) fn begin(&mut self, item: K, name: &str, bytes: u64) {
        let shown = self.items.values().filter(|(_, bar)| bar.is_some()).count();
        let (_, bar) = self.items.entry(item).or_insert_with(|| {
            let bar = (shown < MAX_BARS).then(|| {
                let bar = ProgressBar::new(0).with_style(style(self.item));
                let bar = self.all.insert_before(&self.total, bar);
                bar.with_message(printable(name).into_owned())
            });
            (0, bar)
        });
        if let Some(bar) = bar {
            bar.inc_length(bytes);
        }
    }

    /// An item that never begins has so many bytes.
    pub(super) fn pass(&self, bytes: u64) {
        self.total.inc(bytes);
    }

    pub(super) fn is_begun(&self, item: &K) -> bool {
        self.items.contains_key(item)
    }

    /// How much of an item has arrived.
    pub(super) fn at(&self, item: &K) -> u64 {
        self.items.get(item).map_or(0, |(at, _)| *at)
    }

    /// So much of an item has arrived; it may be less than before.
    pub(super) fn move_to(&mut self, item: &K, to: u64) {
        let Some((at, bar)) = self.items.get_mut(item) else {
            return;
        };
        self.total.inc(to.saturating_sub(*at));
        self.total.dec(at.saturating_sub(to));
        *at = to;
        if let Some(bar) = bar {
            bar.set_position(to);
        }
    }

    /// An item has ended.
    pub(super) fn end(&mut self, item: &K) {
        if let Some((_, Some(bar))) = self.items.remove(item) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }

    /// Shows a line above the bars. A terminal that is gone shows nothing.
    pub(super) fn say(&self, line: &str) {
        drop(self.all.println(printable(line)));
    }

    /// The bars go.
    pub(super) fn finish(&self) {
        self.total.finish_and_clear();
        drop(self.all.clear());
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
        for template in [TOTAL, ITEM, BLOB] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
        assert_eq!(amount(1, 1024), "1 blob, 1.0 KiB");
    }
}
