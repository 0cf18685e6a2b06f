//! The command line: `serve`, `check`, and the operators' commands on the cache.

mod allocator;
mod client_config;
mod copy;
mod doctor;
mod explain;
mod export;
mod handshake;
mod health;
mod images;
mod import;
mod log_level;
mod logging;
mod operate;
mod pin;
mod progress;
mod reload;
mod serve;
mod signals;
mod table;
mod upstreams;
mod warm;

use std::ffi::OsString;
use std::io::Write as _;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::access;
use crate::app::{self, App, StartError};
use crate::cache::ScrubSettings;
use crate::config::{self, Config, Loaded, Places};
use crate::error_chain::{on_one_line, printable};

/// The package's version, and the commit where it is known: `0.1.0 (0123456789ab)`.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("MILLPOND_COMMIT_SHOWN"));

/// A pull-through caching mirror for container registries.
///
/// Docker, containerd, podman and other clients pull through it: the first pull of an image
/// downloads it from the upstream registry, later pulls are served from the cache.
#[derive(Debug, Parser)]
#[command(name = "millpond", version = VERSION, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the mirror until SIGTERM or SIGINT
    ///
    /// Without a configuration file it mirrors Docker Hub on port 5000 and stores its data in
    /// ./millpond-data. REGISTRY_* environment variables override the file:
    /// `REGISTRY_PROXY_REMOTEURL` sets `proxy.remoteurl`.
    Serve(Configured),
    /// Check the configuration, report every problem in it, and print the effective values
    ///
    /// Secrets are hidden. Exits with 0 if the configuration is valid, else with 1.
    Check(Configured),
    /// Ask the running server whether it is ready, and print what isn't
    ///
    /// Asks at the admin socket of the data directory that the configuration names, or at a listener
    /// for operators. Exits with 0 if the server is ready, else with 1. For health checks of
    /// containers.
    Health(health::Asked),
    /// Have the running server read its configuration again
    ///
    /// Prints what is applied, and what keeps its old value until a restart. Exits with 1, and nothing
    /// changes, if the file is broken or no server runs. SIGHUP does the same, and logs the result.
    Reload(Listing),
    /// List the cached images: size, shared bytes, last use, expiry, pins
    ///
    /// Reads the data directory that the configuration names, whether or not the server runs.
    Ls(Listing),
    /// Show the size of each repository, and how much of it other repositories share
    Du(Listing),
    /// Hash every cached blob again and report corrupt ones
    ///
    /// Exits with 1 if a corrupt blob was found and not quarantined. Quarantined blobs are moved to
    /// millpond/quarantine in the data directory, and the next pull downloads them again.
    Scrub {
        /// Quarantine corrupt blobs
        #[arg(long)]
        repair: bool,
        /// Bytes to read per second, such as 50MiB [default: no limit]
        #[arg(long, value_name = "SIZE", value_parser = config::parse_size)]
        rate: Option<u64>,
        #[command(flatten)]
        located: Located,
    },
    /// Remove images from the cache
    Purge {
        /// A repository, repository:tag (each may have the wildcards * and **) or
        /// repository@digest, by its stored name: library/debian:bookworm, ghcr.io/owner/**
        reference: String,
        /// Only list what would be removed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        located: Located,
    },
    /// Fetch images into the cache before clients pull them
    ///
    /// Works on the running server; without one, on the data directory, and no server can start before it
    /// has ended. Prints what was cached already, what was fetched and what failed.
    ///
    /// Exits with 0 if all images are cached, 4 if some failed, and 1 if all did.
    Warm(Box<warm::Arguments>),
    /// Write images into a file that carries them where no registry can be reached
    ///
    /// What isn't cached is fetched first. The file is an archive of an OCI image layout; FILE.sha256 beside
    /// it has its sum. Attached content (signatures, SBOMs) is in it, too. Works on the running server, else
    /// on the data directory.
    Export(Box<export::Arguments>),
    /// Take the images of a file into the cache, under their own names
    ///
    /// Each byte is verified. An import that was interrupted goes on when it is run again. Works on the
    /// running server, else on the data directory.
    ///
    /// Exits with 0 if all images are there, 4 if some failed, and 1 if all did.
    Import(Box<import::Arguments>),
    /// Keep images from eviction and expiry
    ///
    /// Works on the running server, else on the data directory. The pins are saved there; `millpond ls`
    /// shows them. An image may be pinned before it is cached. Content that is attached to an image
    /// (signatures, SBOMs) is kept with it.
    Pin {
        /// A repository, repository:tag (each may have the wildcards * and **) or repository@digest:
        /// docker.io/library/debian:bookworm, ghcr.io/owner/**
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// When the pins end, such as 30d [default: when they are unpinned]
        #[arg(long = "for", value_name = "DURATION", value_parser = config::parse_duration)]
        lasting: Option<Duration>,
        #[command(flatten)]
        located: Located,
    },
    /// End pins that `pin` has made
    Unpin {
        /// The same as for `pin`
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        #[command(flatten)]
        located: Located,
    },
    /// Deny images in an emergency, whatever the rules say
    ///
    /// Works on the running server, else on the data directory. Running responses with denied content
    /// are broken off.
    #[command(subcommand)]
    Deny(DenyCommand),
    /// Show how the endpoints of the upstreams answer
    ///
    /// Asks the running server: the circuit of each endpoint, the time to an answer about a manifest
    /// (average and 99th percentile), open streams of blobs, tokens in use and the last error.
    Upstreams(Listing),
    /// Show or change what a running server logs
    ///
    /// Changes last until the server ends, or as --for says. They change no file.
    LogLevel(log_level::Arguments),
    /// Explain the rules of access
    #[command(subcommand)]
    Access(AccessCommand),
    /// Check what can go wrong, and say how to fix it
    ///
    /// Where the mirror runs: configuration, certificates, data directory, disk, running server,
    /// listeners, cap and TTL, and each upstream with its credentials. Elsewhere, with --mirror: what a
    /// client needs, up to a sample pull. Prints a line for each finding: ok, warn or fail.
    ///
    /// Exits with 0 if all is well, 1 with warnings, 2 with failures, and 3 if nothing could be checked.
    Doctor(Box<doctor::Arguments>),
    /// Copy images between registries, or between a registry and files
    ///
    /// All platforms, and the bytes unchanged: digests are the same on both sides. What the destination has
    /// isn't sent, and an interrupted copy goes on where it stopped when it is run again. Its tag changes
    /// last.
    ///
    /// Accounts are those of Docker and containers (`docker login`, `podman login`). Exits with 0 if all was
    /// copied, 1 if all failed, 2 for a wrong command line, 3 if credentials were refused, and 4 if some
    /// failed.
    Copy(Box<copy::Arguments>),
    /// Configure a client to pull through the mirror: print what its files need, or change them
    ///
    /// Results go to standard output; what to do next, to standard error.
    ClientConfig(client_config::Options),
}

