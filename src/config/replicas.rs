//! The `replicas` section: several servers that act as one mirror.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Config;
use super::address::{Listen, alias};
use super::credentials::HIDDEN;
use super::secret::Secret;
use super::section::Section;
use super::tls::ClientAuth;

/// Entries of the list at most.
pub const MAX_REPLICAS: usize = 64;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);
/// Characters of the secret at least.
const MIN_SECRET: usize = 16;
const WRITER_ADVICE: &str =
    "write host:port of one replica, such as millpond-0.millpond.default.svc:5000";
const PEER_ADVICE: &str = "write host:port, such as millpond.default.svc:5000";

/// The other servers of the same mirror, and how they are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicas {
    pub peers: ReplicaPeers,
    /// This server's entry among them, where the operator names it.
    pub own: Option<String>,
    /// What replicas prove to each other that they know.
    pub secret: Secret,
    /// How long a connection to another replica may take, and how long it may be silent before it is
    /// asked whether it is there; never 0.
    pub timeout: Duration,
    /// The name in the certificates of the others, where it isn't the host of their entry.
    pub server_name: Option<String>,
    /// The only replica that writes hosted content: its entry in the list of peers, or its `host:port`
    /// where the peers are a DNS name; in lower case. None where nothing is hosted.
    pub hosted_writer: Option<String>,
}

/// Who the replicas are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaPeers {
    /// `host:port`: all addresses of the host.
    Dns(String),
    /// Each `host:port`, in lower case; at most [`MAX_REPLICAS`], no two equal.
    List(Vec<String>),
}

/// Reads the section. None where there are no other replicas.
pub(super) fn read(replicas: &Section<'_>) -> Option<Replicas> {
    let (peers, are_wrong) = peers(replicas);
    let own = replicas.value("self", |text| {
        with_port(text).ok_or("write this server's own entry of `replicas.peers`, host:port")
    });
    let secret = secret(replicas);
    let timeout = replicas.duration("timeout", DEFAULT_TIMEOUT);
    if !TIMEOUTS.contains(&timeout) {
        replicas.reject("timeout", "must be from 10ms to 1m");
    }
    let server_name = replicas.value("servername", |text| {
        let lower = text.to_ascii_lowercase();
        let is_host = alias(text).is_some() && !lower.contains(':');
        is_host
            .then_some(lower)
            .ok_or("write the name in the replicas' certificates, such as millpond.example")
    });
    let hosted_writer = replicas.value("hostedwriter", |text| with_port(text).ok_or(WRITER_ADVICE));
    let Some(peers) = peers else {
        let settings = [&own, &server_name, &hosted_writer];
        let needs_peers = secret.is_some() || settings.iter().any(|setting| setting.is_some());
        if needs_peers && !are_wrong {
            replicas.missing("peers", "the replicas, such as millpond.default.svc:5000");
        }
        return None;
    };
    if let (ReplicaPeers::Dns(_), Some(name)) = (&peers, &own)
        && name.parse::<SocketAddr>().is_err()
    {
        let reason =
            format!("is {name}; where `peers` is a name, write this server's address and port");
        replicas.reject("self", reason);
    }
    if let (ReplicaPeers::List(list), Some(own)) = (&peers, &own)
        && !list.contains(own)
    {
        replicas.reject(
            "self",
            format_args!("is {own}, which `{}` lacks", replicas.path("peers")),
        );
    }
    if let Some(writer) = &hosted_writer {
        check_writer(replicas, &peers, writer);
    }
    if secret.is_none() && replicas.text("secret").is_none() {
        replicas.missing(
            "secret",
            format_args!("a secret of at least {MIN_SECRET} characters that all replicas share"),
        );
    }
    Some(Replicas {
        peers,
        own,
        secret: secret?,
        timeout,
        server_name,
        hosted_writer,
    })
}

