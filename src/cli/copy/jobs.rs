//! From the texts of the command line to copies.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use anyhow::Context as _;

use super::remote::{self, RemoteOptions};
use super::{Arguments, UsageError};
use crate::cli::{load, say};
use crate::config::{Config, Upstream, authority};
use crate::copy::{
    CopyError, Event, FileImage, FilesForm, FilesLocation, Host, Job, LayoutTarget, Location,
    Observer, RegistryLocation, RegistrySource, RegistryTarget, Source, Target, Wanted, parts_of,
};
use crate::oci::{Reference, RepoName, Tag};

/// Docker Hub's namespace of names of one component, which may be those of hosted repositories.
const HUB_NAMESPACE: &str = "library/";
/// Repositories of the destination's registry whose content may be mounted.
const MAX_MOUNTS: usize = 16;
/// Images of one run.
const MAX_JOBS: usize = 100_000;

fn usage(text: impl Into<String>) -> anyhow::Error {
    UsageError(text.into()).into()
}

/// An image as it is named on the command line, or a tag of it.
struct Named {
    image: String,
    source: Source,
    wanted: Wanted,
    /// Where a copy goes below a prefix; None for a name in files that has none.
    repository: Option<RepoName>,
    tag: Option<Tag>,
}

/// Makes copies of the command line.
struct Planner<'a> {
    arguments: &'a Arguments,
    config: Option<Config>,
    observer: &'a Arc<dyn Observer>,
    hosts: BTreeMap<String, Arc<Host>>,
    /// By host and repository.
    targets: BTreeMap<(String, RepoName), Target>,
}

/// The copies that the command line names, and the sources that can't be read or don't list their images.
pub(super) async fn of(
    arguments: &Arguments,
    observer: &Arc<dyn Observer>,
) -> anyhow::Result<(Vec<Job>, Vec<(String, CopyError)>)> {
    let config = match &arguments.config {
        Some(path) => Some(load(Some(path))?.config),
        None => None,
    };
    let mut planner = Planner {
        arguments,
        config,
        observer,
        hosts: BTreeMap::new(),
        targets: BTreeMap::new(),
    };
    let (mut named, mut failed) = (Vec::new(), Vec::new());
    for source in &arguments.sources {
        match planner.named(source).await {
            Ok(images) => named.extend(images),
            Err(error) => {
                let (image, error) = (source.to_string(), error.downcast::<CopyError>()?);
                observer.on(&Event::Failed {
                    image: &image,
                    error: &error,
                });
                failed.push((image, error));
            }
        }
        if named.len() > MAX_JOBS {
            return Err(usage(format!("these are more than {MAX_JOBS} images")));
        }
    }
    let is_one = named.len() + failed.len() == 1;
    Ok((planner.jobs(named, is_one).await?, failed))
}

