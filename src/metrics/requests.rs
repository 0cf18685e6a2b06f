//! What clients requested and got: counted for each request, so that a warm one must not pay for it.
//!
//! Nothing is looked up by label. Counts are in arrays, by the positions of upstream, route, result and
//! status, and each thread adds to one of a few copies ([`STRIPES`]), so that threads don't wait for
//! each other's cache lines. Rendering adds the copies up.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::Registrar;
use super::histogram::{Buckets, Totals};
use super::labels::{Kind, Outcome};

/// Copies of each count. Threads beyond that share one.
const STRIPES: usize = 8;
/// Upstreams with series of their own, and [`UpstreamId::NONE`]. Those beyond it count as [`NONE`].
const MAX_UPSTREAMS: usize = 1024;
/// The `upstream` of requests that name no configured upstream.
const NONE: &str = "none";

const ROUTES: usize = Kind::ALL.len();
const RESULTS: usize = Outcome::ALL.len();
/// The statuses that have series of their own. The first stands for "none": the client left before the
/// answer. The last is for all others.
const STATUSES: [&str; 21] = [
    "none", "200", "206", "304", "307", "400", "401", "403", "404", "405", "406", "412", "413",
    "414", "416", "429", "500", "502", "503", "504", "other",
];

/// An upstream's position in the counts of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpstreamId(u16);

impl UpstreamId {
    /// The request names no configured upstream.
    pub const NONE: Self = Self(0);
}

/// An upstream that becomes known while a request is handled.
#[derive(Debug, Default)]
pub struct Addressed(std::sync::atomic::AtomicU16);

impl Addressed {
    pub fn set(&self, upstream: UpstreamId) {
        self.0.store(upstream.0, Ordering::Relaxed);
    }

    pub fn get(&self) -> UpstreamId {
        UpstreamId(self.0.load(Ordering::Relaxed))
    }
}

/// What a request was for, and where its answer came from.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub upstream: UpstreamId,
    pub route: Kind,
    pub result: Outcome,
}

impl Answer {
    /// The position among all routes and results.
    const fn position(self) -> usize {
        self.route as usize * RESULTS + self.result as usize
    }
}

/// Counts of one upstream.
#[derive(Debug)]
struct Counts {
    /// By route, result and status.
    requests: [[AtomicU64; STATUSES.len()]; ROUTES * RESULTS],
    /// By route and result.
    bytes: [AtomicU64; ROUTES * RESULTS],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            requests: std::array::from_fn(|_| Default::default()),
            bytes: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

/// Histograms by route and result.
#[derive(Debug)]
struct Times {
    first_byte: [Buckets; ROUTES * RESULTS],
    whole: [Buckets; ROUTES * RESULTS],
}

impl Default for Times {
    fn default() -> Self {
        Self {
            first_byte: std::array::from_fn(|_| Buckets::default()),
            whole: std::array::from_fn(|_| Buckets::default()),
        }
    }
}

type Histograms = fn(&Times) -> &[Buckets; ROUTES * RESULTS];

/// Copies, each made by the first thread that counts in it.
type Striped<T> = [OnceLock<Box<T>>; STRIPES];

#[derive(Debug)]
struct OfUpstream {
    name: Box<str>,
    counts: Striped<Counts>,
}

impl OfUpstream {
    fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            counts: Striped::default(),
        }
    }
}

/// All counts of clients' requests.
#[derive(Debug)]
pub(super) struct Requests {
    upstreams: Box<[OnceLock<Box<OfUpstream>>]>,
    /// How many upstreams have series.
    known: Mutex<usize>,
    times: Striped<Times>,
}

/// The copy that the current thread counts in.
fn own<T: Default>(striped: &Striped<T>) -> Option<&T> {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    let mut stripe = STRIPE.get();
    if stripe == usize::MAX {
        stripe = THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES;
        STRIPE.set(stripe);
    }
    let copy = striped.get(stripe)?;
    Some(copy.get_or_init(Box::default))
}

/// The copies that exist.
fn copies<T>(striped: &Striped<T>) -> impl Iterator<Item = &T> {
    striped.iter().filter_map(OnceLock::get).map(AsRef::as_ref)
}

