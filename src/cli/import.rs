//! `millpond import`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::operate::with_any_server;
use super::progress::{Progress, amount};
use super::{Located, fail, print, warm};
use crate::admin::client::Client;
use crate::admin::content::ContentQuery;
use crate::admin::operate::{ImportOperation, Operation, PinOperation, Resolved};
use crate::cache::Pin;
use crate::config;
use crate::copy::bundle::plan::{self, BundledImage};
use crate::copy::bundle::reader::BundleReader;
use crate::copy::import::Holding;
use crate::copy::warm::{Amount, Pinning};
use crate::error_chain::on_one_line;
use crate::oci::{Descriptor, Digest, RepoName};

/// Blobs that are asked about in one request.
const BATCH: usize = 400;
/// Bytes of the bundle that are read at once, and how many such pieces wait to be sent.
const PIECE: usize = 1024 * 1024;
const QUEUE: usize = 4;

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A bundle, or another archive of an OCI image layout; of a split one, FILE or FILE.001
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The name of the image in FILE that has none
    #[arg(long, value_name = "IMAGE")]
    name: Option<String>,
    /// Keep the images from eviction and expiry, as `millpond pin` does
    #[arg(long)]
    pin: bool,
    /// When the pins end, such as 30d [default: when they are unpinned]
    #[arg(long = "for", value_name = "DURATION", value_parser = config::parse_duration, requires = "pin")]
    lasting: Option<Duration>,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    located: Located,
}

/// `millpond import`: 0 if all images are there, 4 if some failed, 1 if all did.
pub(super) fn import(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok((complete, failed)) => warm::code(complete, failed),
        Err(error) => fail(&error),
    }
}

/// The images of one bundle on their way into a server.
struct Import {
    client: Client,
    reader: Arc<BundleReader>,
    progress: Progress,
    /// None where nothing is pinned.
    pinning: Option<Pinning>,
    cached: Amount,
    imported: Amount,
}

/// How many images are complete, and how many failed.
fn run(arguments: &Arguments) -> anyhow::Result<(usize, usize)> {
    let reader = Arc::new(BundleReader::open(&arguments.file)?);
    let images = plan::images(&reader, arguments.name.as_deref())?;
    anyhow::ensure!(!images.is_empty(), "the bundle has no image");
    with_any_server(&arguments.located, "import", async |client| {
        let mut import = Import {
            client,
            reader,
            progress: Progress::new(arguments.quiet),
            pinning: arguments.pin.then(|| Pinning::lasting(arguments.lasting)),
            cached: Amount::default(),
            imported: Amount::default(),
        };
        let mut failed = Vec::new();
        for (index, image) in images.iter().enumerate() {
            let name = &image.name;
            let line = match import.image(index, image).await {
                Ok(()) => format!("imported {name}"),
                Err(error) => {
                    let line = format!("failed   {name}: {}", on_one_line(error.as_ref()));
                    failed.push(line.clone());
                    line
                }
            };
            import.progress.ended(index, &line);
        }
        let Import {
            progress,
            cached,
            imported,
            ..
        } = import;
        progress.finish();
        let complete = images.len() - failed.len();
        let mut text = format!(
            "{complete} of {} images: {} already cached; {} imported\n",
            images.len(),
            amount(cached.blobs, cached.bytes),
            amount(imported.blobs, imported.bytes),
        );
        for line in &failed {
            text.push_str(line);
            text.push('\n');
        }
        print(&text)?;
        Ok((complete, failed.len()))
    })
}

impl Import {
    async fn operate<T: DeserializeOwned>(&mut self, step: ImportOperation) -> anyhow::Result<T> {
        let json = self.client.run(&Operation::Import(step)).await?;
        serde_json::from_slice(&json).context("the server's answer can't be read")
    }

