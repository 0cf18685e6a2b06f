//! How each server is started: millpond, nginx in two ways, and the reference registry in up to two
//! versions. Each
//! is set up as its own manual recommends for speed; none of them logs requests.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::{Map, json};

use super::common::content::INDEX;
use super::common::server::{Server, millpond};
use super::tls;

/// What millpond is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Millpond,
    /// millpond with one thread that serves requests.
    OneThread,
    /// The same content as plain files, sent by sendfile(2).
    NginxStatic,
    /// nginx as a caching proxy that lets one request fill the cache.
    NginxCache,
    /// The reference registry in proxy mode.
    Registry,
    /// Another version of it, whose binary a variable names.
    OtherRegistry,
    /// The reference registry with what was pushed into it.
    Hosting,
    /// A program that copies images, and no server.
    Skopeo,
}

/// The reference registry's program in Debian.
pub(crate) const REGISTRY: &str = "docker-registry";
/// The environment variable with the path of a further binary of the reference registry.
const OTHER_REGISTRY: &str = "COMPARE_REGISTRY";

/// The binary that the variable names, where it is set.
#[expect(clippy::disallowed_methods, reason = "the bench's own environment")]
pub(crate) fn other_registry() -> Option<PathBuf> {
    std::env::var_os(OTHER_REGISTRY).map(PathBuf::from)
}

impl Peer {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Millpond => "millpond",
            Self::OneThread => "millpond, one thread",
            Self::NginxStatic => "nginx static",
            Self::NginxCache => "nginx proxy_cache",
            Self::Registry => "docker-registry proxy",
            Self::OtherRegistry => "the named registry as proxy",
            Self::Hosting => "docker-registry",
            Self::Skopeo => "skopeo",
        }
    }

    /// The program that has to be there.
    pub(crate) const fn program(self) -> Option<&'static str> {
        match self {
            Self::Millpond | Self::OneThread | Self::OtherRegistry => None,
            Self::NginxStatic | Self::NginxCache => Some("nginx"),
            Self::Registry | Self::Hosting => Some(REGISTRY),
            Self::Skopeo => Some("skopeo"),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a program is on the path, and its version in words.
pub(crate) fn version(program: &str) -> Option<String> {
    let output = Command::new(program)
        .arg(if program == "nginx" {
            "-v"
        } else {
            "--version"
        })
        .output()
        .ok()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let line = text.lines().next()?;
    Some(line.trim_start_matches("nginx version: ").to_owned())
}

/// Where everything comes from.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    pub(crate) upstream: SocketAddr,
    /// The content as files below the paths of the API.
    pub(crate) files: PathBuf,
    /// The binary of millpond.
    pub(crate) millpond: PathBuf,
}

/// Starts a server with an empty cache.
pub(crate) fn start(peer: Peer, sources: &Sources) -> Result<Server> {
    Server::start(|directory, addr| match peer {
        Peer::Millpond | Peer::OneThread => {
            let binary = &sources.millpond;
            let mut command = millpond(binary, directory, addr, sources.upstream, &Map::new());
            if peer == Peer::OneThread {
                command.env("TOKIO_WORKER_THREADS", "1");
            }
            Ok(command)
        }
        Peer::NginxStatic => {
            let server = static_files(addr, &sources.files);
            nginx(directory, &server)
        }
        Peer::NginxCache => {
            let server = proxy_cache(directory, addr, sources.upstream);
            nginx(directory, &server)
        }
        Peer::Registry | Peer::OtherRegistry | Peer::Hosting => {
            let named = other_registry().filter(|_| peer == Peer::OtherRegistry);
            let program = named.unwrap_or_else(|| REGISTRY.into());
            let data = directory.join("data");
            let upstream = (peer != Peer::Hosting).then_some(sources.upstream);
            registry(&program, directory, addr, upstream, &data)
        }
        Peer::Skopeo => anyhow::bail!("{peer} is no server"),
    })
}