#[derive(Debug, Subcommand)]
enum DenyCommand {
    /// Deny a digest, a repository or tags of it, at once and until it is removed
    ///
    /// A denied digest is refused in every repository, also where a tag names it. A denied tag can
    /// still be pulled by its digest: deny that, too.
    Add {
        /// sha256:..., a repository or repository:tag (each may have the wildcards * and **)
        #[arg(value_name = "REF|DIGEST")]
        reference: String,
        /// What clients are told
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        located: Located,
    },
    /// Remove an entry that `add` has made
    Remove {
        /// The entry, as `list` shows it
        #[arg(value_name = "REF|DIGEST")]
        reference: String,
        #[command(flatten)]
        located: Located,
    },
    /// List what is denied
    List(Listing),
}

#[derive(Debug, Subcommand)]
enum AccessCommand {
    /// Say which rule decides what a caller may do with a repository
    ///
    /// Reads the configuration only: the deny list isn't consulted.
    Explain(explain::Question),
}

#[derive(Debug, clap::Args)]
struct Listing {
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    located: Located,
}

#[derive(Debug, clap::Args)]
struct Located {
    /// The configuration file (YAML); config.example.yml explains every key
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Configured {
    /// The same as --config
    #[arg(value_name = "CONFIG", conflicts_with = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    located: Located,
}

impl Configured {
    fn path(&self) -> Option<&Path> {
        self.file.as_deref().or(self.located.config.as_deref())
    }