    /// Imports an image: its blobs, then its manifests, each after those that it refers to, and then its tag.
    async fn image(&mut self, index: usize, image: &BundledImage) -> anyhow::Result<()> {
        let name = image.name.clone();
        let Resolved { repository, tag } = self.operate(ImportOperation::Resolve { name }).await?;
        let stored = RepoName::from_stored(&repository)?;
        let mut missing = Vec::new();
        for blobs in image.blobs.chunks(BATCH) {
            let holdings = ImportOperation::Holdings {
                repository: repository.clone(),
                digests: blobs.iter().map(|blob| blob.digest).collect(),
            };
            let holdings: Vec<Holding> = self.operate(holdings).await?;
            for (blob, holding) in blobs.iter().zip(holdings) {
                if holding == Holding::Missing {
                    missing.push(blob);
                    continue;
                }
                if holding == Holding::Stored {
                    let (repository, digest) = (repository.clone(), blob.digest);
                    let link = ImportOperation::Link { repository, digest };
                    self.operate::<()>(link).await?;
                }
                self.cached.add(Amount {
                    blobs: 1,
                    bytes: blob.size,
                });
            }
        }
        let bytes = missing.iter().map(|blob| blob.size).sum();
        self.progress.expect(index, &image.name, bytes);
        for blob in missing {
            self.blob(index, &stored, blob).await?;
        }
        for digest in &image.manifests {
            let size = self.reader.size(digest).unwrap_or(0);
            self.put(None, &stored, (*digest, size), true).await?;
        }
        let reference = match &tag {
            Some(tag) => format!("{repository}:{tag}"),
            None => format!("{repository}@{}", image.root),
        };
        if let Some(tag) = tag {
            let digest = image.root;
            let tag = ImportOperation::Tag {
                repository,
                tag,
                digest,
            };
            self.operate::<()>(tag).await?;
        }
        self.pin(reference).await
    }

    async fn pin(&mut self, reference: String) -> anyhow::Result<()> {
        let Some(pinning) = self.pinning else {
            return Ok(());
        };
        let pin = PinOperation::Add {
            references: vec![reference],
            seconds: pinning.seconds(),
        };
        let json = self.client.run(&Operation::Pins(pin)).await?;
        let _pins: Vec<Pin> = serde_json::from_slice(&json)?;
        Ok(())
    }

    /// Imports a blob that the cache lacks.
    async fn blob(
        &mut self,
        image: usize,
        repository: &RepoName,
        blob: &Descriptor,
    ) -> anyhow::Result<()> {
        let (digest, size) = (blob.digest, blob.size);
        match self.reader.size(&digest) {
            Some(has) if has == size => {}
            Some(has) => anyhow::bail!("{digest} has {has} bytes, and its manifest says {size}"),
            None => anyhow::bail!(
                "{digest} is neither in the bundle nor cached; import the bundle first that this one \
                 was made to follow"
            ),
        }
        self.put(Some(image), repository, (digest, size), false)
            .await?;
        self.imported.add(Amount {
            blobs: 1,
            bytes: size,
        });
        Ok(())
    }

    /// Sends content of the bundle, which the server verifies.
    async fn put(
        &mut self,
        image: Option<usize>,
        repository: &RepoName,
        (digest, size): (Digest, u64),
        is_manifest: bool,
    ) -> anyhow::Result<()> {
        let query = ContentQuery {
            repository: repository.clone(),
            digest,
            is_manifest,
            size,
        };
        let (sender, chunks) = mpsc::channel(QUEUE);
        let (told, mut arrived) = mpsc::channel(QUEUE);
        let reader = Arc::clone(&self.reader);
        let reading = spawn_blocking(move || {
            let mut at = 0;
            while at < size {
                let piece = reader
                    .read(&digest, at, PIECE)
                    .map_err(std::io::Error::other);
                let length = piece.as_ref().map_or(0, |piece| piece.len() as u64);
                at += length;
                // Nobody takes it where the server has refused the content, and says why.
                if sender.blocking_send(piece).is_err() || length == 0 {
                    break;
                }
                told.blocking_send(length).unwrap_or_default();
            }
        });
        let progress = &mut self.progress;
        let showing = async {
            while let Some(bytes) = arrived.recv().await {
                if let Some(image) = image {
                    progress.arrived(image, bytes);
                }
            }
        };
        let (sent, (), read) = tokio::join!(self.client.put(&query, chunks), showing, reading);
        read.context("the reader of the bundle was lost")?;
        sent.with_context(|| digest.to_string())
    }
}