impl Requests {
    pub(super) fn register(r: &mut Registrar<'_>) -> Arc<Self> {
        let upstreams: Box<[_]> = (0..MAX_UPSTREAMS).map(|_| OnceLock::new()).collect();
        if let Some(none) = upstreams.first() {
            none.get_or_init(|| OfUpstream::new(NONE).into());
        }
        let requests = Arc::new(Self {
            upstreams,
            known: Mutex::new(1),
            times: Striped::default(),
        });
        let view = |of| View(Arc::clone(&requests), of);
        r.add(
            "requests",
            "Clients' requests by route, upstream, status and where the answer came from",
            view(Of::Requests),
        );
        r.add_with_unit(
            "client_sent",
            "Body bytes sent to clients",
            Unit::Bytes,
            view(Of::Sent),
        );
        r.add_with_unit(
            "saved",
            "Body bytes of upstreams' content sent to clients without requesting them from an upstream",
            Unit::Bytes,
            view(Of::Saved),
        );
        r.add_with_unit(
            "request_first_byte",
            "Time from a client's request to the first byte of the answer's body, or to the end of an answer without one",
            Unit::Seconds,
            view(Of::FirstByte),
        );
        r.add_with_unit(
            "request_duration",
            "Time from a client's request to the end of the answer",
            Unit::Seconds,
            view(Of::Duration),
        );
        requests
    }

    /// The position of an upstream, which gets series of its own while there is room.
    pub(super) fn upstream(&self, name: &str) -> UpstreamId {
        let mut known = self.known.lock();
        let position = self
            .known_upstreams()
            .position(|upstream| *upstream.name == *name);
        let position = position.unwrap_or_else(|| match self.upstreams.get(*known) {
            Some(free) => {
                free.get_or_init(|| OfUpstream::new(name).into());
                *known += 1;
                *known - 1
            }
            None => 0,
        });
        UpstreamId(u16::try_from(position).unwrap_or_default())
    }

    fn known_upstreams(&self) -> impl Iterator<Item = &OfUpstream> {
        let known = self.upstreams.iter().map_while(OnceLock::get);
        known.map(AsRef::as_ref)
    }

    fn counts(&self, upstream: UpstreamId) -> Option<&Counts> {
        let upstream = self.upstreams.get(usize::from(upstream.0))?.get()?;
        own(&upstream.counts)
    }

    pub(super) fn served(
        &self,
        answer: Answer,
        status: u16,
        (first_byte, whole): (Duration, Duration),
    ) {
        let position = answer.position();
        let counts = self.counts(answer.upstream);
        let statuses = counts.and_then(|counts| counts.requests.get(position));
        if let Some(count) = statuses.and_then(|counts| counts.get(status_position(status))) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // Nothing was sent to a client that left before.
        if let Some(times) = own(&self.times).filter(|_| status != 0) {
            for (histograms, time) in [(&times.first_byte, first_byte), (&times.whole, whole)] {
                if let Some(histogram) = histograms.get(position) {
                    histogram.observe(time);
                }
            }
        }
    }

