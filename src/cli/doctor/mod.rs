//! `millpond doctor`: checks what a client (`--mirror`) or an operator would check, and says how to fix
//! what it finds.
//!
//! A check writes [`Findings`] about one subject. All run at the same time; their
//! lines are printed in a fixed order, each as soon as those before it are. No check changes anything,
//! and none outlives the deadline.
//!
//! ```text
//! mirror   a mirror, as a client sees it           finding      lines, JSON, the exit code
//! pull     its sample pull                         reach        name, connection, TLS
//! local    configuration, directory, descriptors   certificate  a certificate in words
//! server   the running server, its listeners       clocks       this clock beside a server's
//! usage    cap and TTL beside the cache            image        names of images
//! upstream one upstream, or an endpoint of one     endpoints    how they answer the running server
//! ```

mod certificate;
mod clocks;
mod endpoints;
mod finding;
mod local;
mod mirror;
mod pull;
mod reach;
mod server;
mod upstream;
mod usage;

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{Configured, fail, load, warnings};
use crate::clock::Clock;
use crate::config::{self, ConfigError, Credentials, Loaded, Timeouts};
use crate::copy::image::Image;
use crate::error_chain::on_one_line;
use finding::{Findings, Format, Report, Status};
use mirror::{MirrorCheck, MirrorSettings};
use server::ServerCheck;
use upstream::UpstreamCheck;

/// The exit code where nothing could be checked. The others are 0, 1 and 2; see [`Arguments`].
pub(super) const COULD_NOT_RUN: u8 = 3;
/// The longest password, in bytes.
const MAX_PASSWORD: u64 = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    configured: Configured,
    /// Check this mirror as a client of it: no configuration is read
    #[arg(long, value_name = "URL", value_parser = mirror_url, conflicts_with_all = ["file", "config"])]
    mirror: Option<Url>,
    /// The image of the sample pull: debian:12, ghcr.io/owner/app:1.0
    ///
    /// Through a mirror, it is pulled [default: docker.io/library/hello-world]. Without --mirror, only
    /// its upstream is asked whether it exists.
    #[arg(long, value_name = "IMAGE", value_parser = image)]
    image: Option<Image>,
    /// Trust the certificate authorities in this file (PEM), too
    #[arg(long, value_name = "FILE", requires = "mirror")]
    ca: Option<PathBuf>,
    /// Log in to the mirror as this user
    #[arg(long, value_name = "NAME", requires_all = ["mirror", "password_stdin"])]
    user: Option<String>,
    /// Read the user's password from standard input
    #[arg(long, requires = "user")]
    password_stdin: bool,
    /// How long all checks together may take: 30s, 2m
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// Print a JSON object a line: check, subject, status (ok, warn, fail), finding, fix
    #[arg(long)]
    json: bool,
}

fn mirror_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok();
    let is_plain = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    };
    let advice = "write a URL such as https://mirror.example:5000, with credentials in --user";
    url.filter(is_plain).ok_or_else(|| advice.to_owned())
}

fn image(text: &str) -> Result<Image, String> {
    text.parse().map_err(str::to_owned)
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).ok();
    let duration = duration.filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| "write a duration such as 30s or 2m".to_owned())
}

