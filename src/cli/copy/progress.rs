//! Shows the progress of copies: bars on a terminal, lines elsewhere, or JSON.

use std::collections::HashMap;
use std::io::Write as _;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cli::progress::{BLOB, Bars, amount};
use crate::cli::table::bytes;
use crate::copy::{BlobEnd, BlobStep, Event, Observer};
use crate::error_chain::on_one_line;
use crate::oci::Digest;

/// Characters of a digest that are shown.
const SHORT: usize = 12;
/// Between two lines of JSON for the progress of one blob.
const PAUSE: Duration = Duration::from_secs(1);

/// Shows the progress until the end.
pub(super) trait Shown: Observer {
    /// Nothing more is shown.
    fn end(&self) {}
}

impl Shown for () {}

/// One bar for each blob that is being sent, and one for all.
pub(super) struct BlobBars(Mutex<Bars<Digest>>);

impl BlobBars {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Bars::new(BLOB)))
    }
}

fn short(digest: &Digest) -> String {
    digest.hex().chars().take(SHORT).collect()
}

impl Observer for BlobBars {
    fn on(&self, event: &Event<'_>) {
        let mut bars = self.0.lock();
        match event {
            Event::Planned { bytes, .. } => bars.expect(*bytes),
            Event::Blob { digest, size, step } => match step {
                BlobStep::Sent(at) => {
                    if !bars.is_begun(digest) {
                        bars.begin(**digest, &short(digest), *size);
                    }
                    bars.move_to(digest, *at);
                }
                BlobStep::Ended(_) if bars.is_begun(digest) => {
                    bars.move_to(digest, *size);
                    bars.end(digest);
                }
                BlobStep::Ended(_) => bars.pass(*size),
            },
            event => {
                if let Some(line) = line(event) {
                    bars.say(&line);
                }
            }
        }
    }
}

impl Shown for BlobBars {
    fn end(&self) {
        self.0.lock().finish();
    }
}

/// A line for each event, as text on standard error or as JSON on standard output.
pub(super) struct Lines {
    is_json: bool,
    /// When progress of a blob was last told.
    told: Mutex<HashMap<Digest, Instant>>,
}

impl Lines {
    pub(super) fn text() -> Self {
        Self {
            is_json: false,
            told: Mutex::default(),
        }
    }

    pub(super) fn json() -> Self {
        Self {
            is_json: true,
            told: Mutex::default(),
        }
    }

    /// Whether an event is told: not each step of a blob.
    fn is_told(&self, event: &Event<'_>) -> bool {
        let Event::Blob { digest, step, .. } = event else {
            return true;
        };
        let mut told = self.told.lock();
        if matches!(step, BlobStep::Ended(_)) {
            told.remove(*digest);
            return true;
        }
        let now = Instant::now();
        let last = told.get(*digest);
        let is_due = last.is_none_or(|last| now.duration_since(*last) >= PAUSE);
        if is_due {
            told.insert(**digest, now);
        }
        is_due
    }
}

impl Observer for Lines {
    fn on(&self, event: &Event<'_>) {
        if !self.is_told(event) {
            return;
        }
        // A reader that is gone gets nothing; the exit code still tells.
        if self.is_json {
            drop(writeln!(std::io::stdout().lock(), "{}", as_json(event)));
        } else if let Some(line) = line(event) {
            drop(writeln!(std::io::stderr().lock(), "{line}"));
        }
    }
}

impl Shown for Lines {}

/// An event for people; None where it is told by others.
fn line(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Planned {
            image,
            manifests,
            blobs,
            bytes: size,
        } => {
            let s = if *manifests == 1 { "" } else { "s" };
            let amount = amount(*blobs as u64, *size);
            Some(format!("{image}: {manifests} manifest{s}, {amount}"))
        }
        Event::Blob {
            digest,
            size,
            step: BlobStep::Ended(end @ (BlobEnd::Copied | BlobEnd::Mounted)),
        } => {
            let (digest, size) = (short(digest), bytes(*size));
            Some(format!("  {digest} {size} {}", word(*end)))
        }
        Event::Waiting { host, error, wait } => {
            let seconds = wait.as_secs_f64();
            let error = on_one_line(*error);
            Some(format!("{host}: trying again in {seconds:.1} s: {error}"))
        }
        _ => None,
    }
}

fn word(end: BlobEnd) -> &'static str {
    match end {
        BlobEnd::Exists => "exists",
        BlobEnd::Mounted => "mounted",
        BlobEnd::Copied => "copied",
    }
}

fn as_json(event: &Event<'_>) -> Value {
    match event {
        Event::Planned {
            image,
            manifests,
            blobs,
            bytes,
        } => {
            json!({"event": "planned", "image": image, "manifests": manifests, "blobs": blobs, "bytes": bytes})
        }
        Event::Blob { digest, size, step } => {
            let (state, sent) = match step {
                BlobStep::Sent(at) => ("sending", *at),
                BlobStep::Ended(end) => (word(*end), *size),
            };
            json!({"event": "blob", "digest": digest.to_string(), "size": size, "state": state, "sent": sent})
        }
        Event::Waiting { host, error, wait } => json!({
            "event": "waiting", "host": host, "seconds": wait.as_secs_f64(), "error": on_one_line(*error),
        }),
        Event::Done { image, copied } => json!({
            "event": "done", "image": image, "digest": copied.digest.map(|digest| digest.to_string()),
            "unchanged": copied.is_unchanged, "sparse": copied.is_sparse, "blobs": copied.blobs,
            "copied": copied.sent.0, "bytes": copied.sent.1, "mounted": copied.mounted,
            "referrers": copied.referrers,
        }),
        Event::Failed { image, error } => json!({
            "event": "failed", "image": image, "error": on_one_line(*error), "refused": error.is_refused(),
        }),
    }
}
