//! `millpond import`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::stream::{self, StreamExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::operate::with_any_server;
use super::progress::{Progress, amount};
use super::{Located, fail, print, warm};
use crate::admin::client::Client;
use crate::admin::content::ContentQuery;
use crate::admin::operate::{ImportOperation, Operation, PinOperation, Resolved};
use crate::admin::upload;
use crate::cache::Pin;
use crate::config;
use crate::copy::bundle::plan::{self, BundledBlob, BundledImage};
use crate::copy::bundle::reader::BundleReader;
use crate::copy::import::Holding;
use crate::copy::warm::{Amount, Pinning};
use crate::error_chain::on_one_line;
use crate::oci::{Digest, RepoName};

/// Blobs that are asked about in one request.
const BATCH: usize = 400;
/// Blobs that are sent at the same time: one is hashed while another is made durable.
const UPLOADS: usize = 2;
/// Steps of progress that wait to be shown.
const QUEUE: usize = 16;

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
                Ok(Amount { blobs: 0, .. }) => format!("cached   {name}"),
                Ok(Amount { blobs, bytes }) => {
                    format!("imported {name}: {}", amount(blobs, bytes))
                }
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
    /// Returns the blobs that the cache lacked.
    async fn image(&mut self, index: usize, image: &BundledImage) -> anyhow::Result<Amount> {
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
        let sizes = missing.iter().map(|blob| blob.size);
        let bytes = sizes.fold(0, u64::saturating_add);
        self.progress.expect(index, &image.name, bytes);
        let imported = self.blobs(index, &stored, missing).await?;
        for digest in &image.manifests {
            let (nobody, _) = mpsc::channel(1);
            self.upload(&stored, *digest, true, nobody)?.await?;
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
        self.pin(reference).await?;
        Ok(imported)
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

    /// Imports the blobs that the cache lacks.
    async fn blobs(
        &mut self,
        image: usize,
        repository: &RepoName,
        missing: Vec<&BundledBlob>,
    ) -> anyhow::Result<Amount> {
        let mut amount = Amount::default();
        for blob in &missing {
            let (digest, size) = (blob.digest, blob.size);
            match self.reader.size(&digest) {
                Some(has) if has == size => {}
                Some(has) => {
                    anyhow::bail!("{digest} has {has} bytes, and its manifest says {size}")
                }
                None => anyhow::bail!(
                    "{digest} is neither in the bundle nor cached; import the bundle first that \
                     this one was made to follow"
                ),
            }
            amount.add(Amount {
                blobs: 1,
                bytes: size,
            });
        }
        let (told, mut sent) = mpsc::channel(QUEUE);
        let uploads = missing
            .into_iter()
            .map(|blob| self.upload(repository, blob.digest, false, told.clone()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        drop(told);
        let mut uploads = stream::iter(uploads).buffered(UPLOADS);
        let uploading = async move {
            while let Some(uploaded) = uploads.next().await {
                uploaded?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let progress = &mut self.progress;
        let showing = async {
            while let Some(bytes) = sent.recv().await {
                progress.arrived(image, bytes);
            }
        };
        let (uploaded, ()) = tokio::join!(uploading, showing);
        uploaded?;
        self.imported.add(amount);
        Ok(amount)
    }

    /// Sends content of the bundle, which the server verifies. Begins when it is polled.
    fn upload(
        &self,
        repository: &RepoName,
        digest: Digest,
        is_manifest: bool,
        sent: mpsc::Sender<u64>,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
        let content = self.reader.extents(&digest)?;
        let query = ContentQuery {
            repository: repository.clone(),
            digest,
            is_manifest,
            size: content.iter().map(|extent| extent.length).sum(),
        };
        let socket = self.client.path().to_owned();
        Ok(async move {
            let uploading = spawn_blocking(move || {
                upload::put(&socket, &query, &content, |bytes| {
                    // Nobody shows it once another upload has failed.
                    sent.blocking_send(bytes).unwrap_or_default();
                })
            });
            let uploaded = uploading.await.context("the upload was lost")?;
            uploaded.with_context(|| digest.to_string())
        })
    }
}
