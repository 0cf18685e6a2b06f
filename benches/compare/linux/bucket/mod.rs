//! The bucket: what reading from it costs beside ranged GETs of a registry, and uploading to it beside
//! uploads with signed payloads. Its server is the bench's own upstream.

pub(crate) mod client;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millpond::oci::Digest;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use testkit::Authority;

use super::Sizes;
use super::common::load::{Load, Plan as Clients};
use super::common::objects::BUCKET;
use super::common::report::Target::{self, AtMost};
use super::common::report::{Figure, Figures};
use super::common::scratch::write_seconds;
use super::common::server::{Server, millpond};
use super::common::upstream::{Plan as Serving, Upstream};
use super::common::{GIB, MIB, Role, rounds, times};
use super::library::Library;
use super::peers::Sources;
use super::results::Results;
use client::{Plan, Work};

/// CPU of reading over that of ranged GETs, and of uploading over that with signed payloads.
const READ: Target = AtMost(1.2);
const UPLOAD: Target = AtMost(0.5);
/// Seconds that one connection takes for the blob: a stream that brings more than this machine can take in
/// gets no others beside it.
const SECONDS: u64 = 10;
/// Connections of a download.
const STREAMS: u64 = 4;
/// How long a client may take.
const LIMIT: Duration = Duration::from_mins(5);
/// How `millpond serve` sets up the C library's allocator, on a machine with two cores.
const ALLOCATOR: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "2"),
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
];

/// Measures the rows that are wanted.
pub(crate) fn measure(
    wanted: impl Fn(&str) -> bool,
    library: &Library,
    sources: &Sources,
    sizes: &Sizes,
    results: &mut Results,
) -> Result<()> {
    let [reads, uploads] = ["bucket-read", "bucket-upload"].map(wanted);
    if !reads && !uploads {
        return Ok(());
    }
    let files = TempDir::with_prefix("millpond-compare-")?;
    let signed = Authority::new("bench").server();
    fs::write(files.path().join("cert.pem"), signed.certificate)?;
    fs::write(files.path().join("key.pem"), signed.key)?;
    let serving = Serving {
        root: library.content_dir.root().to_owned(),
        tls: Some(files.path().to_owned()),
        ..Serving::default()
    };
    let (_, digest) = library
        .large
        .rsplit_once('/')
        .context("a path of the API")?;
    let digest = digest.parse()?;
    let bench = Bench {
        library,
        sources,
        sizes,
        digest,
        file: library.content_dir.file(&digest),
        slow: Upstream::start(Serving {
            rate: sizes.large / SECONDS,
            ..serving.clone()
        })?,
        server: Upstream::start(serving)?,
    };
    if reads {
        bench.reads(results)?;
    }
    if uploads {
        bench.uploads(results)?;
    }
    Ok(())
}

struct Bench<'a> {
    library: &'a Library,
    sources: &'a Sources,
    sizes: &'a Sizes,
    digest: Digest,
    file: PathBuf,
    /// Registry and bucket: as fast as it can, and with a rate for each connection.
    server: Upstream,
    slow: Upstream,
}

/// One way to do the same work.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// A new millpond pulls the blob, from the bucket or from the upstream.
    Pull { bucket: bool },
    /// A client without a millpond.
    Client(Work, &'static str),
}

/// CPU seconds for a GiB of each way in one round.
type Costs = Vec<f64>;

