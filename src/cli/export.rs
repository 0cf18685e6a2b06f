//! `millpond export`.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::Context as _;
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::operate::with_any_server;
use super::progress::{Progress, amount};
use super::{Located, load, print, warm};
use crate::admin::client::Client;
use crate::admin::content::ContentQuery;
use crate::config;
use crate::copy::Platform;
use crate::copy::bundle::reader::BundleReader;
use crate::copy::bundle::stand_in::stand_in;
use crate::copy::bundle::writer::BundleWriter;
use crate::copy::bundle::{IMAGE_NAME, REF_NAME};
use crate::copy::image::Image;
use crate::copy::warm::{Contents, WarmRequest, WarmResult};
use crate::oci::manifest::media_type;
use crate::oci::{Descriptor, Digest, RepoName};

/// Pieces of content that wait to be written.
const QUEUE: usize = 16;

/// What is asked for.
#[derive(Debug, clap::Args)]
#[command(override_usage = "millpond export [OPTIONS] <IMAGE>... <FILE>")]
pub(super) struct Arguments {
    /// Images such as debian:12 or ghcr.io/owner/app:1.0, and then the file to be written
    #[arg(required = true, num_args = 2.., value_names = ["IMAGE", "FILE"])]
    names: Vec<String>,
    /// Of an image of several platforms, only those of OS/ARCHITECTURE[/VARIANT], such as linux/arm64;
    /// may be repeated [default: all]
    #[arg(long, value_name = "PLATFORM")]
    platform: Vec<Platform>,
    /// Split the bundle into files of at most this size, such as 4GiB: FILE.001, FILE.002, ...
    #[arg(long, value_name = "SIZE", value_parser = config::parse_size)]
    max_size: Option<u64>,
    /// Leave out the blobs that this earlier bundle has; import that one first
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    located: Located,
}

/// One blob or manifest of a bundle.
struct Part {
    source: Source,
    digest: Digest,
    size: u64,
    /// Which image it is counted for.
    image: usize,
}

/// Where its bytes come from.
enum Source {
    /// A repository of the server.
    Cached(RepoName),
    Made(Bytes),
}

/// What is to be written.
#[derive(Default)]
struct Bundle {
    /// Of its index.
    entries: Vec<Descriptor>,
    /// Each once.
    parts: Vec<Part>,
    seen: HashSet<Digest>,
    /// How many have been added.
    images: usize,
}

/// `millpond export`
pub(super) fn export(arguments: &Arguments) -> anyhow::Result<()> {
    let Some((file, images)) = arguments.names.split_last() else {
        anyhow::bail!("no file is named");
    };
    anyhow::ensure!(
        arguments.max_size != Some(0),
        "--max-size needs at least one byte"
    );
    let config = load(arguments.located.config.as_deref())?.config;
    let home = &config.proxy.default.name;
    let earlier = arguments
        .since
        .as_deref()
        .map(BundleReader::open)
        .transpose()?;
    let request = WarmRequest {
        images: images.to_vec(),
        platforms: arguments.platform.clone(),
        referrers: true,
        contents: true,
        ..WarmRequest::default()
    };
    let (written, count) = with_any_server(&arguments.located, "export", async |client| {
        let mut progress = Progress::new(arguments.quiet);
        let (mut client, results) = warm::fetch(client, &request, &mut progress).await?;
        let mut bundle = Bundle::default();
        for (name, result) in images.iter().zip(results) {
            let contents = match result {
                WarmResult::Complete(report) => report.contents.context("the server is older")?,
                WarmResult::Failed(reason) => anyhow::bail!("{name}: {reason}"),
            };
            let image = Image::parse_at(name, home).map_err(anyhow::Error::msg)?;
            let stand_in = stand_in_of(&mut client, &contents).await?;
            bundle.add(&image.to_string(), &contents, stand_in, earlier.as_ref())?;
        }
        let Bundle { entries, parts, .. } = bundle;
        for part in &parts {
            let name = images.get(part.image).map_or("", String::as_str);
            progress.expect(part.image, name, part.size);
        }
        let path = PathBuf::from(file);
        let max_size = arguments.max_size;
        let writer = spawn_blocking(move || BundleWriter::create(&path, max_size, &entries));
        let writer = write(client, writer.await??, &parts, &mut progress).await?;
        let files = spawn_blocking(move || writer.finish()).await??;
        progress.finish();
        Ok((
            files,
            (parts.len() as u64, parts.iter().map(|part| part.size).sum()),
        ))
    })?;
    let files = written.iter().map(|file| file.display().to_string());
    let files = files.collect::<Vec<_>>().join(", ");
    let (blobs, bytes) = count;
    let s = if images.len() == 1 { "" } else { "s" };
    let what = amount(blobs, bytes);
    print(&format!("{} image{s}, {what}: {files}\n", images.len()))
}