    pub(super) fn sent(&self, answer: Answer, bytes: u64) {
        let counts = self.counts(answer.upstream);
        if let Some(count) = counts.and_then(|counts| counts.bytes.get(answer.position())) {
            count.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Answers with content that came from the cache alone, their body bytes, and the times until their first
    /// byte.
    pub(super) fn hits(&self) -> (u64, u64, Totals) {
        let (mut requests, mut bytes, mut times) = (0, 0, Totals::default());
        let hits = answers().enumerate().filter(|(_, (route, result))| {
            matches!(route, Kind::Manifest | Kind::Blob) && *result == Outcome::Hit
        });
        for (position, _) in hits {
            for upstream in self.known_upstreams() {
                bytes += sum(&upstream.counts, |counts| counts.bytes.get(position));
                for at in 0..STATUSES.len() {
                    requests += sum(&upstream.counts, |counts| {
                        counts.requests.get(position)?.get(at)
                    });
                }
            }
            for copy in copies(&self.times) {
                if let Some(buckets) = copy.first_byte.get(position) {
                    times.add(buckets);
                }
            }
        }
        (requests, bytes, times)
    }

    /// Calls `each` with upstream, route, result, status and count of each request counter that isn't 0.
    fn for_each_request(
        &self,
        mut each: impl FnMut(&str, &'static str, &'static str, &'static str, u64) -> fmt::Result,
    ) -> fmt::Result {
        for upstream in self.known_upstreams() {
            for (position, (route, result)) in answers().enumerate() {
                for (at, status) in STATUSES.into_iter().enumerate() {
                    let count = sum(&upstream.counts, |counts| {
                        counts.requests.get(position)?.get(at)
                    });
                    if count > 0 {
                        each(
                            &upstream.name,
                            route.as_str(),
                            result.as_str(),
                            status,
                            count,
                        )?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls `each` with upstream, route, result and bytes of each counter of bytes that isn't 0.
    fn for_each_sent(
        &self,
        mut each: impl FnMut(&str, Kind, Outcome, u64) -> fmt::Result,
    ) -> fmt::Result {
        for upstream in self.known_upstreams() {
            for (position, (route, result)) in answers().enumerate() {
                let bytes = sum(&upstream.counts, |counts| counts.bytes.get(position));
                if bytes > 0 {
                    each(&upstream.name, route, result, bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Calls `each` with route, result and histogram of each kind of answer that there was.
    fn for_each_time(
        &self,
        histograms: Histograms,
        mut each: impl FnMut(&'static str, &'static str, &Totals) -> fmt::Result,
    ) -> fmt::Result {
        for (position, (route, result)) in answers().enumerate() {
            let mut totals = Totals::default();
            for times in copies(&self.times) {
                if let Some(buckets) = histograms(times).get(position) {
                    totals.add(buckets);
                }
            }
            if totals.count() > 0 {
                each(route.as_str(), result.as_str(), &totals)?;
            }
        }
        Ok(())
    }
}

/// All routes and results, in the order of their positions.
fn answers() -> impl Iterator<Item = (Kind, Outcome)> {
    let of_route = |route: Kind| Outcome::ALL.iter().map(move |result| (route, *result));
    Kind::ALL.iter().copied().flat_map(of_route)
}

fn sum(striped: &Striped<Counts>, count: impl Fn(&Counts) -> Option<&AtomicU64>) -> u64 {
    let counts = copies(striped).filter_map(count);
    counts.map(|count| count.load(Ordering::Relaxed)).sum()
}

/// The position of a status in [`STATUSES`].
const fn status_position(status: u16) -> usize {
    match status {
        0 => 0,
        200 => 1,
        206 => 2,
        304 => 3,
        307 => 4,
        400 => 5,
        401 => 6,
        403 => 7,
        404 => 8,
        405 => 9,
        406 => 10,
        412 => 11,
        413 => 12,
        414 => 13,
        416 => 14,
        429 => 15,
        500 => 16,
        502 => 17,
        503 => 18,
        504 => 19,
        _ => STATUSES.len() - 1,
    }
}

/// Whether an answer is content of an upstream that the mirror had, or requested for another client.
const fn is_saved(route: Kind, result: Outcome) -> bool {
    let is_content = match route {
        Kind::Manifest | Kind::Blob | Kind::Tags | Kind::Referrers => true,
        Kind::Base | Kind::Catalog | Kind::Push | Kind::Token | Kind::Other => false,
    };
    let is_local = match result {
        Outcome::Hit
        | Outcome::Revalidated
        | Outcome::Stale
        | Outcome::Updating
        | Outcome::Joined => true,
        Outcome::Miss | Outcome::Redirected | Outcome::Error => false,
    };
    is_content && is_local
}

#[derive(Debug, Clone, Copy)]
enum Of {
    Requests,
    Sent,
    Saved,
    FirstByte,
    Duration,
}

/// One metric of the counts.
#[derive(Debug)]
struct View(Arc<Requests>, Of);

impl EncodeMetric for View {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Self(requests, of) = self;
        match of {
            Of::Requests => requests.for_each_request(|upstream, route, result, status, count| {
                let labels = [
                    ("route", route),
                    ("upstream", upstream),
                    ("status", status),
                    ("result", result),
                ];
                count_of(&mut encoder, &labels, count)
            }),
            Of::Sent => requests.for_each_sent(|upstream, route, result, bytes| {
                let labels = [
                    ("route", route.as_str()),
                    ("upstream", upstream),
                    ("result", result.as_str()),
                ];
                count_of(&mut encoder, &labels, bytes)
            }),
            Of::Saved => requests.for_each_sent(|upstream, route, result, bytes| {
                if !is_saved(route, result) {
                    return Ok(());
                }
                let labels = [
                    ("route", route.as_str()),
                    ("upstream", upstream),
                    ("result", result.as_str()),
                ];
                count_of(&mut encoder, &labels, bytes)
            }),
            Of::FirstByte | Of::Duration => {
                let histograms: Histograms = match of {
                    Of::FirstByte => |times| &times.first_byte,
                    _ => |times| &times.whole,
                };
                requests.for_each_time(histograms, |route, result, totals| {
                    let labels = [("route", route), ("result", result)];
                    totals.encode(&mut encoder.encode_family(&labels)?)
                })
            }
        }
    }

    fn metric_type(&self) -> MetricType {
        match self.1 {
            Of::Requests | Of::Sent | Of::Saved => MetricType::Counter,
            Of::FirstByte | Of::Duration => MetricType::Histogram,
        }
    }
}

fn count_of<const N: usize>(
    encoder: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    count: u64,
) -> fmt::Result {
    use prometheus_client::encoding::NoLabelSet;
    let mut encoder = encoder.encode_family(labels)?;
    encoder.encode_counter::<NoLabelSet, u64, f64>(&count, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn answer(upstream: UpstreamId, result: Outcome) -> Answer {
        Answer {
            upstream,
            route: Kind::Blob,
            result,
        }
    }

    #[test]
    fn each_status_has_its_position() {
        for (position, status) in STATUSES.into_iter().enumerate() {
            let status = status
                .parse()
                .unwrap_or(if status == "none" { 0 } else { 999 });
            assert_eq!(status_position(status), position);
        }
    }

    #[test]
    fn counts_of_all_threads_are_added_up() {
        let metrics = Metrics::new();
        let hub = metrics.upstream("docker.io").id();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| {
                    let time = Duration::from_millis(2);
                    metrics.client_sent(answer(hub, Outcome::Hit), 10);
                    metrics.served(answer(hub, Outcome::Hit), 200, (time, time));
                });
            }
        });
        let text = metrics.render();
        for line in [
            r#"millpond_requests_total{route="blob",upstream="docker.io",status="200",result="hit"} 16"#,
            r#"millpond_client_sent_bytes_total{route="blob",upstream="docker.io",result="hit"} 160"#,
            r#"millpond_saved_bytes_total{route="blob",upstream="docker.io",result="hit"} 160"#,
            r#"millpond_request_duration_seconds_count{route="blob",result="hit"} 16"#,
            r#"millpond_request_first_byte_seconds_bucket{le="0.001",route="blob",result="hit"} 0"#,
            r#"millpond_request_first_byte_seconds_bucket{le="0.0025",route="blob",result="hit"} 16"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }

    #[test]
    fn upstreams_beyond_the_limit_and_unknown_statuses_share_series() {
        let metrics = Metrics::new();
        for n in 0..MAX_UPSTREAMS - 1 {
            let id = metrics.upstream(&format!("up{n}")).id();
            assert_eq!(id, metrics.upstream(&format!("up{n}")).id());
            assert_ne!(id, UpstreamId::NONE);
        }
        let beyond = metrics.upstream("beyond").id();
        assert_eq!(beyond, UpstreamId::NONE);
        let none = Duration::ZERO;
        metrics.served(answer(beyond, Outcome::Miss), 418, (none, none));
        metrics.served(answer(beyond, Outcome::Error), 0, (none, none));
        let text = metrics.render();
        let line = r#"{route="blob",upstream="none",status="other",result="miss"} 1"#;
        assert!(text.contains(line), "{text}");
        let line = r#"{route="blob",upstream="none",status="none",result="error"} 1"#;
        assert!(text.contains(line), "{text}");
        let times = r#"duration_seconds_count{route="blob",result="error"}"#;
        assert!(!text.contains(times), "nothing was sent: {text}");
    }
}