impl Planner<'_> {
    fn host(&mut self, name: &str) -> Arc<Host> {
        let new = || {
            let most = usize::from(self.arguments.jobs);
            Host::new(name.to_owned(), most, Arc::clone(self.observer))
        };
        Arc::clone(self.hosts.entry(name.to_owned()).or_insert_with(new))
    }

    /// The images that a source means.
    async fn named(&mut self, location: &Location) -> anyhow::Result<Vec<Named>> {
        let one = match location {
            Location::Registry(registry) => self.registry_source(registry).await?,
            Location::Files(files) => files_source(files.clone()).await?,
        };
        let Arguments { all_tags, tags, .. } = self.arguments;
        if !all_tags && tags.is_none() {
            return Ok(vec![one]);
        }
        if names_image(location) {
            return Err(usage(format!(
                "{location} names an image already; write it without a tag and a digest"
            )));
        }
        let listed = one.source.names().await?;
        // The names in files needn't have tags.
        let images = listed.into_iter().filter_map(|name| {
            let (repository, tag) = parts_of(&name);
            let tag = tag?;
            let pattern = tags.as_ref();
            pattern
                .is_none_or(|pattern| pattern.matches(tag.as_str()))
                .then(|| Named {
                    image: format!("{location}:{name}"),
                    source: one.source.clone(),
                    wanted: match one.source {
                        Source::Registry(_) => Wanted::Reference(Reference::Tag(tag.clone())),
                        Source::Files(_) => Wanted::InFiles(FileImage::Name(name)),
                    },
                    repository: one.repository.clone().or(repository),
                    tag: Some(tag),
                })
        });
        let images: Vec<_> = images.collect();
        anyhow::ensure!(!images.is_empty(), "{location} has no tag that matches");
        Ok(images)
    }

    async fn registry_source(&mut self, location: &RegistryLocation) -> anyhow::Result<Named> {
        let Some(repository) = location.repository.clone().filter(|_| !location.is_prefix) else {
            return Err(usage(format!("{location} is no repository to copy from")));
        };
        let reference = location.reference();
        let every = self.arguments.all_tags || self.arguments.tags.is_some();
        let tag = match (&reference, &location.tag) {
            (Reference::Tag(latest), None) if !every => Some(latest.clone()),
            (_, tag) => tag.clone(),
        };
        let options = self.arguments.source.options();
        let (upstream, asked) = self.asked(&options, location, &repository).await?;
        let source = RegistrySource {
            host: self.host(&authority(&upstream.url)),
            upstream: remote::client(&upstream)?,
            repository: asked,
        };
        Ok(Named {
            image: location.to_string(),
            source: Source::Registry(source),
            wanted: Wanted::Reference(reference),
            repository: Some(repository),
            tag,
        })
    }

    /// The registry that is asked for a repository, and the repository's name there: the server of the
    /// configuration, if it hosts that, or if the host is one of its upstreams and it runs.
    async fn asked(
        &self,
        options: &RemoteOptions,
        location: &RegistryLocation,
        repository: &RepoName,
    ) -> anyhow::Result<(Upstream, RepoName)> {
        if let Some(hosted) = self.hosted(options, location, repository).await? {
            return Ok(hosted);
        }
        let (config, host) = (self.config.as_ref(), &location.host);
        if let Some(config) = config
            && let Some(upstream) = remote::named(config, host)
        {
            let stored = config
                .proxy
                .stored_reference(&format!("{}/{repository}", upstream.name));
            let stored = RepoName::from_stored(&stored)?;
            if let Some(server) = options.server(config, &stored).await? {
                return Ok((server, stored));
            }
            anyhow::ensure!(
                !config.proxy.offline,
                "no server of the configuration runs, and `proxy.offline` is set: {host} isn't asked"
            );
            say(&format!(
                "millpond: no server of the configuration runs; {host} is asked itself"
            ));
        }
        let upstream = options.upstream(host, repository, config).await?;
        Ok((upstream, repository.clone()))
    }

    /// The server of the configuration and the repository that it hosts, if that is what a name without a
    /// host means.
    async fn hosted(
        &self,
        options: &RemoteOptions,
        location: &RegistryLocation,
        repository: &RepoName,
    ) -> anyhow::Result<Option<(Upstream, RepoName)>> {
        let Some(config) = self.config.as_ref().filter(|_| !location.is_explicit) else {
            return Ok(None);
        };
        let short = repository.as_str().strip_prefix(HUB_NAMESPACE);
        let short = short.and_then(|short| short.parse().ok());
        let mut names = [Some(repository.clone()), short].into_iter().flatten();
        let Some(hosted) = names.find(|name: &RepoName| config.is_hosted(name)) else {
            return Ok(None);
        };
        let server = options.server(config, &hosted).await?;
        let server = server.with_context(|| {
            format!("the configuration's server hosts {hosted}, and doesn't run")
        })?;
        Ok(Some((server, hosted)))
    }

    async fn jobs(&mut self, named: Vec<Named>, is_one: bool) -> anyhow::Result<Vec<Job>> {
        let mut taken = HashSet::new();
        let mut jobs = Vec::new();
        let sources: Vec<_> = named.iter().map(|named| named.source.clone()).collect();
        for named in named {
            let (target, key, tag) = match &self.arguments.destination {
                Location::Registry(location) => {
                    let location = location.clone();
                    let repository = destination(&location, named.repository.as_ref())?;
                    let key = format!("{}/{repository}", location.host);
                    let target = self.target(&location, repository, &sources).await?;
                    (target, key, location.tag)
                }
                Location::Files(location) => {
                    let key = location.path.display().to_string();
                    let (target, tag) = self.files_target(location)?;
                    (target, key, tag)
                }
            };
            if tag.is_some() && !is_one {
                return Err(usage(
                    "several images can't have one tag; write the destination without",
                ));
            }
            let tag = tag.or(named.tag);
            if !taken.insert((key.clone(), tag.clone())) && tag.is_some() {
                return Err(usage(format!(
                    "two images would become {key}:{}",
                    shown(tag.as_ref())
                )));
            }
            jobs.push(Job {
                image: named.image,
                source: named.source,
                wanted: named.wanted,
                target,
                tag,
            });
        }
        Ok(jobs)
    }

    /// A repository of the destination, whose tokens permit to mount from the sources.
    async fn target(
        &mut self,
        location: &RegistryLocation,
        repository: RepoName,
        sources: &[Source],
    ) -> anyhow::Result<Target> {
        let key = (location.host.clone(), repository.clone());
        if let Some(target) = self.targets.get(&key) {
            return Ok(target.clone());
        }
        let options = self.arguments.target.options();
        let hosted = self.hosted(&options, location, &repository).await?;
        let (mut upstream, repository) = match hosted {
            Some(hosted) => hosted,
            None if location.is_explicit => {
                let config = self.config.as_ref();
                let upstream = options.upstream(&location.host, &repository, config);
                (upstream.await?, repository)
            }
            None => {
                return Err(usage(format!(
                    "write the destination's registry: {}/{repository} for Docker Hub",
                    location.host
                )));
            }
        };
        let mounted = sources.iter().filter_map(|source| match source {
            Source::Registry(source) if source.upstream.config.url == upstream.url => {
                Some(&source.repository)
            }
            _ => None,
        });
        let mounted: BTreeSet<_> = mounted.filter(|from| **from != repository).collect();
        let mut scopes = vec!["repository:{name}:pull,push".to_owned()];
        let mounted = mounted.into_iter().take(MAX_MOUNTS);
        scopes.extend(mounted.map(|from| format!("repository:{from}:pull")));
        upstream.scope = Some(scopes.join(" "));
        let host = self.host(&authority(&upstream.url));
        let target = RegistryTarget::new(remote::client(&upstream)?, repository, host);
        let target = Target::Registry(Arc::new(target));
        self.targets.insert(key, target.clone());
        Ok(target)
    }

    fn files_target(&mut self, location: &FilesLocation) -> anyhow::Result<(Target, Option<Tag>)> {
        if location.digest.is_some() {
            return Err(usage("a destination has a tag, and no digest"));
        }
        let tag = location.name.as_deref().map(str::parse::<Tag>);
        let tag = tag.transpose().map_err(|error| usage(error.to_string()))?;
        let new = match location.form {
            FilesForm::Layout => LayoutTarget::directory,
            FilesForm::OciArchive => LayoutTarget::archive,
            FilesForm::DockerArchive => {
                return Err(usage(
                    "docker-archive: is only to copy from; write oci-archive:",
                ));
            }
        };
        // One for all images of the run: it remembers what it has.
        let key = (String::new(), RepoName::from_stored("files")?);
        let target = self.targets.entry(key);
        let target = target.or_insert_with(|| Target::Layout(Arc::new(new(&location.path))));
        Ok((target.clone(), tag))
    }
}

