//! From the texts of the command line to copies.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::remote::{self, RemoteOptions};
use super::{Arguments, UsageError};
use crate::cli::{load, say};
use crate::config::{Config, authority};
use crate::copy::{
    Host, Job, Layout, LayoutLocation, LayoutTarget, Location, Observer, RegistryLocation,
    RegistrySource, RegistryTarget, Source, Target, Wanted,
};
use crate::oci::{RepoName, Tag};

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
    /// Where a copy goes below a prefix; None for a layout.
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

/// The copies that the command line names.
pub(super) async fn of(
    arguments: &Arguments,
    observer: &Arc<dyn Observer>,
) -> anyhow::Result<Vec<Job>> {
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
    let mut named = Vec::new();
    for source in &arguments.sources {
        named.extend(planner.named(source).await?);
        if named.len() > MAX_JOBS {
            return Err(usage(format!("these are more than {MAX_JOBS} images")));
        }
    }
    planner.jobs(named).await
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
        let (source, repository, wanted, tag) = match location {
            Location::Registry(registry) => self.registry_source(registry).await?,
            Location::Layout(layout) => layout_source(layout),
        };
        let named = |image: String, wanted, tag| Named {
            image,
            source: source.clone(),
            wanted,
            repository: repository.clone(),
            tag,
        };
        let Arguments { all_tags, tags, .. } = self.arguments;
        if !all_tags && tags.is_none() {
            return Ok(vec![named(location.to_string(), wanted, tag)]);
        }
        if tag.is_some() || matches!(wanted, Wanted::Digest(_)) {
            return Err(usage(format!(
                "{location} names an image already; write it without a tag and a digest"
            )));
        }
        let listed = source.names().await?;
        let matching = listed.iter().filter(|name| {
            let pattern = tags.as_ref();
            pattern.is_none_or(|pattern| pattern.matches(name))
        });
        // The names in a layout needn't be tags.
        let matching = matching.filter_map(|name| name.parse::<Tag>().ok());
        let images = matching.map(|tag| {
            named(
                format!("{location}:{tag}"),
                Wanted::Tag(tag.clone()),
                Some(tag),
            )
        });
        let images: Vec<_> = images.collect();
        anyhow::ensure!(!images.is_empty(), "{location} has no tag that matches");
        Ok(images)
    }

    async fn registry_source(
        &mut self,
        location: &RegistryLocation,
    ) -> anyhow::Result<(Source, Option<RepoName>, Wanted, Option<Tag>)> {
        let RegistryLocation { host, tag, .. } = location;
        let Some(repository) = location.repository.clone().filter(|_| !location.is_prefix) else {
            return Err(usage(format!("{location} is no repository to copy from")));
        };
        let wanted = match location.reference() {
            crate::oci::Reference::Tag(tag) => Wanted::Tag(tag),
            crate::oci::Reference::Digest(digest) => Wanted::Digest(digest),
        };
        let every = self.arguments.all_tags || self.arguments.tags.is_some();
        let tag = match (&wanted, tag) {
            (Wanted::Tag(latest), None) if !every => Some(latest.clone()),
            (_, tag) => tag.clone(),
        };
        let options = self.arguments.source.options();
        let (upstream, asked) = self.asked(&options, host, &repository).await?;
        let source = RegistrySource {
            host: self.host(&authority(&upstream.url)),
            upstream: remote::client(&upstream)?,
            repository: asked,
        };
        Ok((Source::Registry(source), Some(repository), wanted, tag))
    }

    /// The registry that is asked for a repository, and the repository's name there: the server of the
    /// configuration, if the host is an upstream of that and it runs.
    async fn asked(
        &self,
        options: &RemoteOptions,
        host: &str,
        repository: &RepoName,
    ) -> anyhow::Result<(crate::config::Upstream, RepoName)> {
        let config = self.config.as_ref();
        if let Some(config) = config
            && let Some(upstream) = remote::named(config, host)
        {
            if let Some(server) = remote::server(config).await {
                let stored = config
                    .proxy
                    .stored_reference(&format!("{}/{repository}", upstream.name));
                return Ok((server, RepoName::from_stored(&stored)?));
            }
            say(&format!(
                "millpond: no server of the configuration runs; {host} is asked itself"
            ));
        }
        let upstream = options.upstream(host, repository, config).await?;
        Ok((upstream, repository.clone()))
    }

    async fn jobs(&mut self, named: Vec<Named>) -> anyhow::Result<Vec<Job>> {
        let is_one = named.len() == 1;
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
                Location::Layout(location) => {
                    let key = location.path.display().to_string();
                    let (target, tag) = self.layout_target(location)?;
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
        if !location.is_explicit {
            return Err(usage(format!(
                "write the destination's registry: {}/{repository} for Docker Hub",
                location.host
            )));
        }
        let options = self.arguments.target.options();
        let mut upstream = options
            .upstream(&location.host, &repository, self.config.as_ref())
            .await?;
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

    fn layout_target(
        &mut self,
        location: &LayoutLocation,
    ) -> anyhow::Result<(Target, Option<Tag>)> {
        if location.digest.is_some() {
            return Err(usage("a destination has a tag, and no digest"));
        }
        let tag = location.name.as_deref().map(str::parse::<Tag>);
        let tag = tag.transpose().map_err(|error| usage(error.to_string()))?;
        // One for all images of the run: it remembers what it has.
        let key = (String::new(), RepoName::from_stored("layout")?);
        let new = || Target::Layout(Arc::new(LayoutTarget::new(Layout::new(&location.path))));
        Ok((self.targets.entry(key).or_insert_with(new).clone(), tag))
    }
}

fn shown(tag: Option<&Tag>) -> &str {
    tag.map_or("", Tag::as_str)
}

fn layout_source(location: &LayoutLocation) -> (Source, Option<RepoName>, Wanted, Option<Tag>) {
    let name = location.name.clone();
    let tag = name.as_deref().and_then(|name| name.parse().ok());
    let by_name = || name.map_or(Wanted::Only, Wanted::Name);
    let wanted = location.digest.map_or_else(by_name, Wanted::Digest);
    (
        Source::Layout(Layout::new(&location.path)),
        None,
        wanted,
        tag,
    )
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
            "a layout has no repository's name; write the destination's without a slash at its end",
        )),
    }
}