/// Starts millpond or nginx with TLS, with the certificate and the key in a directory.
pub(crate) fn start_with_tls(peer: Peer, sources: &Sources, files: &Path) -> Result<Server> {
    Server::start(|directory, addr| {
        let upstream = sources.upstream;
        let server = match peer {
            Peer::NginxStatic => static_files(addr, &sources.files),
            Peer::NginxCache => proxy_cache(directory, addr, upstream),
            _ => {
                let binary = &sources.millpond;
                let mut command = millpond(binary, directory, addr, upstream, &Map::new());
                command.env("REGISTRY_HTTP_TLS_CERTIFICATE", files.join("cert.pem"));
                command.env("REGISTRY_HTTP_TLS_KEY", files.join("key.pem"));
                return Ok(command);
            }
        };
        let listen = format!("listen {addr};");
        let secure = format!("listen {addr}{}", tls::nginx(files));
        nginx(directory, &server.replace(&listen, &secure))
    })
}

/// The reference registry over `data`: a proxy of an upstream, or an upstream itself.
pub(crate) fn registry(
    program: &Path,
    directory: &Path,
    addr: SocketAddr,
    upstream: Option<SocketAddr>,
    data: &Path,
) -> Result<Command> {
    let mut config = json!({
        "version": 0.1,
        // An upstream's access log is how its requests are counted.
        "log": { "level": "error", "accesslog": { "disabled": upstream.is_some() } },
        "storage": {
            "filesystem": { "rootdirectory": data },
            "cache": { "blobdescriptor": "inmemory" },
        },
        "http": { "addr": addr, "secret": "bench" },
    });
    if let (Some(upstream), Some(config)) = (upstream, config.as_object_mut()) {
        let proxy = json!({ "remoteurl": format!("http://{upstream}") });
        config.insert("proxy".to_owned(), proxy);
    }
    let path = directory.join("registry.yml");
    fs::write(&path, serde_json::to_string_pretty(&config)?)?;
    let mut command = Command::new(program);
    command.arg("serve").arg(path);
    Ok(command)
}

fn static_files(addr: SocketAddr, files: &Path) -> String {
    format!(
        "server {{ listen {addr}; root {}; location ~ /manifests/ {{ default_type {INDEX}; }} }}",
        files.display()
    )
}

fn proxy_cache(directory: &Path, addr: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "proxy_cache_path {cache} levels=1:2 keys_zone=cache:64m max_size=20g inactive=1d use_temp_path=off;
         upstream registry {{ server {upstream}; keepalive 64; }}
         server {{
           listen {addr};
           location / {{
             proxy_pass http://registry;
             proxy_http_version 1.1;
             proxy_set_header Connection \"\";
             proxy_buffer_size 64k;
             proxy_buffers 16 64k;
             proxy_busy_buffers_size 128k;
             proxy_cache cache;
             proxy_cache_key $uri$http_accept;
             proxy_cache_valid 200 1h;
             proxy_cache_lock on;
             proxy_cache_lock_age 10m;
             proxy_cache_lock_timeout 10m;
           }}
         }}",
        cache = directory.join("cache").display(),
    )
}

fn nginx(directory: &Path, server: &str) -> Result<Command> {
    // Workers of a master that is root would run as somebody who can't read the directory.
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let at = directory.display();
    let config = format!(
        "{user} daemon off; worker_processes 2; worker_rlimit_nofile 65536;
         pid {at}/pid; error_log {at}/error.log warn;
         events {{ worker_connections 8192; }}
         http {{
           access_log off; default_type application/octet-stream;
           sendfile on; tcp_nopush on; tcp_nodelay on;
           keepalive_timeout 1h; keepalive_requests 1000000000;
           open_file_cache max=10000 inactive=1h; open_file_cache_valid 1h;
           client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
           uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
           {server}
         }}\n"
    );
    let path = directory.join("nginx.conf");
    fs::write(&path, config)?;
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(directory)
        .arg("-c")
        .arg(path)
        .arg("-e")
        .arg(directory.join("error.log"));
    Ok(command)
}