/// Refuses a writer that isn't exactly one of the replicas.
fn check_writer(replicas: &Section<'_>, peers: &ReplicaPeers, writer: &str) {
    let path = replicas.path("peers");
    match peers {
        ReplicaPeers::Dns(name) if name == writer => replicas.reject(
            "hostedwriter",
            format_args!("is {writer}, as `{path}`, which names all replicas; {WRITER_ADVICE}"),
        ),
        ReplicaPeers::List(list) if !list.iter().any(|peer| peer == writer) => {
            let address = writer.parse::<SocketAddr>().ok();
            let is_same = |peer: &&String| address.is_some() && peer.parse().ok() == address;
            match list.iter().find(is_same) {
                Some(peer) => replicas.reject(
                    "hostedwriter",
                    format_args!("is {writer}, which `{path}` has as {peer}; write it the same"),
                ),
                None => replicas.reject(
                    "hostedwriter",
                    format_args!("is {writer}, which `{path}` lacks"),
                ),
            }
        }
        ReplicaPeers::Dns(_) | ReplicaPeers::List(_) => {}
    }
}

/// The replicas, if there are any, and whether some are written wrongly.
fn peers(replicas: &Section<'_>) -> (Option<ReplicaPeers>, bool) {
    let (mut seen, mut are_wrong) = (Vec::new(), false);
    let (list, is_list) = replicas.one_or_more("peers", |text| {
        let peer = match with_port(text) {
            Some(peer) if seen.contains(&peer) => Err("it is listed twice; keep one"),
            peer => peer.ok_or(PEER_ADVICE),
        };
        are_wrong |= peer.is_err();
        seen.extend(peer.clone());
        peer
    });
    if list.len() > MAX_REPLICAS {
        let reason = format!("has {} replicas; write at most {MAX_REPLICAS}", list.len());
        replicas.reject("peers", reason);
    }
    let peers = match (list.into_iter().next(), is_list) {
        (None, _) => None,
        (Some(name), false) => Some(ReplicaPeers::Dns(name)),
        (Some(_), true) => Some(ReplicaPeers::List(seen)),
    };
    (peers, are_wrong)
}

fn with_port(text: &str) -> Option<String> {
    let is_whole = !text.starts_with(':') && Listen::tcp(text).is_some();
    is_whole.then(|| text.to_ascii_lowercase())
}

fn secret(replicas: &Section<'_>) -> Option<Secret> {
    let text = replicas.text("secret")?;
    replicas.print("secret", HIDDEN);
    if text.chars().count() < MIN_SECRET {
        replicas.reject(
            "secret",
            format_args!("is shorter than {MIN_SECRET} characters"),
        );
        return None;
    }
    Some(Secret::from(text))
}

/// Refuses what several replicas can't do together.
pub(super) fn guard(root: &Section<'_>, config: &Config) {
    let Some(replicas) = &config.replicas else {
        return;
    };
    match (&replicas.hosted_writer, config.hosted.is_empty()) {
        (Some(_), true) => {
            let reason = "has no effect: nothing is `hosted`";
            root.doubt_at("replicas.hostedwriter", reason);
        }
        (None, false) => {
            let message = "`replicas.hostedwriter` is missing; write the one replica that writes what is \
                           `hosted`, host:port";
            root.problem("replicas", message.to_owned());
        }
        (Some(_), false) | (None, true) => {}
    }
    if !config.hosted.is_empty() && config.bucket.is_none() {
        let message = "`hosted` with `replicas` needs a bucket: what is pushed would be on the disk of one \
                       replica only; remove one of the two";
        root.problem("hosted", message.to_owned());
    }
    match &config.http.tls {
        None if replicas.server_name.is_some() => root.doubt_at(
            "replicas.servername",
            "has no effect: replicas speak TLS to each other only where `http.tls` is set",
        ),
        Some(tls)
            if matches!(
                tls.client_auth,
                ClientAuth::RequireAny | ClientAuth::RequireAndVerify
            ) =>
        {
            let message = "`http.tls.clientauth` requires certificates, which replicas don't show each \
                           other; write verify-client-cert-if-given, or remove `replicas`";
            root.problem_at("http.tls.clientauth", message.to_owned());
        }
        _ => {}
    }
}