impl Bench<'_> {
    fn reads(&self, results: &mut Results) -> Result<()> {
        let ways = [
            ("millpond, from the bucket", Way::Pull { bucket: true }),
            ("millpond, from an upstream", Way::Pull { bucket: false }),
            ("the bucket's client", Way::Client(Work::Read, "http")),
            ("plain GETs", Way::Client(Work::ReadPlainly, "http")),
            ("the bucket's client, TLS", Way::Client(Work::Read, "https")),
            ("plain GETs, TLS", Way::Client(Work::ReadPlainly, "https")),
        ];
        let costs = self.in_turn("bucket-read", &ways)?;
        let mut figures = shown(&ways, &costs);
        let mut over =
            |name, one, other| figures.push(ratio(name, &costs, one, other).target(READ));
        over("millpond, from the bucket over from an upstream", 0, 1);
        over("the bucket's client over plain GETs", 2, 3);
        over("the same over TLS", 4, 5);
        let size = self.sizes.large / MIB;
        let title = format!("Bucket: CPU of reading {size} MiB in {STREAMS} streams");
        results.section(&title, &figures.table());
        Ok(())
    }

    fn uploads(&self, results: &mut Results) -> Result<()> {
        let signing = |signed, scheme| Way::Client(Work::UploadSigning(signed), scheme);
        let ways = [
            ("millpond's, TLS", Way::Client(Work::Upload, "https")),
            ("signed payloads, TLS", signing(true, "https")),
            ("unsigned payloads, TLS", signing(false, "https")),
            ("millpond's, plain HTTP", Way::Client(Work::Upload, "http")),
            ("signed payloads, plain HTTP", signing(true, "http")),
            ("unsigned payloads, plain HTTP", signing(false, "http")),
        ];
        let costs = self.in_turn("bucket-upload", &ways)?;
        let mut figures = shown(&ways, &costs);
        let name = "millpond's over signed payloads, TLS";
        figures.push(ratio(name, &costs, 0, 1).target(UPLOAD));
        figures.push(ratio("unsigned over signed, TLS", &costs, 2, 1));
        let name = "millpond's over signed payloads, plain HTTP";
        figures.push(ratio(name, &costs, 3, 4));
        figures.push(ratio("unsigned over signed, plain HTTP", &costs, 5, 4));
        let size = self.sizes.large / MIB;
        let title = format!("Bucket: CPU of uploading {size} MiB in parts of 16 MiB");
        results.section(&title, &figures.table());
        Ok(())
    }

    /// Every round measures all ways, in the opposite order of the round before.
    fn in_turn(&self, key: &str, ways: &[(&str, Way)]) -> Result<Vec<Costs>> {
        let mut order: Vec<usize> = (0..ways.len()).collect();
        rounds(key, self.sizes.rounds, || {
            let mut costs = vec![f64::NAN; ways.len()];
            for at in &order {
                let (name, way) = ways.get(*at).context("one of the ways")?;
                let cost = self.cost(*way).with_context(|| (*name).to_owned())?;
                *costs.get_mut(*at).context("as many as ways")? = cost;
            }
            order.reverse();
            Ok(costs)
        })
    }

    /// CPU seconds for a GiB.
    fn cost(&self, way: Way) -> Result<f64> {
        let cost = match way {
            Way::Pull { bucket } => self.pull(bucket)?,
            Way::Client(work, scheme) => self.client(work, scheme)?,
        };
        Ok(cost / times(self.sizes.large, GIB))
    }

    /// CPU seconds of a new millpond that pulls the blob.
    fn pull(&self, from_bucket: bool) -> Result<f64> {
        write_seconds(self.sizes.large)?;
        let upstream = self.slow.addr();
        let server = Server::start(|directory, addr| {
            let mut proxy = Map::new();
            let segments = json!({ "count": STREAMS, "minsize": "1MiB" });
            proxy.insert("segments".to_owned(), segments);
            let binary = &self.sources.millpond;
            let command = millpond(binary, directory, addr, upstream, &proxy);
            if from_bucket {
                add_bucket(&directory.join("config.yml"), &format!("http://{upstream}"))?;
            }
            Ok(command)
        })?;
        let (gets, before) = (self.slow.counts()?, server.settled_cpu()?);
        let clients = Clients::once(server.addr(), self.library.large.clone(), 1);
        let load = Load::send(&clients).with_context(|| server.log_tail())?;
        ensure!(load.bytes == self.sizes.large, "a body of the wrong length");
        let cost = server.settled_cpu()? - before;
        let after = self.slow.counts()?;
        let gets = if from_bucket {
            after.object_gets - gets.object_gets
        } else {
            after.blob_gets - gets.blob_gets
        };
        ensure!(gets >= STREAMS, "{gets} GETs: not {STREAMS} streams");
        Ok(cost)
    }

    /// CPU seconds of a client.
    fn client(&self, work: Work, scheme: &str) -> Result<f64> {
        let plan = Plan {
            endpoint: format!("{scheme}://{}", self.server.addr()),
            file: self.file.clone(),
            digest: self.digest,
            work,
        };
        let before = self.server.counts()?.received;
        let process = Role::Bucket(plan).spawn_with(&ALLOCATOR)?;
        let cost = process.finish(LIMIT, || Ok(()))?;
        let received = self.server.counts()?.received - before;
        let reads = matches!(work, Work::Read | Work::ReadPlainly);
        ensure!(
            reads || received >= self.sizes.large,
            "{received} bytes were uploaded"
        );
        Ok(cost)
    }
}

fn shown<'a>(ways: &[(&str, Way)], costs: &'a [Costs]) -> Figures<'a, Costs> {
    let mut figures = Figures::of(costs);
    for (at, (name, _)) in ways.iter().enumerate() {
        figures.show(name, "s/GiB", |costs| of(costs, at));
    }
    figures
}

fn of(costs: &Costs, way: usize) -> f64 {
    costs.get(way).copied().unwrap_or(f64::NAN)
}

fn ratio(name: &str, costs: &[Costs], one: usize, other: usize) -> Figure {
    let ratios = costs.iter().map(|costs| of(costs, one) / of(costs, other));
    Figure::new(name, "x", ratios).steady()
}

/// Adds the bucket to a millpond's configuration.
fn add_bucket(config: &Path, endpoint: &str) -> Result<()> {
    let mut document: Value = serde_json::from_str(&fs::read_to_string(config)?)?;
    let storage = document.get_mut("storage").and_then(Value::as_object_mut);
    let bucket = json!({
        "bucket": BUCKET,
        "regionendpoint": endpoint,
        "accesskey": "bench",
        "secretkey": "bench",
        "secure": false,
    });
    let storage = storage.context("a configuration has a storage")?;
    storage.insert("s3".to_owned(), bucket);
    Ok(fs::write(config, document.to_string())?)
}