/// `millpond doctor`
pub(super) fn doctor(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok(Status::Ok) => ExitCode::SUCCESS,
        Ok(Status::Warn) => ExitCode::from(1),
        Ok(Status::Fail) => ExitCode::from(2),
        Err(error) => {
            fail(&error);
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<Status> {
    let format = if arguments.json {
        Format::Json
    } else {
        let colours = std::io::stdout().is_terminal() && config::colours_wanted();
        Format::Text { colours }
    };
    let runtime = super::runtime()?;
    let checked = runtime.block_on(async {
        let session = Session::new(arguments.timeout);
        let mut report = Report::new(std::io::stdout(), format);
        match &arguments.mirror {
            Some(url) => session.client_view(url, arguments, &mut report).await?,
            None => session.operator_view(arguments, &mut report).await?,
        }
        Ok(report.worst())
    });
    // A name service or a disk that doesn't answer would hold it up.
    runtime.shutdown_background();
    checked
}

/// What is found of upstreams that aren't asked.
fn offline() -> Findings {
    let mut found = Findings::about("upstreams");
    found.ok("offline", "`proxy.offline` is set: they aren't asked");
    found
}

type Output = Report<std::io::Stdout>;

/// Checks that run at the same time, in the order of their lines.
type Checks<'a> = FuturesOrdered<LocalBoxFuture<'a, Findings>>;

/// What all checks share.
#[derive(Debug, Clone, Copy)]
struct Session {
    clock: Clock,
    timeout: Duration,
    deadline: Instant,
    timeouts: Timeouts,
}

impl Session {
    fn new(timeout: Duration) -> Self {
        let clock = Clock::system();
        let usual = Timeouts::default();
        Self {
            clock,
            timeout,
            deadline: clock.now() + timeout,
            timeouts: Timeouts {
                connect: usual.connect.min(timeout),
                header: usual.header.min(timeout),
                stall: usual.stall.min(timeout),
                min_speed: 0,
            },
        }
    }

    /// Runs a check until the deadline. What it has found by then counts.
    async fn within(self, mut found: Findings, check: impl AsyncFnOnce(&mut Findings)) -> Findings {
        if timeout_at(self.deadline, check(&mut found)).await.is_err() {
            let timeout = humantime::format_duration(self.timeout);
            let text = format!("the checks didn't end within {timeout}");
            let fix = "raise --timeout; what is slow is the step after the last that is printed";
            found.fail("timeout", text, fix);
        }
        found
    }

    async fn client_view(
        self,
        url: &Url,
        arguments: &Arguments,
        report: &mut Output,
    ) -> anyhow::Result<()> {
        let image = arguments.image.clone().or_else(mirror::default_image);
        let settings = MirrorSettings {
            url: url.clone(),
            ca: arguments.ca.as_deref().map(super::read_ca).transpose()?,
            login: arguments.user.as_deref().map(login).transpose()?,
            image: image.context("there is no image to pull")?,
        };
        let check = MirrorCheck::new(settings, self.timeouts, self.clock);
        let check = check.context("the client can't be set up")?;
        let about = || Findings::about(check.subject());
        let mut is_usable = false;
        let connected = self.within(about(), async |found| {
            is_usable = check.connect(found).await;
        });
        let mut checks = Checks::new();
        checks.push_back(Box::pin(connected));
        print_all(checks, report).await?;
        if is_usable {
            let mut checks = Checks::new();
            checks.push_back(Box::pin(
                self.within(about(), async |found| check.route(found).await),
            ));
            checks.push_back(Box::pin(
                self.within(about(), async |found| check.pull(found).await),
            ));
            print_all(checks, report).await?;
        }
        Ok(())
    }

    async fn operator_view(self, arguments: &Arguments, report: &mut Output) -> anyhow::Result<()> {
        let path = arguments.configured.path();
        let subject = path.map_or_else(
            || "configuration".to_owned(),
            |path| format!("configuration {}", path.display()),
        );
        let loaded = match load(path) {
            Ok(loaded) => loaded,
            Err(error) => {
                let mut found = Findings::about(subject);
                problems(&error, &mut found);
                return print(found, report);
            }
        };
        let mut configuration = Findings::about(subject);
        local::configuration(&loaded, &warnings(&loaded), self.clock, &mut configuration);
        print(configuration, report)?;
        let mut clock = Findings::about("clock");
        clocks::check(self.clock, &mut clock);
        print(clock, report)?;
        print_all(self.operator_checks(&loaded, arguments), report).await
    }

    fn operator_checks<'a>(self, loaded: &'a Loaded, arguments: &'a Arguments) -> Checks<'a> {
        let config = &loaded.config;
        let mut checks = Checks::new();
        let directory = match &config.storage {
            config::Storage::Filesystem { root, .. } => format!("data {}", root.display()),
            config::Storage::Memory => "data".to_owned(),
        };
        checks.push_back(Box::pin(self.within(
            Findings::about(directory),
            async |found| {
                local::data_directory(config, found).await;
            },
        )));
        checks.push_back(Box::pin(self.within(
            Findings::about("server"),
            async move |found| {
                let check = ServerCheck {
                    config,
                    timeouts: self.timeouts,
                    clock: self.clock,
                };
                check.run(found).await;
            },
        )));
        if config.proxy.offline {
            checks.push_back(Box::pin(std::future::ready(offline())));
            return checks;
        }
        let image = arguments.image.as_ref();
        for (index, upstream) in config.proxy.all_upstreams().enumerate() {
            let key = match index.checked_sub(1) {
                None => "proxy".to_owned(),
                Some(index) => format!("proxy.upstreams[{index}]"),
            };
            let is_its = |image: &&Image| {
                upstream.name == image.registry || upstream.aliases.contains(&image.registry)
            };
            let check = |config, endpoint, key: String| UpstreamCheck {
                config,
                endpoint,
                place: format!("{} (`{key}`)", loaded.places.of(&key)),
                timeouts: self.timeouts,
                image: image.filter(is_its),
                clock: self.clock,
            };
            let endpoints = upstream.endpoints.iter().enumerate();
            let endpoints = endpoints.map(|(index, endpoint)| {
                let key = format!("{key}.endpoints[{index}]");
                check(&endpoint.registry, Some(endpoint), key)
            });
            let alone = upstream.endpoints.is_empty();
            let alone = alone.then(|| check(upstream, None, key.clone()));
            for check in alone.into_iter().chain(endpoints) {
                let about = Findings::about(check.subject());
                checks.push_back(Box::pin(
                    self.within(about, async move |found| check.run(found).await),
                ));
            }
        }
        checks
    }
}

/// Prints what checks find, in their order.
async fn print_all(mut checks: Checks<'_>, report: &mut Output) -> anyhow::Result<()> {
    while let Some(found) = checks.next().await {
        print(found, report)?;
    }
    Ok(())
}

fn print(found: Findings, report: &mut Output) -> anyhow::Result<()> {
    for finding in found.into_list() {
        let printed = report.print(&finding);
        printed.context("the findings can't be printed")?;
    }
    Ok(())
}

/// Why there is no configuration.
fn problems(error: &anyhow::Error, found: &mut Findings) {
    let fix = "correct it; config.example.yml explains every key";
    match error.downcast_ref() {
        Some(ConfigError::Problems(problems)) => {
            for problem in problems {
                found.fail("configuration", problem.to_string(), fix);
            }
        }
        _ => found.fail("configuration", on_one_line(error.as_ref()), fix),
    }
}

/// The login, with the first line of standard input as the password.
fn login(user: &str) -> anyhow::Result<Credentials> {
    let mut password = String::new();
    let input = std::io::stdin().lock();
    let read = input.take(MAX_PASSWORD).read_to_string(&mut password);
    read.context("the password can't be read")?;
    let password = password.lines().next().unwrap_or_default();
    Ok(Credentials::Fixed {
        username: user.to_owned(),
        password: password.into(),
    })
}