fn shown(tag: Option<&Tag>) -> &str {
    tag.map_or("", Tag::as_str)
}

/// Whether a location names one image.
fn names_image(location: &Location) -> bool {
    match location {
        Location::Registry(registry) => registry.tag.is_some() || registry.digest.is_some(),
        Location::Files(files) => files.name.is_some() || files.digest.is_some(),
    }
}

async fn files_source(location: FilesLocation) -> anyhow::Result<Named> {
    let image = location.to_string();
    let name = location.name.clone();
    let (repository, tag) = name.as_deref().map(parts_of).unwrap_or_default();
    let by_name = || name.map_or(FileImage::Only, FileImage::Name);
    let wanted = location.digest.map_or_else(by_name, FileImage::Digest);
    let source = tokio::task::spawn_blocking(move || Source::open(&location)).await??;
    Ok(Named {
        image,
        source,
        wanted: Wanted::InFiles(wanted),
        repository,
        tag,
    })
}

/// The repository at the destination.
fn destination(location: &RegistryLocation, source: Option<&RepoName>) -> anyhow::Result<RepoName> {
    if location.digest.is_some() {
        return Err(usage("a destination has a tag, and no digest"));
    }
    match (&location.repository, source) {
        (Some(repository), _) if !location.is_prefix => Ok(repository.clone()),
        (Some(prefix), Some(source)) => Ok(source.below(prefix)),
        (None, Some(source)) => Ok(source.clone()),
        (_, None) => Err(usage(
            "the image in the files has no repository's name; write the destination's without a slash at its end",
        )),
    }
}