    fn config(self) -> Option<PathBuf> {
        self.file.or(self.located.config)
    }
}

/// Runs the program; `main` has nothing to add.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let is_doctor = arguments.get(1).is_some_and(|command| command == "doctor");
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = match u8::try_from(error.exit_code()).unwrap_or(2) {
                0 => 0,
                // Its own 2 means something else.
                _ if is_doctor => doctor::COULD_NOT_RUN,
                code => code,
            };
            // If the message can't be written, nothing else can be done.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let done = match arguments.command {
        Command::Serve(configured) => return serve::serve(configured.config().as_deref()),
        Command::Doctor(arguments) => return doctor::doctor(&arguments),
        Command::Copy(arguments) => return copy::copy(&arguments),
        Command::Warm(arguments) => return warm::warm(&arguments),
        Command::Import(arguments) => return import::import(&arguments),
        Command::Export(arguments) => export::export(&arguments),
        Command::Check(configured) => check(configured.config().as_deref()),
        Command::Health(asked) => health::health(&asked),
        Command::Reload(listing) => reload::reload(&listing),
        Command::Ls(Listing { json, located }) => operate::ls(&located, json),
        Command::Du(Listing { json, located }) => operate::du(&located, json),
        Command::Scrub {
            repair,
            rate,
            located,
        } => {
            let rate = rate.and_then(NonZeroU64::new);
            operate::scrub(&located, ScrubSettings { rate, repair })
        }
        Command::Purge {
            reference,
            dry_run,
            located,
        } => operate::purge(&located, reference, dry_run),
        Command::Pin {
            images,
            lasting,
            located,
        } => pin::pin(&located, &images, lasting),
        Command::Unpin { images, located } => pin::unpin(&located, &images),
        Command::Deny(command) => deny(command),
        Command::Upstreams(Listing { json, located }) => upstreams::upstreams(&located, json),
        Command::LogLevel(arguments) => log_level::log_level(arguments),
        Command::Access(AccessCommand::Explain(question)) => explain::explain(&question),
        Command::ClientConfig(options) => client_config::client_config(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn deny(command: DenyCommand) -> anyhow::Result<()> {
    match command {
        DenyCommand::Add {
            reference,
            reason,
            located,
        } => operate::deny(&located, &reference, reason),
        DenyCommand::Remove { reference, located } => operate::permit(&located, &reference),
        DenyCommand::List(Listing { json, located }) => operate::denied(&located, json),
    }
}

/// Prints why a command fails.
fn fail(error: &anyhow::Error) -> ExitCode {
    say(&format!("millpond: {}", on_one_line(error.as_ref())));
    ExitCode::FAILURE
}

/// One line, or several, on standard error.
fn say(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{}", printable(text)));
}

/// A result, on standard output.
fn print(text: &str) -> anyhow::Result<()> {
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    written.context("the result can't be printed")
}

fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    print(&format!("{value:#}\n"))
}

fn load(path: Option<&Path>) -> anyhow::Result<Loaded> {
    Ok(config::load(path, config::environment())?)
}

/// A file of certificate authorities (PEM).
fn read_ca(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = config::read_pem(path);
    read.with_context(|| format!("{} can't be read", path.display()))
}

fn check(path: Option<&Path>) -> anyhow::Result<()> {
    let loaded = load(path)?;
    for warning in warnings(&loaded) {
        say(&format!("warning: {warning}"));
    }
    let Loaded {
        config,
        effective,
        places,
        ..
    } = loaded;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?
        .block_on(App::check(&config))
        .map_err(|error| placed(error, &config, &places))?;
    print(&effective)?;
    // As comments: what is printed is a configuration.
    let mut comments = access::summary(&config).join("\n# ");
    comments.insert_str(0, "# ");
    comments.push('\n');
    print(&comments)
}

/// What is probably not meant, each with its file and line.
fn warnings(loaded: &Loaded) -> Vec<String> {
    let mut warnings = loaded.warnings.clone();
    if let Some(warning) = app::warn_of_min_free(&loaded.config) {
        let place = loaded.places.of("storage.minfree");
        warnings.push(format!("{place}: {warning}"));
    }
    warnings
}

/// An error of the start, with the file and the line that it is about.
fn placed(error: StartError, config: &Config, places: &Places) -> anyhow::Error {
    match error.key(config) {
        Some(key) => {
            let place = places.of(&key);
            anyhow::Error::new(error).context(format!("{place}: `{key}`"))
        }
        None => error.into(),
    }
}

/// The runtime of a command other than `serve`.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.context("the runtime can't be started")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn every_command_takes_the_same_option() {
        for command in [
            "serve",
            "check",
            "doctor",
            "health",
            "reload",
            "ls",
            "du",
            "scrub",
            "purge a",
            "pin a b --for 30d",
            "warm a b --platform linux/arm64 --pin --for 30d",
            "warm --from-file a --from-k8s b --check",
            "export a b c.tar --max-size 4GiB --since b.tar",
            "import c.tar --name a --pin",
            "unpin a",
            "deny add a",
            "deny remove a",
            "deny list",
            "upstreams",
            "log-level",
            "log-level upstream=debug --for 10m",
            "access explain a b",
            "client-config docker --mirror=a",
            "copy a b.example/a",
        ] {
            for option in ["--config=c.yml", "-c=c.yml"] {
                let words = command.split(' ').chain([option]);
                let parsed = Arguments::try_parse_from(["millpond"].into_iter().chain(words));
                assert!(parsed.is_ok(), "{command} {option}: {parsed:?}");
            }
        }
        for command in ["serve", "check"] {
            let parsed = Arguments::try_parse_from(["millpond", command, "c.yml"]).unwrap();
            let (Command::Serve(configured) | Command::Check(configured)) = parsed.command else {
                panic!("{command} is another command");
            };
            assert_eq!(configured.config(), Some(PathBuf::from("c.yml")));
            let both = ["millpond", command, "c.yml", "--config", "d.yml"];
            assert!(Arguments::try_parse_from(both).is_err());
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