/// What stands in for an image of one of Docker's types.
async fn stand_in_of(
    client: &mut Client,
    contents: &Contents,
) -> anyhow::Result<Option<(Descriptor, Bytes)>> {
    let mut manifest = BytesMut::new();
    if contents.root.media_type == media_type::DOCKER_LIST {
        let query = ContentQuery {
            repository: RepoName::from_stored(&contents.repository)?,
            digest: contents.root.digest,
            is_manifest: true,
            size: contents.root.size,
        };
        let mut content = client.content(&query).await?;
        while let Some(chunk) = content.next().await? {
            manifest.extend_from_slice(&chunk);
        }
    }
    Ok(stand_in(&contents.root, &manifest))
}

impl Bundle {
    /// Adds an image by its full name: its manifests, and the blobs that the earlier bundle lacks.
    fn add(
        &mut self,
        name: &str,
        contents: &Contents,
        stand_in: Option<(Descriptor, Bytes)>,
        earlier: Option<&BundleReader>,
    ) -> anyhow::Result<()> {
        let mut root = contents.root.clone();
        for key in [REF_NAME, IMAGE_NAME] {
            root.annotations.insert(key.to_owned(), name.to_owned());
        }
        self.entries.push(root);
        if let Some((mut entry, index)) = stand_in {
            let (digest, size) = (entry.digest, entry.size);
            self.part(Source::Made(index), digest, size);
            // Without containerd's name, which means the image itself.
            entry
                .annotations
                .insert(REF_NAME.to_owned(), name.to_owned());
            self.entries.push(entry);
        }
        self.entries.extend(contents.attached.iter().cloned());
        let repository = RepoName::from_stored(&contents.repository)?;
        let is_new = |digest: &Digest| earlier.is_none_or(|earlier| earlier.size(digest).is_none());
        let blobs = contents.blobs.iter().filter(|(digest, _)| is_new(digest));
        for (digest, size) in contents.manifests.iter().chain(blobs) {
            self.part(Source::Cached(repository.clone()), *digest, *size);
        }
        self.images += 1;
        Ok(())
    }

    /// Adds a part of the image, unless the bundle has it.
    fn part(&mut self, source: Source, digest: Digest, size: u64) {
        if self.seen.insert(digest) {
            self.parts.push(Part {
                source,
                digest,
                size,
                image: self.images,
            });
        }
    }
}

/// Writes all parts, as the server sends them.
async fn write(
    mut client: Client,
    mut writer: BundleWriter,
    parts: &[Part],
    progress: &mut Progress,
) -> anyhow::Result<BundleWriter> {
    for part in parts {
        let (sender, chunks) = mpsc::channel(QUEUE);
        let (digest, size) = (part.digest, part.size);
        let writing = spawn_blocking(move || {
            let added = writer.add(&digest, size, Received::new(chunks));
            (writer, added)
        });
        let sending = async {
            let repository = match &part.source {
                Source::Cached(repository) => repository.clone(),
                Source::Made(bytes) => {
                    // The writer says why it takes nothing.
                    drop(sender.send(bytes.clone()).await);
                    drop(sender);
                    progress.arrived(part.image, size);
                    return Ok(());
                }
            };
            let query = ContentQuery {
                repository,
                digest,
                is_manifest: false,
                size,
            };
            let mut content = client.content(&query).await?;
            while let Some(chunk) = content.next().await? {
                let bytes = chunk.len() as u64;
                if sender.send(chunk).await.is_err() {
                    break;
                }
                progress.arrived(part.image, bytes);
            }
            drop(sender);
            Ok::<_, anyhow::Error>(())
        };
        let (written, sent) = tokio::join!(writing, sending);
        let (back, added) = written.context("the writer was lost")?;
        sent.with_context(|| format!("{digest} can't be read"))?;
        added?;
        writer = back;
    }
    Ok(writer)
}

/// Reads what comes from a channel. Blocks.
struct Received {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Received {
    fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self {
            chunks,
            current: Bytes::new(),
        }
    }
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current
            .copy_to_slice(buffer.get_mut(..length).unwrap_or_default());
        Ok(length)
    }
}
